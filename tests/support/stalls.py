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
from typing import Any

import pytest

from lb.testing.backend import METHODS

ROOT = Path(__file__).parents[2]
_C = ctypes.PyDLL(None)  # whose functions keep the interpreter's lock


def hold_loop(seconds: float) -> None:
    """Hold the calling thread, as a loop is held by code of its own; other threads run."""
    time.sleep(seconds)


def hold_interpreter(seconds: float) -> None:
    """Hold the interpreter's lock: no thread of this process runs Python meanwhile; core's own threads do."""
    _C.usleep(round(seconds * 1e6))


STRICT: dict[str, Any] = {"consecutive_failures": 1, "failure_ratio": None}
"""A breaker that opens at the first failure."""
HOLDS: dict[str, Callable[[float], None]] = {"loop": hold_loop, "interpreter": hold_interpreter}


@contextmanager
def servers(count: int) -> Iterator[list[str]]:
    """Addresses of so many servers of a child process, which echo and say of ``shop`` that it is SERVING."""
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


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Three of them."""
    with servers(3) as found:
        yield found


async def _serve(count: int) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_health.v1.health import aio as health

    from lb.testing import Backend

    options = (
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
    )
    echo = Backend("echo")  # whose handlers are served here

    class Echo(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            method = handler_call_details.method
            return echo.handler(method) if method in METHODS else None

    servers = []
    for _ in range(count):
        server = grpc.aio.server(options=options)
        servicer = health.HealthServicer()
        await servicer.set("shop", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        server.add_generic_rpc_handlers((Echo(),))
        print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", end=" ")
        await server.start()
        servers.append(server)
    print(flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
