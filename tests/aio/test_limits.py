"""Concurrency limits over real connections: no endpoint gets more, the line is short and fair, nobody is lost in it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from typing import Any

import grpc
import pytest
from tenacity import wait_fixed, wait_none

import lb
from lb.aio import Channel
from lb.aio.calls import logical_call
from lb.shared import scopes
from lb.shared.scopes import Scope
from lb.testing.backend import METHODS, Gate, fail, hang, hold, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    HANGS_S,
    ONCE,
    SS,
    UU,
    Kind,
    Told,
    channel_to,
    endpoints,
    eventually,
    failure,
    in_flight,
    ready,
)
from tests.support import doors
from tests.support.wait import longer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def limited(fleet: Fleet, size: int = 1, *, limit: int = 1, **settings: Any) -> Any:
    """A channel with a limit, its backends holding every call, and the gate that lets them go."""
    backends = await fleet(size)
    gate = Gate()
    for backend in backends:
        backend.always(hold(gate))
    queue = {name: settings.pop(name) for name in ("queue", "queue_s", "adaptive", "min_limit") if name in settings}
    queue.setdefault("queue_s", 20.0)
    settings.setdefault("retry", ONCE)
    channel = channel_to(*backends, limit=lb.ConcurrencyLimit(limit=limit, **queue), **settings)
    await ready(channel, size)
    return channel, gate, *backends


async def settled(channel: Channel) -> None:
    """Nothing runs, nobody waits."""
    await eventually(lambda: in_flight(channel) == 0 and doors.in_line(channel) == 0, "all places are free")
    assert not doors.line(channel)


async def test_a_burst_keeps_the_limit(fleet: Fleet, kind: Kind) -> None:
    """Forty calls of one step of the loop on two endpoints of three places: six run, the rest wait, all answer."""
    channel, gate, *backends = await limited(fleet, 2, limit=3)
    most = [0]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], *(endpoint.in_flight for endpoint in channel.snapshot().endpoints))
            await asyncio.sleep(0)

    async with channel:
        watching = asyncio.ensure_future(watch())
        calls = [kind.start(channel) for _ in range(40)]
        answers = asyncio.gather(*map(kind.responses, calls))
        await eventually(lambda: sum(backend.in_flight for backend in backends) == 6)
        assert doors.in_line(channel) == 34
        gate.open()
        assert await answers == [kind.echo()] * 40
        watching.cancel()
        await settled(channel)
    assert most == [3]


async def test_first_come_first_served(fleet: Fleet) -> None:
    """Those that wait are served in the order of their beginning, and who comes later does not go past them."""
    channel, gate, one = await limited(fleet)
    async with channel:
        calls = [UU.start(channel, (str(at).encode(),)) for at in range(20)]
        await one.until(lambda: one.in_flight == 1)
        gate.open()
        late = [UU.start(channel, (str(at).encode(),)) for at in range(20, 30)]
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(*calls, *late)
        await settled(channel)
    assert [int(received.messages[0]) for received in one.received] == list(range(30))


async def test_who_was_woken_for_nothing_keeps_its_place(fleet: Fleet) -> None:
    """Something changed again and again, but no place was free: the order of those that wait stays."""
    channel, gate, one = await limited(fleet)
    async with channel:
        calls = [UU.start(channel, (str(at).encode(),)) for at in range(10)]
        await one.until(lambda: one.in_flight == 1)
        for _ in range(3):
            for _ in range(6):
                channel.change_weights({})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gate.open()
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(*calls)
        await settled(channel)
    assert [int(received.messages[0]) for received in one.received] == list(range(10))


async def test_more_than_the_line_holds_is_refused_at_once(fleet: Fleet, kind: Kind) -> None:
    """UNAVAILABLE before it reaches a server, with the reason; no attempt was made."""
    channel, gate, one = await limited(fleet, queue=2)
    async with channel:
        calls = [kind.start(channel) for _ in range(4)]
        error = await failure(calls[3])
        assert error.code() is UNAVAILABLE
        assert "concurrency limit, and the queue is full (2 waiting)" in str(error.details())
        assert lb.attempts(calls[3]) == []
        gate.open()
        for call in calls[:3]:
            assert await kind.responses(call) == kind.echo()
        await settled(channel)
    assert len(one.received) == 3


async def test_who_waits_too_long_is_refused(fleet: Fleet, kind: Kind) -> None:
    """After queue_s; and those behind it are not served late for that."""
    for queue_s in longer(0.1):
        channel, gate, _one = await limited(fleet, queue_s=queue_s)
        async with channel:
            first, second = kind.start(channel), kind.start(channel)
            error = await failure(second)
            assert error.code() is UNAVAILABLE
            assert "and every endpoint was still at its concurrency limit" in str(error.details())
            third = kind.start(channel)
            gate.open()
            assert await kind.responses(first) == kind.echo()
            try:
                answers = await kind.responses(third)
            except grpc.aio.AioRpcError:
                answers = None
            await settled(channel)
        if answers is not None:
            break
    assert answers == kind.echo()


async def test_a_deadline_in_line_is_the_callers(fleet: Fleet, kind: Kind) -> None:
    """DEADLINE_EXCEEDED, and the words say for what it waited."""
    channel, gate, _one = await limited(fleet)
    async with channel:
        first = kind.start(channel)
        for timeout in longer(0.1):
            error = await failure(kind.start(channel, timeout=timeout))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if "before the first attempt" not in str(error.details()):
                break  # it stood in line when its time was up
        assert "every endpoint is at its concurrency limit" in str(error.details())
        gate.open()
        await kind.responses(first)
        await settled(channel)


@pytest.mark.parametrize("when", ["before its first step", "in line", "woken"])
async def test_who_leaves_the_line_holds_nobody_up(fleet: Fleet, kind: Kind, when: str) -> None:
    """Cancelled at any moment: the next one gets the place."""
    channel, gate, one = await limited(fleet)
    async with channel:
        first, second, third = (kind.start(channel) for _ in range(3))
        answers = asyncio.gather(kind.responses(first), kind.responses(third))
        line = doors.line(channel)
        if when != "before its first step":
            await eventually(lambda: len(line) == 2)
        if when == "woken":
            gate.open()
            async with asyncio.timeout(HANGS_S):
                while not line.woken:  # noqa: ASYNC110  # there is no event: the next step is too late
                    await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await kind.responses(second)
        gate.open()
        assert list(await answers) == [kind.echo()] * 2
        await settled(channel)
    assert len(one.received) == 2


async def test_a_stream_holds_its_place_until_it_ends(fleet: Fleet) -> None:
    """Not only until its first response."""
    channel, _gate, one = await limited(fleet)
    one.always(None)
    async with channel:
        stream = SS.stub(channel)()
        await stream.write(b"1")
        assert await stream.read() == b"1"
        waits = UU.start(channel)
        await eventually(lambda: len(doors.line(channel)) == 1)
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await UU.responses(waits) == UU.echo()
        await settled(channel)


async def test_an_endpoint_that_joins_wakes_the_line(fleet: Fleet) -> None:
    """At once, not at the end of a running call."""
    one, two = await fleet(2)
    one.always(hang())
    told = Told(*endpoints(one))
    async with lb.aio.channel(told, retry=ONCE, limit=lb.ConcurrencyLimit(limit=1, queue_s=20)) as channel:
        await ready(channel, 1)
        UU.start(channel)
        calls = [UU.start(channel) for _ in range(5)]
        await eventually(lambda: doors.in_line(channel) == 5)
        told.say(*endpoints(one, two))
        async with asyncio.timeout(HANGS_S):
            assert await asyncio.gather(*calls) == [b"one"] * 5


async def test_a_weight_that_is_no_longer_0_wakes_the_line(fleet: Fleet) -> None:
    """The endpoint has room, and counts from then on."""
    channel, gate, _one, two = await limited(fleet, 2)
    two.always(None)
    async with channel:
        channel.change_weights({two.address: 0})
        first, second = UU.start(channel), UU.start(channel)
        await eventually(lambda: len(doors.line(channel)) == 1)
        channel.change_weights({})
        assert await UU.responses(second) == UU.echo()
        gate.open()
        await UU.responses(first)
        await settled(channel)


async def test_refusals_shrink_an_adaptive_limit(fleet: Fleet) -> None:
    """A tenth each; a call is refused by its server, tried elsewhere, and both limits say so."""
    retry = lb.Retry(idempotent=METHODS, wait=wait_none())
    channel, gate, one, two = await limited(fleet, 2, limit=20, adaptive=True, min_limit=1, retry=retry)
    gate.open()
    async with channel:
        one.always(pushback(0))
        for _ in range(40):
            assert await UU.run(channel) == UU.echo()
        limits = {c.endpoint.address: c.limit.limit for c in doors.candidates(channel) if c.limit}
        assert limits[one.address] < 5
        assert limits[two.address] >= 20
        await settled(channel)


async def test_a_retry_waits_in_line_like_others(fleet: Fleet, kind: Kind) -> None:
    """Its place went to another; it gets the next one."""
    retry = lb.Retry(idempotent=METHODS, wait=wait_none())
    channel, gate, one = await limited(fleet, retry=retry)
    async with channel:
        one.script(hold(gate, fail()))
        calls = [kind.start(channel) for _ in range(3)]
        await one.until(lambda: one.in_flight == 1)
        gate.open()
        for call in calls:
            assert await kind.responses(call) == kind.echo()
        await settled(channel)
    assert len(one.received) == 4


async def test_all_connections_lost_is_no_full_line(fleet: Fleet) -> None:
    """Calls that waited for a place wait for a connection then; a new one does too, and is not refused."""
    channel, gate, one = await limited(fleet, queue=1)
    async with channel:
        calls = [UU.start(channel, wait_for_ready=True) for _ in range(2)]
        await one.until(lambda: one.in_flight == 1)
        await one.stop()
        await failure(calls[0])
        await eventually(lambda: doors.in_line(channel) == 0, "nobody waits for a place")
        calls[0] = UU.start(channel, wait_for_ready=True)
        gate.open()
        await one.start()
        async with asyncio.timeout(HANGS_S):
            assert await asyncio.gather(*calls) == [b"one"] * 2
        await settled(channel)


@pytest.mark.parametrize("waits_for", ["a place", "a connection", "its next attempt"])
async def test_what_waits_is_cancelled_with_its_incoming_call(fleet: Fleet, kind: Kind, waits_for: str) -> None:
    """At once, not when the wait is over; and then it begins no attempt."""
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(90), jitter=0.0)
    channel, gate, one = await limited(fleet, retry=retry)
    async with channel:
        scope = Scope(None)
        if waits_for == "a place":
            UU.start(channel)
            await one.until(lambda: one.in_flight == 1)
        elif waits_for == "a connection":
            await one.stop()
            await eventually(lambda: channel.get_state() is not grpc.ChannelConnectivity.READY)
        else:
            one.script(fail())
        context = contextvars.copy_context()
        context.run(scopes.enter, scope)
        call = context.run(kind.start, channel, wait_for_ready=True)
        reading = asyncio.ensure_future(kind.responses(call))
        logical = logical_call(call)
        assert logical is not None
        await eventually(lambda: logical.execution.waits, "it waits")
        received = len(one.received)
        scope.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(reading, HANGS_S)
        gate.open()
        await one.start()
        await settled(channel)
        assert len(one.received) == received
        assert not logical.execution.waits


async def test_closing_the_channel_empties_the_line(fleet: Fleet, kind: Kind) -> None:
    """Everyone in it is cancelled, at once."""
    channel, _gate, one = await limited(fleet)
    calls = [kind.start(channel) for _ in range(5)]
    await one.until(lambda: one.in_flight == 1)
    started = time.monotonic()
    await channel.close()
    assert time.monotonic() - started < 15  # not the 20 s that they may wait
    for call in calls:
        with pytest.raises(asyncio.CancelledError):
            await kind.responses(call)
    assert doors.in_line(channel) == in_flight(channel) == 0


async def test_a_random_crowd_leaves_nothing(fleet: Fleet) -> None:
    """Hundreds of calls with short deadlines, cancellations and failures over a small line: then all is free."""
    retry = lb.Retry(idempotent=METHODS, wait=wait_none())
    channel, gate, *backends = await limited(fleet, 2, limit=2, queue=50, queue_s=0.05, retry=retry)
    gate.open()
    async with channel:

        async def one_call(at: int) -> None:
            call = UU.start(channel, timeout=(at % 7 + 1) * 0.01)
            if at % 5 == 0:
                await asyncio.sleep(at % 3 * 0.003)
                call.cancel()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await call

        for backend in backends:
            backend.script(*(fail(), pushback(0), hold(gate), hold(gate)) * 25)
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(*(one_call(at) for at in range(400)))
        await settled(channel)
        for backend in backends:
            await backend.until(lambda backend=backend: backend.in_flight == 0)
            backend.clear_script()  # how many of the crowd reached it is the machine's affair
        assert await UU.run(channel) == UU.echo()
