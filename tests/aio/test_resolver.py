"""A resolver of the user's own, and a set of endpoints that changes under the calls."""

from __future__ import annotations

import asyncio

import grpc

import lb
from tests.aio.kit import UU, Told, failure


async def test_the_deadline_tells_what_the_resolver_said_last() -> None:
    """A call that waits for a resolver ends with what kept it from resolving, though it said so later."""
    told = Told()
    async with lb.aio.channel(told) as channel:
        call = UU.start(channel, timeout=0.5)
        await asyncio.sleep(0)  # one turn: now the call is queued
        await asyncio.sleep(0)
        told.fail("the source is away")
        error = await failure(call)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the source is away" in str(error.details())


async def test_a_source_that_is_away_is_said_soon() -> None:
    """Nothing was ever resolved, and the resolver reports errors: calls fail soon though they have no deadline."""

    class Away:
        def start(self, listener: lb.Listener) -> None:
            listener.error("the registry at 127.0.0.1:1 is away")

        def close(self) -> None:
            """Nothing to stop."""

    async with lb.aio.channel(Away()) as channel:
        error = await failure(UU.start(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the registry at 127.0.0.1:1 is away" in str(error.details())
        error = await failure(UU.start(channel, wait_for_ready=True, timeout=0.1))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
