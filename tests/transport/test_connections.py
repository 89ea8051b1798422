"""What is kept of connections: those of idle channels are closed, and health is watched over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import lb
from lb.testing import Backend
from lb.testing.backend import SERVICE, hang
from tests.transport.conftest import Fleet
from tests.transport.kit import HANGS_S, UU, channel_to, eventually, failure, in_flight, ready

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Healthy:
    """A server with gRPC's health service; it answers with its own name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.health = health.aio.HealthServicer()

    async def answer(self, request: bytes, context: Any) -> bytes:
        """Its name, whatever is asked."""
        return self.name.encode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        handlers: Any = {"UnaryUnary": grpc.unary_unary_rpc_method_handler(self.answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_watched(service: str) -> None:
    """An endpoint that says NOT_SERVING gets no call until it says otherwise; without a watch it gets its share."""
    a, b = Healthy("a"), Healthy("b")
    async with a.running(), b.running():
        await a.health.set(service, SERVING)
        await b.health.set(service, NOT_SERVING)
        target = f"static:///{a.address},{b.address}"
        async with lb.aio.channel(target, policy="round_robin", health=service) as channel:
            await ready(channel, 1)
            assert [await UU.run(channel) for _ in range(4)] == [[b"a"]] * 4
            await b.health.set(service, SERVING)
            await ready(channel, 2)
            assert sorted([(await UU.run(channel))[0] for _ in range(4)]) == [b"a", b"a", b"b", b"b"]
            await a.health.set(service, NOT_SERVING)
            await eventually(lambda: sum(e.picked for e in channel.snapshot().endpoints) == 1, "a is left out")
            assert [await UU.run(channel) for _ in range(4)] == [[b"b"]] * 4
            await b.health.set(service, NOT_SERVING)
            await eventually(lambda: not any(e.picked for e in channel.snapshot().endpoints), "b is left out")
            error = await failure(UU.start(channel, timeout=HANGS_S))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with lb.aio.channel(target, policy="round_robin") as channel:
            await ready(channel, 2)
            assert len({(await UU.run(channel))[0] for _ in range(4)}) == 2


async def test_a_server_without_a_health_service_is_well(backend: Backend) -> None:
    """The watch is UNIMPLEMENTED there, which says nothing against it (gRFC A17)."""
    async with channel_to(backend, health="") as channel:
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()


async def test_an_idle_channel_closes_its_connections(fleet: Fleet) -> None:
    """After ``idle_s`` without a call; the next call opens them again, and goes through."""
    backends = await fleet(2)
    async with channel_to(*backends, connection=lb.Connection(idle_s=0.2)) as channel:
        await UU.run(channel, timeout=HANGS_S)
        await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE, "the channel is idle")
        assert all(e.connectivity == "IDLE" for e in channel.snapshot().endpoints)
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()
        peers = {call.peer for backend in backends for call in backend.received}
        assert len(peers) == 2


async def test_a_channel_with_a_running_call_is_not_idle(backend: Backend) -> None:
    """However long the call takes."""
    async with channel_to(backend, connection=lb.Connection(idle_s=0.05)) as channel:
        backend.script(hang())
        call = UU.start(channel, timeout=HANGS_S)
        await backend.until(lambda: backend.in_flight == 1)
        other = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < other:  # several times ``idle_s``
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            await asyncio.sleep(0.01)
        assert in_flight(channel) == 1
        call.cancel()
        await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE, "the channel is idle")
