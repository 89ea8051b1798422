"""Fixtures of pytest. Write ``pytest_plugins = ["lb.testing.fixtures"]`` in your ``conftest.py``. They need
pytest-asyncio.

================  ==================================================================================
``lb_backend``    a started `lb.testing.Backend`
``lb_backends``   a function that starts several: ``await lb_backends(3)``, with arguments of `Backend`
``lb_agent``      a started `lb.testing.Agent`; ``CONSUL_HTTP_ADDR`` has its address during the test
``lb_clock``      a `lb.testing.FakeClock`
================  ==================================================================================

They are stopped at the end of the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from lb.testing.agent import Agent
from lb.testing.backend import Backend, Backends
from lb.testing.clock import FakeClock

try:
    import pytest_asyncio
except ImportError as error:
    raise ImportError("lb.testing.fixtures needs pytest-asyncio: pip install pytest-asyncio") from error


@pytest_asyncio.fixture
async def lb_backends() -> AsyncIterator[Backends]:
    """Makes so many started backends, called ``a``, ``b``, ``c``, ..."""
    async with AsyncExitStack() as stack:

        async def start(count: int, **arguments: Any) -> list[Backend]:
            names = [chr(ord("a") + index) if index < 26 else f"backend-{index}" for index in range(count)]
            return [await stack.enter_async_context(Backend(name, **arguments)) for name in names]

        yield start


@pytest_asyncio.fixture
async def lb_backend() -> AsyncIterator[Backend]:
    """One started backend."""
    async with Backend() as backend:
        yield backend


@pytest_asyncio.fixture
async def lb_agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """A started agent of Consul's kind; ``consul:///name`` finds it."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        yield agent


@pytest.fixture
def lb_clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    return FakeClock()
