"""Fixtures of the channel's tests: backends that are stopped when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from lb.testing import Backend
from tests.transport.kit import KINDS, Kind

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
