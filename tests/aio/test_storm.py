"""All at once: faults, changes of set, policy and weights, cancellations, hedges, limits. Nothing hangs or stays.

What each part does alone is tested elsewhere; here it is only asked whether any mixture loses a call or a place.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest

import lb
from lb.testing.backend import METHODS, Step, echo, fail, hang, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, UU, Told, endpoints, eventually, in_flight, lb_tasks, ready
from tests.support import doors

ROUNDS = 60
STEPS: list[Step | None] = [
    None,
    None,
    fail(),
    fail(grpc.StatusCode.INTERNAL),
    fail(headers=True),
    fail(after=1),
    pushback(0),
    pushback(5),
    pushback(-1),
    hang(),
    hang(after=1),
    echo(headers=True),
]
POLICIES: list[Any] = [
    "p2c",
    "round_robin",
    "orca",
    "pick_first",
    lb.RingHash(key="user"),
    lb.SlowStart(policy="least_request"),
    lb.Subset(size=2, client=1),
    lb.ZoneAware(zone="here"),
]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_happens_nothing_hangs_and_nothing_stays(fleet: Fleet, seed: int) -> None:
    """Each call ends, in whatever way; then nothing is in flight or in line, and calls go through."""
    rng = random.Random(seed)
    backends = await fleet(3)
    told = Told(*endpoints(*backends))
    async with lb.aio.channel(
        told,
        retry=lb.Retry(idempotent=METHODS, attempt_timeout_s=0.05),
        hedging=lb.Hedging(delay_s=0.005, max_attempts=3),
        limit=lb.ConcurrencyLimit(limit=6, adaptive=True, queue=8, queue_s=0.05),
        breaker=lb.Breaker(consecutive_failures=3, open_s=0.05, max_open_s=0.1, refused_s=0.02),
        connection=lb.Connection(idle_s=0.05),
    ) as channel:
        await ready(channel, 3)

        async def one(number: int) -> None:
            kind = rng.choice(KINDS)
            call = kind.start(channel, timeout=rng.choice([0.01, 0.05, 0.3]), metadata=(("user", str(number % 7)),))
            answers = asyncio.ensure_future(kind.responses(call))
            if rng.random() < 0.4:
                await asyncio.sleep(rng.random() * 0.03)
                (call if rng.random() < 0.5 else answers).cancel()
            done, _ = await asyncio.wait([answers], timeout=HANGS_S)
            assert done, (kind, lb.attempts(call))
            if not answers.cancelled() and (error := answers.exception()) is not None:
                assert isinstance(error, grpc.aio.AioRpcError), error

        for _ in range(ROUNDS):
            what = rng.randrange(8)
            if what in (0, 1):
                rng.choice(backends).always(rng.choice(STEPS))
            elif what in (2, 3):
                told.say(*endpoints(*rng.sample(backends, rng.randint(1, 3))))
            elif what == 4:
                channel.change_policy(rng.choice(POLICIES))
            elif what == 5:
                channel.change_weights({backend.name: rng.randint(0, 3) for backend in backends})
            elif what == 6:
                stopped = rng.choice(backends)
                await stopped.stop()
                await stopped.start()
            else:
                await asyncio.sleep(0.06)  # long enough to fall asleep
            await asyncio.gather(*(one(number) for number in range(rng.randint(1, 16))))

        for backend in backends:
            backend.always(None)
        logical = doors.engine(channel)
        await eventually(lambda: not in_flight(channel) and not logical.unbegun, "nothing is in flight", HANGS_S)
        assert (logical.balancer.line.waiting, len(logical.waiting.line), logical.balancer.leaving) == (0, 0, [])
        told.say(*endpoints(*backends))
        channel.change_weights({})
        left = 10
        async with asyncio.timeout(HANGS_S):
            while left:
                try:
                    assert await UU.run(channel, wait_for_ready=True) == UU.echo()
                    left -= 1
                except grpc.aio.AioRpcError:  # a busy machine: an attempt has 50 ms
                    await asyncio.sleep(0.05)
    await eventually(lambda: not lb_tasks(), "all tasks have ended", HANGS_S)
