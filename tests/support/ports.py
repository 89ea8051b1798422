"""Ports for programs that cannot bind port 0 and say which one they got."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

_FROM = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _below() -> int:
    """The first port that the system may give to an outgoing connection."""
    return int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 49_152


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1 that are free for TCP and UDP, all different, and held until the block ends.

    None is of those that the system gives to outgoing connections and to servers that bind port 0: such a port
    may be taken for minutes by the time at which its program has started. Nor may another of pytest-xdist's workers
    be given it.
    """
    ports: list[int] = []
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = range(_FROM + number % workers, max(_below(), _FROM + 1_000 * workers), workers)
    candidates = random.sample(ours, k=1_000)
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = candidates.pop()
            with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    probes.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
                held.push(probes.pop_all())
                ports.append(port)
        yield ports
