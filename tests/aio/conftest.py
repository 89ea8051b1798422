"""Fixtures of the tests of `lb.aio`: backends that are stopped when the test is over, Consul, listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from lb.core.endpoint import Endpoint, Resolution
from lb.testing import Backend
from tests.aio.ending import Ending
from tests.aio.kit import KINDS, Kind
from tests.aio.worlds import SIDES, Side, World
from tests.support.consul import acl_consul, embedded_consul, own_registry, real_consul, registry, two_nodes
from tests.support.instance import instance, service

__all__ = [
    "acl_consul",
    "embedded_consul",
    "instance",
    "own_registry",
    "real_consul",
    "registry",
    "service",
    "two_nodes",
]

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


@dataclass
class Recorder:
    """A listener that remembers, and can be waited for."""

    resolutions: list[Resolution] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    confirmed: int = 0

    def update(self, resolution: Resolution) -> None:
        """A new set."""
        self.resolutions.append(resolution)
        self._news.set()

    def confirm(self) -> None:
        """Nothing new."""
        self.confirmed += 1
        self._news.set()

    def error(self, message: str) -> None:
        """No answer."""
        self.errors.append(message)
        self._news.set()

    @property
    def endpoints(self) -> dict[str, Endpoint] | None:
        """The last set by id; None before the first."""
        return {e.id: e for e in self.resolutions[-1].endpoints} if self.resolutions else None

    @property
    def note(self) -> str:
        """The last note."""
        return self.resolutions[-1].note if self.resolutions else ""

    async def until(self, true: Callable[[Recorder], object], *, within_s: float = 30.0) -> float:
        """Waits until it is so; the seconds that took. Raises ``TimeoutError`` with what is known."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(within_s):
                while not true(self):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"not within {within_s:g} s; last: {self.resolutions[-1:]}, {self.errors[-1:]}"
            ) from None
        return loop.time() - began

    async def ids(self, *ids: str, within_s: float = 30.0) -> float:
        """Waits until exactly these are the endpoints; the seconds that took."""
        return await self.until(lambda r: r.endpoints is not None and set(r.endpoints) == set(ids), within_s=within_s)


@pytest.fixture
def listener() -> Recorder:
    """A listener that remembers."""
    return Recorder()
