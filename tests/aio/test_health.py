"""gRPC's health watch: what says NOT_SERVING gets no calls while others serve."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from hyperframe.frame import DataFrame

import lb
from lb.aio import Channel
from lb.testing.backend import UNARY_UNARY
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, UU, channel_to, eventually, failure, ready
from tests.support import http2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Instance:
    """A server with an echo and a health service."""

    def __init__(self, address: str, servicer: health.HealthServicer) -> None:
        self.address = address
        self.servicer = servicer
        self.calls = 0

    async def echo(self, request: bytes, context: object) -> bytes:
        """Count, and answer."""
        self.calls += 1
        return request


@contextlib.asynccontextmanager
async def instance() -> AsyncIterator[Instance]:
    """One of them, serving the service ``shop``."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    found = Instance(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", servicer)
    service, _, method = UNARY_UNARY[1:].partition("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(found.echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    await servicer.set("shop", SERVING)
    await server.start()
    try:
        yield found
    finally:
        await server.stop(None)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Instance, Instance]]:
    """Two of them."""
    async with instance() as one, instance() as two:
        yield one, two


def connectivity(channel: Channel) -> list[str]:
    """Of each endpoint, in order."""
    return [endpoint.connectivity for endpoint in channel.snapshot().endpoints]


async def test_not_serving_means_not_picked(pair: tuple[Instance, Instance]) -> None:
    """From the moment it says so until it says otherwise; the snapshot tells why."""
    one, two = pair
    async with lb.aio.channel(f"static:///{one.address},{two.address}", health="shop") as channel:
        channel.get_state(try_to_connect=True)
        await eventually(lambda: connectivity(channel) == ["READY", "READY"])
        await one.servicer.set("shop", NOT_SERVING)
        await eventually(lambda: connectivity(channel)[0] != "READY")
        before = one.calls
        for _ in range(6):
            await UU.run(channel)
        assert (one.calls, two.calls) == (before, 6)
        assert not channel.snapshot().endpoints[0].picked
        await one.servicer.set("shop", SERVING)
        await eventually(lambda: connectivity(channel) == ["READY", "READY"])
        for _ in range(6):
            await UU.run(channel)
        assert one.calls > before


async def test_without_the_setting_nobody_is_asked(pair: tuple[Instance, Instance]) -> None:
    """What it says does not count."""
    one, two = pair
    await one.servicer.set("shop", NOT_SERVING)
    async with lb.aio.channel(f"static:///{one.address},{two.address}") as channel:
        channel.get_state(try_to_connect=True)
        await eventually(lambda: connectivity(channel) == ["READY", "READY"])


async def test_the_service_config_may_ask_for_it(pair: tuple[Instance, Instance]) -> None:
    """``healthCheckConfig``, in a document."""
    one, two = pair
    await one.servicer.set("shop", NOT_SERVING)
    config = {"healthCheckConfig": {"serviceName": "shop"}}
    async with lb.aio.channel(f"static:///{one.address},{two.address}", service_config=config) as channel:
        channel.get_state(try_to_connect=True)
        await eventually(lambda: connectivity(channel)[1] == "READY" and connectivity(channel)[0] != "CONNECTING")
        for _ in range(4):
            await UU.run(channel)
    assert (one.calls, two.calls) == (0, 4)


async def test_none_serving_is_said(pair: tuple[Instance, Instance]) -> None:
    """UNAVAILABLE, and not a call to one that can not take it."""
    one, two = pair
    for each in pair:
        await each.servicer.set("shop", NOT_SERVING)
    async with lb.aio.channel(f"static:///{one.address},{two.address}", health="shop") as channel:
        error = await failure(UU.start(channel, timeout=HANGS_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert one.calls == two.calls == 0


async def test_a_service_that_nobody_knows_is_said_once_and_all_are_used(
    pair: tuple[Instance, Instance], caplog: pytest.LogCaptureFixture
) -> None:
    """The name that ``health=`` has is probably wrong: a warning, and calls go through."""
    one, two = pair
    with caplog.at_level(logging.WARNING, "lb.channel"):
        async with lb.aio.channel(f"static:///{one.address},{two.address}", health="typo") as channel:
            await ready(channel, 2)
            for _ in range(10):
                await UU.run(channel)
    assert (one.calls, two.calls) == (5, 5)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("no endpoint knows the service 'typo' of health=; all endpoints are used anyway")


async def test_who_does_not_know_the_service_is_not_used_while_another_serves_it(
    pair: tuple[Instance, Instance],
) -> None:
    """And the snapshot says so; once it knows it, it takes its share."""
    one, two = pair
    await one.servicer.set("new", SERVING)
    async with lb.aio.channel(f"static:///{one.address},{two.address}", health="new") as channel:
        await ready(channel, 2)
        before = two.calls
        for _ in range(6):
            await UU.run(channel)
        assert two.calls == before
        assert channel.snapshot().endpoints[1].why == "its health service does not know the name given in health="
        await two.servicer.set("new", SERVING)
        await eventually(lambda: channel.snapshot().endpoints[1].picked)


async def test_not_serving_is_said_in_its_words(pair: tuple[Instance, Instance]) -> None:
    """In the error of a call, with the service's name."""
    one, _ = pair
    await one.servicer.set("shop", NOT_SERVING)
    async with lb.aio.channel(f"static:///{one.address}", health="shop") as channel:
        said = str((await failure(UU.start(channel, timeout=HANGS_S))).details())
    assert said.endswith(f"{one.address}: it says NOT_SERVING of 'shop'")


async def test_a_watch_that_ends_is_begun_again() -> None:
    """The connection stands, the stream of the health service ended: not used until it answers again."""
    watches: list[tuple[http2.Connection, int]] = []
    serving = health_pb2.HealthCheckResponse(status=SERVING).SerializeToString()

    def answer(connection: http2.Connection, stream: int) -> None:
        watches.append((connection, stream))
        if len(watches) < 3:
            connection.trailers(stream, grpc.StatusCode.UNAVAILABLE.value[0], "restarting%0Anow")
        else:
            connection.headers(stream)
            connection.send(DataFrame(stream, b"\x00" + len(serving).to_bytes(4, "big") + serving))

    async with http2.raw(answer) as peer, lb.aio.channel(f"static:///{peer.address}", health="shop") as channel:
        said = str((await failure(UU.start(channel, timeout=HANGS_S))).details())
        assert said.endswith("its health service cannot be watched: UNAVAILABLE: restarting\\nnow")
        await ready(channel, 1)
        assert len(watches) == 3
        assert len(peer.connections) == 1


async def test_a_server_without_a_health_service_is_used(fleet: Fleet) -> None:
    """It says UNIMPLEMENTED, which counts as serving (gRFC A17)."""
    backends = await fleet(2)
    async with channel_to(*backends, health="shop") as channel:
        await ready(channel, 2)
        for _ in range(4):
            assert await UU.run(channel) == UU.echo()
    assert [backend.unknown[:1] for backend in backends] == [["/grpc.health.v1.Health/Watch"]] * 2
