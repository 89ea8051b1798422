"""gRPC's health watch under `lb.sync`: the loop watches, calling threads obey."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import lb
from lb.testing.backend import UNARY_UNARY
from tests.sync.kit import HANGS_S, NO_BREAKER, UU, eventually, failure, lb_threads, ready

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


class Instance:
    """A server with an echo, and a health service that knows ``shop``."""

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self.calls = 0
        self._pool = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        service, _, method = UNARY_UNARY[1:].partition("/")
        handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(self._echo)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.servicer.set("shop", SERVING)
        self._server.start()

    def _echo(self, request: bytes, context: object) -> bytes:
        self.calls += 1
        return request

    def stop(self) -> None:
        """End it at once."""
        self._server.stop(0).wait()
        self._pool.shutdown()


@pytest.fixture
def pair() -> Iterator[tuple[Instance, Instance]]:
    """Two of them."""
    one, two = Instance(), Instance()
    yield one, two
    one.stop()
    two.stop()


def channel_to(*instances: Instance, service: str) -> lb.sync.Channel:
    """A channel that watches the health of this service."""
    addresses = ",".join(instance.address for instance in instances)
    return lb.sync.channel(f"static:///{addresses}", health=service, breaker=NO_BREAKER)


def test_not_serving_means_not_picked(pair: tuple[Instance, Instance]) -> None:
    """From the moment it says so until it says otherwise, for blocking calls and for those of the loop."""
    one, two = pair
    with channel_to(*pair, service="shop") as channel:
        ready(channel, 2)
        one.servicer.set("shop", NOT_SERVING)
        eventually(lambda: "it says NOT_SERVING of 'shop'" in channel.snapshot().endpoints[0].why, "it is left out")
        before = one.calls
        for _ in range(4):
            assert UU.run(channel) == UU.echo()
            assert UU.finish(UU.start(channel)) == UU.echo()
        assert (one.calls, two.calls) == (before, 8)
        one.servicer.set("shop", SERVING)
        eventually(lambda: channel.snapshot().endpoints[0].picked, "it is back")


def test_none_serving_is_said(pair: tuple[Instance, Instance]) -> None:
    """UNAVAILABLE, in words."""
    for instance in pair:
        instance.servicer.set("shop", NOT_SERVING)
    with channel_to(*pair, service="shop") as channel:
        error = failure(lambda: UU.run(channel, timeout=HANGS_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "it says NOT_SERVING of 'shop'" in error.details()


def test_a_service_that_nobody_knows_is_said_once_and_all_are_used(
    pair: tuple[Instance, Instance], caplog: pytest.LogCaptureFixture
) -> None:
    """The name that ``health=`` has is probably wrong: a warning, and calls go through."""
    one, two = pair
    with caplog.at_level(logging.WARNING, "lb.channel"), channel_to(*pair, service="typo") as channel:
        ready(channel, 2)
        for _ in range(5):
            assert UU.run(channel) == UU.echo()
            assert UU.finish(UU.start(channel)) == UU.echo()
    assert (one.calls, two.calls) == (5, 5)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "lb.channel"]
    assert "no endpoint knows the service 'typo'" in said


def test_closing_does_not_wait_for_a_watch(pair: tuple[Instance, Instance]) -> None:
    """The library's thread ends at once, in the best of five."""

    def took_s() -> float:
        with channel_to(*pair, service="shop") as channel:
            UU.run(channel)
            eventually(lambda: all(each.connectivity == "READY" for each in channel.snapshot().endpoints), "both serve")
            since = time.monotonic()
        eventually(lambda: not lb_threads(), "the library's thread has ended")
        return time.monotonic() - since

    assert min(took_s() for _ in range(5)) < 0.5
