"""Fixtures of the channel's tests: backends that are stopped when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from lb.testing import Backend
from tests.transport.ending import Ending
from tests.transport.kit import KINDS, Kind
from tests.transport.worlds import SIDES, Side, World

Fleet = Callable[..., Awaitable[list[Backend]]]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Starts so many backends, named ``a``, ``b``, ``c``."""
    async with AsyncExitStack() as stack:

        async def start(size: int, **settings: Any) -> list[Backend]:
            return [await stack.enter_async_context(Backend(chr(ord("a") + i), **settings)) for i in range(size)]

        yield start


@pytest.fixture
async def backend(fleet: Fleet) -> Backend:
    """One backend, ``a``."""
    return (await fleet(1))[0]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the four kinds of call in turn."""
    found: Kind = request.param
    return found


@pytest.fixture(params=SIDES, ids=str)
def side(request: pytest.FixtureRequest) -> Side:
    """Grpcio's channel, and ours over one endpoint and over three."""
    found: Side = request.param
    return found


@pytest.fixture
async def world(side: Side, fleet: Fleet) -> AsyncIterator[World]:
    """A channel of each side, with its backends."""
    backends = await fleet(side.backends)
    async with side.to(backends) as channel:
        yield World(side, channel, backends)


@pytest.fixture
def ending() -> Iterator[Ending]:
    """A server whose streams end at a moment that the test chooses."""
    ending = Ending()
    yield ending
    ending.stop()
