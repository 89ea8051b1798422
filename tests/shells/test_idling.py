"""A connection that is closed for want of calls says nothing more."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

import lb
from lb.aio.subchannel import Subchannel
from lb.core.candidate import Candidate, Connectivity
from lb.core.connection import Pace
from lb.sync.subchannel import SharedSubchannel
from lb.testing import Backend
from tests.aio.kit import HANGS_S


@pytest.mark.parametrize("subchannel", [Subchannel, SharedSubchannel], ids=["asyncio", "threads"])
async def test_a_closed_connection_says_nothing_more(backend: Backend, subchannel: Any) -> None:
    """By the time its watch ends the endpoint may have another connection, which must not be thought lost."""
    candidate = Candidate(lb.Endpoint(backend.address), lb.Breaker().new_state())
    told: list[Connectivity] = []
    stands = asyncio.Event()

    def report(candidate: Candidate, state: Connectivity, trouble: str, **_: bool) -> None:
        told.append(state)
        if state is Connectivity.READY:
            stands.set()

    made = subchannel(candidate, (), None, None, report, Pace(lb.Connection(), Random(1)))
    async with asyncio.timeout(HANGS_S):
        await stands.wait()
    told.clear()
    ended = made.close()
    assert ended is not None
    await asyncio.wait((ended,))
    assert told == []
