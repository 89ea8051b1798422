"""Holding this process up, and servers of another process that go on meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_C = ctypes.PyDLL(None)  # whose functions keep the interpreter's lock


def hold_loop(seconds: float) -> None:
    """Hold the calling thread, as a loop is held by code of its own; other threads run."""
    time.sleep(seconds)


def hold_interpreter(seconds: float) -> None:
    """Hold the interpreter's lock: no thread of this process runs Python meanwhile; core's own threads do."""
    _C.usleep(round(seconds * 1e6))


HOLDS: dict[str, Callable[[float], None]] = {"loop": hold_loop, "interpreter": hold_interpreter}


@contextmanager
def servers(count: int) -> Iterator[list[str]]:
    """Addresses of so many `Backend`s of a child process, which echo."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stalls", str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:  # leaving it closes the child's stdin, and waits for its end
        assert child.stdout is not None
        yield child.stdout.readline().split()


async def _serve(count: int) -> None:
    from lb.testing import Backend

    options = (
        ("grpc.http2.min_ping_interval_without_data_ms", 10),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
    )
    backends = [Backend(f"p{number}", options=options) for number in range(count)]
    for backend in backends:
        await backend.start()
    print(*[backend.address for backend in backends], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for backend in backends:
        await backend.stop()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
