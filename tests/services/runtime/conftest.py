"""Fixtures of the tests of what every service runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lb.testing import Agent


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    """A Consul."""
    async with Agent() as made:
        yield made
