"""What is changed while calls run, and what raises where a user's policy is asked: no call suffers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest

import lb
from lb.testing.backend import METHODS, Gate, fail, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    AT_ONCE,
    HANGS_S,
    UU,
    First,
    Kind,
    Told,
    channel_to,
    endpoints,
    eventually,
    in_flight,
    ready,
)
from tests.support import doors
from tests.telemetry.kit import Recording

POLICIES = ("round_robin", "p2c", "least_request", "random", "weighted_round_robin", "weighted_random")


class Raising(First):
    """Its hooks raise."""

    def ended(self, *arguments: Any) -> None:
        """The end of each attempt."""
        raise ZeroDivisionError("ended")

    def report(self, *arguments: Any) -> None:
        """A server's report."""
        raise ZeroDivisionError("report")


async def test_policy_and_weights_change_under_load(fleet: Fleet, kind: Kind) -> None:
    """Every few calls another policy and other weights: no call fails, nothing is left in flight."""
    backends = await fleet(3)
    async with channel_to(*backends) as channel:
        await ready(channel, 3)

        async def worker() -> None:
            for _ in range(25):
                assert await kind.run(channel) == kind.echo()

        workers = asyncio.gather(*(worker() for _ in range(8)))
        turn = 0
        while not workers.done():
            channel.change_policy(POLICIES[turn % len(POLICIES)])
            channel.change_weights({backends[turn % 3].address: turn % 4})
            turn += 1
            await asyncio.sleep(0.002)
        await workers
        assert turn > 3
        assert in_flight(channel) == 0


async def test_hooks_that_raise_harm_no_call(fleet: Fleet, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """The answer comes, a retry follows, places come free, and each bug is told."""
    one, two = await fleet(2)
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE)
    limit = lb.ConcurrencyLimit(limit=1, queue_s=20)
    async with channel_to(one, two, policy=Raising(), retry=retry, limit=limit) as channel:
        await ready(channel, 2)
        one.script(fail())
        with caplog.at_level(logging.CRITICAL, "lb.channel"):
            calls = [kind.start(channel) for _ in range(12)]
            async with asyncio.timeout(HANGS_S):
                assert await asyncio.gather(*map(kind.responses, calls)) == [kind.echo()] * 12
        assert in_flight(channel) == 0
        assert not doors.line(channel)


async def test_a_hook_that_raises_keeps_no_connection(fleet: Fleet) -> None:
    """An endpoint that left the set is closed after its last attempt, whatever the hook does."""
    one, two = await fleet(2)
    gate = Gate()
    one.always(hold(gate))
    told = Told(*endpoints(one, two))
    async with lb.aio.channel(told, policy=Raising()) as channel:
        await ready(channel, 2)
        candidate = doors.candidates(channel)[0]
        call = UU.start(channel)
        await one.until(lambda: one.in_flight == 1)
        told.say(*endpoints(two))
        assert not doors.closed(candidate)
        gate.open()
        assert await UU.responses(call) == UU.echo()
        assert doors.closed(candidate)


async def test_the_spans_of_both_attempts_end(fleet: Fleet) -> None:
    """Winner and loser of a hedged call, each once, below the call's."""
    one, two = await fleet(2)
    one.always(hang())
    settings: dict[str, Any] = {"policy": First(), "hedging": lb.Hedging(delay_s=0.0)}
    async with channel_to(one, two, retry=lb.Retry(idempotent=METHODS), **settings) as channel:
        recording = Recording()
        recording.of(channel)
        await ready(channel, 2)
        assert await UU.run(channel) == UU.echo()
        await eventually(lambda: len(recording.spans) == 3, "three spans have ended")
        assert Counter(span.name.partition(".")[0] for span in recording.spans) == {"Sent": 1, "Attempt": 2}
        assert {span.parent.span_id for span in recording.attempts} == {recording.call.context.span_id}
        recording.provider.shutdown()
