"""The set of endpoints changes while calls run: who stays keeps its connection, who goes finishes its calls."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

import lb
from lb.aio import Channel
from lb.testing import Backend
from lb.testing.backend import Gate, answered_by, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import NO_BREAKER, UU, Kind, Told, endpoints, eventually, failure, in_flight, lb_tasks, ready


async def answers(channel: Channel, calls: int) -> Counter[str]:
    """Who answered so many calls, one after the other."""
    seen: Counter[str] = Counter()
    for _ in range(calls):
        call = UU.start(channel)
        await call
        seen[answered_by(await call.trailing_metadata())] += 1
    return seen


def watched() -> list[str]:
    """The endpoints that have a connection."""
    return [name.removeprefix("lb: watch ") for name in lb_tasks()]


async def test_a_removed_endpoint_finishes_its_calls(fleet: Fleet, kind: Kind) -> None:
    """No new call goes there; the running one ends well, and only then the connection is closed."""
    one, two = await fleet(2)
    told = Told(*endpoints(one))
    gate = Gate()
    one.script(hold(gate))
    async with lb.aio.channel(told, breaker=NO_BREAKER) as channel:
        call = kind.start(channel)
        await one.until(lambda: one.in_flight == 1)
        told.say(*endpoints(two))
        await ready(channel, 1)
        assert [e.id for e in channel.snapshot().endpoints] == ["b"]
        assert await answers(channel, 3) == {"b": 3}
        assert watched() == ["a", "b"]
        gate.open()
        assert await kind.responses(call) == kind.echo()
        await eventually(lambda: watched() == ["b"], "the connection is closed")
    assert len(one.received) == 1


async def test_an_idle_removed_endpoint_is_closed_at_once(fleet: Fleet) -> None:
    """It has no call to finish."""
    one, two = await fleet(2)
    told = Told(*endpoints(one, two))
    async with lb.aio.channel(told, breaker=NO_BREAKER) as channel:
        await ready(channel, 2)
        told.say(*endpoints(two))
        await eventually(lambda: watched() == ["b"], "the connection is closed")


async def test_who_stays_keeps_its_connection(fleet: Fleet) -> None:
    """Endpoints come, go and change weight around it: the server sees one and the same connection."""
    one, two, three = await fleet(3)
    told = Told(*endpoints(one, two))
    async with lb.aio.channel(told, policy="round_robin", breaker=NO_BREAKER) as channel:
        await ready(channel, 2)
        for known in (
            endpoints(one, three),
            endpoints(three, one),
            endpoints(one, three, weights=(5, 1)),
            endpoints(one),
            endpoints(one, two),
        ):
            told.say(*known)
            await ready(channel, len(known))
            await answers(channel, 4)
        picks = channel.snapshot().endpoints[0].picks
    assert len({received.peer for received in one.received}) == 1
    assert picks == len(one.received) >= 10


async def test_a_weight_changes_under_way(fleet: Fleet) -> None:
    """1:3 exactly, by the smooth sequence; after the change 3:1, without a call lost."""
    one, two = await fleet(2)
    told = Told(*endpoints(one, two, weights=(1, 3)))
    async with lb.aio.channel(told, policy="weighted_round_robin", breaker=NO_BREAKER) as channel:
        await ready(channel, 2)
        assert await answers(channel, 40) == {"a": 10, "b": 30}
        told.say(*endpoints(one, two, weights=(3, 1)))
        assert await answers(channel, 40) == {"a": 30, "b": 10}


@pytest.mark.parametrize("policy", ["weighted_round_robin", "weighted_random", "round_robin", "random"])
async def test_weight_0_gets_nothing_while_there_are_others(fleet: Fleet, policy: str) -> None:
    """Whatever the policy; alone it is used. It stays connected."""
    one, two = await fleet(2)
    told = Told(*endpoints(one, two, weights=(0, 1)))
    async with lb.aio.channel(told, policy=policy, breaker=NO_BREAKER) as channel:
        await ready(channel, 2)
        assert await answers(channel, 20) == {"b": 20}
        assert channel.snapshot().endpoints[0].why == "weight 0"
        told.say(*endpoints(one, weights=(0,)))
        assert await answers(channel, 2) == {"a": 2}
        told.say(*endpoints(one, two, weights=(0, 0)))
        await ready(channel, 2)
        assert set(await answers(channel, 40)) == {"a", "b"}


async def test_an_endpoint_that_went_away_comes_back(backend: Backend) -> None:
    """Its server is stopped and started again: the channel finds it by itself, soon."""
    async with lb.aio.channel(Told(*endpoints(backend)), breaker=NO_BREAKER) as channel:
        assert await answers(channel, 1) == {"a": 1}
        await backend.stop()
        await eventually(lambda: channel.snapshot().endpoints[0].connectivity == "TRANSIENT_FAILURE")
        await eventually(lambda: "refused" in channel.snapshot().endpoints[0].why, "the snapshot says why")
        error = await failure(UU.start(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert backend.address in str(error.details())
        await backend.start()
        async with asyncio.timeout(10):
            assert await UU.start(channel, wait_for_ready=True) == b"one"


async def test_a_set_that_becomes_empty_fails_calls_at_once(backend: Backend) -> None:
    """Also the one that waits for a connection; the note says why."""
    told = Told(*endpoints(backend))
    async with lb.aio.channel(told, breaker=NO_BREAKER) as channel:
        assert await answers(channel, 1) == {"a": 1}
        told.say(note="all of them are critical")
        error = await failure(UU.start(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "told has no endpoint: all of them are critical"
        told.say(*endpoints(backend))
        assert await answers(channel, 1) == {"a": 1}


async def test_a_policy_changes_under_way(fleet: Fleet) -> None:
    """``change_policy``: from the next call on, and a name that is none changes nothing."""
    one, two = await fleet(2)
    async with lb.aio.channel(Told(*endpoints(one, two, weights=(1, 3))), breaker=NO_BREAKER) as channel:
        await ready(channel, 2)
        channel.change_policy("round_robin")
        assert await answers(channel, 10) == {"a": 5, "b": 5}
        with pytest.raises(ValueError, match="policy"):
            channel.change_policy("best")
        channel.change_policy(lb.WeightedRoundRobin())
        assert await answers(channel, 8) == {"a": 2, "b": 6}


async def test_who_comes_back_while_its_calls_run_keeps_its_connection(fleet: Fleet) -> None:
    """A registry that flaps: one connection, and the limit holds for all calls together."""
    one, two = await fleet(2)
    gate = Gate()
    told = Told(*endpoints(one))
    async with lb.aio.channel(told, limit=lb.ConcurrencyLimit(limit=1, queue=0)) as channel:
        one.always(hold(gate))
        call = UU.start(channel)
        await one.until(lambda: one.in_flight == 1)
        for _ in range(5):
            told.say(*endpoints(two))
            told.say(*endpoints(one))
        assert "concurrency limit" in str((await failure(UU.start(channel))).details())
        gate.open()
        assert await UU.responses(call) == UU.echo()
        assert await UU.run(channel) == UU.echo()
        assert in_flight(channel) == 0
    assert len({received.peer for received in one.received}) == 1
