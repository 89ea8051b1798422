"""A whole server: what it serves beside its handlers, and its life from start to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import lb.server

SERVING = health_pb2.HealthCheckResponse.SERVING


class Service:
    """Three methods: an echo, one that waits for `go`, and a stream that lasts until its server drains."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Event()

    async def echo(self, request: bytes, context: Any) -> bytes:
        """The request."""
        return request

    async def wait(self, request: bytes, context: Any) -> bytes:
        """The request, later."""
        self.begun.set()
        await self.go.wait()
        return request

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """News until the server drains."""
        yield b"first"
        await lb.server.draining()
        yield b"last"

    def add(self, server: lb.server.Server) -> None:
        """Serve it there."""
        handlers: dict[str, Any] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])


def call(channel: grpc.aio.Channel, method: str, **named: Any) -> Any:
    """A call of one request and one response."""
    made: Any = channel.unary_unary(f"/test.Service/{method}")
    return made(b"x", **named)


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_a_server_in_a_test() -> None:
    """It serves from `start` to the end of the block: its own service, and health by name; a call is counted."""
    async with lb.server.Server("test") as server:
        Service().add(server)
        assert (server.port, server.address, server.state) == (0, "", "made")
        await server.start()
        assert server.address == f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await call(channel, "Echo") == b"x"
            assert await health(channel) == await health(channel, "test.Service") == SERVING
        await asyncio.wait_for(server.meter.idle(), 30)  # the handler ends after its status
        assert (server.state, server.meter.calls_total) == ("serving", 1)
    assert server.state == "ended"
