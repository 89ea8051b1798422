"""A service and a Consul for the tests of servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import lb.server
from lb.server import Around, Behavior, behavior_of
from lb.testing import Agent


class Service:
    """Three methods: an echo, one that waits for ``go``, and a stream that lasts until its server drains."""

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

    def add(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        handlers: dict[str, Any] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])


def call(channel: grpc.aio.Channel, method: str, **named: Any) -> Any:
    """A call of `Service`: of one request and one response, or of ``Watch`` with its stream."""
    kind = channel.unary_stream if method == "Watch" else channel.unary_unary
    made: Any = kind(f"/test.Service/{method}")
    return made(b"x", **named)


class Seen(Around):
    """An interceptor that counts the calls which come through it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def around(self, method: str, handler: Any) -> Behavior:
        """Count, and go on."""
        behavior = behavior_of(handler)

        async def unary(request: Any, context: Any) -> Any:
            self.calls.append(method)
            return await behavior(request, context)

        def stream(request: Any, context: Any) -> Any:
            self.calls.append(method)
            return behavior(request, context)

        return stream if handler.response_streaming else unary


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def failed(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    """A Consul."""
    async with Agent() as made:
        yield made
