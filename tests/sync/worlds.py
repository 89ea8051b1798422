"""One test body, three worlds: a channel of grpcio's, one of `lb.sync` with one endpoint, and one with three.

An assertion in a ``test_conformance*`` file is true in all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import lb.sync
from tests.sync.kit import SS, SU, TURN, US, UU, Server, target, wait_for

FUTURES = (UU, SU)
STREAMS = (US, SS)
REQUEST_STREAMS = (SU, SS)


class Where:
    """Servers, and how to open a channel to them."""

    def __init__(self, servers: list[Server], ours: bool) -> None:
        self.servers = servers
        self.ours = ours
        self.opened: list[Any] = []

    def open(self, **settings: Any) -> Any:
        """A channel, closed at the end of the test."""
        channel: Any
        if isinstance(settings.setdefault("options", ()), tuple):
            settings["options"] += (("grpc.default_authority", f"{TURN}{self.servers[0].turn}"),)
        if self.ours:
            channel = lb.sync.channel(target(*self.servers), retry=lb.Retry(enabled=False), **settings)
        else:
            interceptors = settings.pop("interceptors", ())
            channel = grpc.intercept_channel(grpc.insecure_channel(self.servers[0].address, **settings), *interceptors)
        self.opened.append(channel)
        return channel

    def script(self, step: Any) -> None:
        """The next call meets this, wherever it goes."""
        for server in self.servers:
            server.always = step

    @property
    def received(self) -> list[Any]:
        """What all servers together saw."""
        return [received for server in self.servers for received in server.received]

    def close(self) -> None:
        """Close what was opened."""
        for channel in self.opened:
            channel.close()
        self.opened.clear()


def gated(where: Where) -> threading.Event:
    """All calls wait for the event."""
    gate = threading.Event()
    where.script(wait_for(gate))
    return gate


@pytest.fixture(scope="module", params=["grpcio", "one", "three"])
def world(request: pytest.FixtureRequest) -> Iterator[Where]:
    """The channel of grpcio, and ours over one endpoint and three. All tests of a module share the servers."""
    servers = [Server(name) for name in ("abc" if request.param == "three" else "a")]
    yield Where(servers, request.param != "grpcio")
    for server in servers:
        server.stop()


@pytest.fixture
def where(world: Where) -> Iterator[Where]:
    """One of those worlds, as good as new."""
    yield world
    world.close()
    for server in world.servers:
        server.reset()


@pytest.fixture
def channel(where: Where) -> Any:
    """A plain channel there."""
    return where.open()
