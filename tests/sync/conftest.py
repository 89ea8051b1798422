"""Fixtures of the tests of `lb.sync`: servers that are stopped when the test is over, and the worlds of conformance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sync.kit import KINDS, Kind, Server
from tests.sync.worlds import channel, where, world

__all__ = ["channel", "where", "world"]

Fleet = Callable[..., list[Server]]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Starts so many servers, named ``a``, ``b``, ``c``."""
    with ExitStack() as stack:

        def start(size: int, **settings: Any) -> list[Server]:
            servers = [Server(chr(ord("a") + i % 26), **settings) for i in range(size)]
            for server in servers:
                stack.callback(server.stop)
            return servers

        yield start


@pytest.fixture
def server(fleet: Fleet) -> Server:
    """One server, ``a``."""
    return fleet(1)[0]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the four kinds of call in turn."""
    found: Kind = request.param
    return found
