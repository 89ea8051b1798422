"""A call cancelled at any stage, in any way: it ends at once, nothing stays in flight, no task is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import grpc
import pytest
from tenacity import wait_fixed

import lb
from lb.aio import Channel
from lb.testing import Backend
from lb.testing.backend import METHODS, echo, fail, hang, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    HANGS_S,
    IDEMPOTENT,
    KINDS,
    NO_BREAKER,
    SS,
    US,
    UU,
    First,
    Kind,
    Told,
    channel_to,
    eventually,
    in_flight,
    lb_tasks,
    ready,
)
from tests.support import doors

LONG_WAIT = lb.Retry(idempotent=METHODS, wait=wait_fixed(30), jitter=0.0)


async def queued(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """Waits for a resolver that says nothing."""
    channel = lb.aio.channel(Told(), breaker=NO_BREAKER)
    call = kind.start(channel)
    await eventually(lambda: doors.waits_for_change(channel), "the call waits")
    return channel, call


async def paused(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """Waits for its second attempt."""
    backend.always(fail())
    channel = channel_to(backend, retry=LONG_WAIT)
    call = kind.start(channel)
    await eventually(lambda: [a for a in lb.attempts(call) if a.outcome is not None], "an attempt has failed")
    return channel, call


async def under_way(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """The server has it and says nothing."""
    backend.always(hang())
    channel = channel_to(backend)
    call = kind.start(channel)
    await backend.until(lambda: backend.in_flight == 1)
    return channel, call


async def with_headers(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """The server has sent its headers, nothing else."""
    backend.always(hang(headers=True))
    channel = channel_to(backend)
    call = kind.start(channel)
    await call.initial_metadata()
    return channel, call


async def between_messages(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """One response was read, or (a single response) one request was."""
    backend.always(hang(after=1))
    channel = channel_to(backend)
    call = kind.start(channel)
    if kind.streams_responses:
        assert await anext(aiter(call)) == b"one"
    else:
        await backend.until(lambda: backend.received and backend.received[0].messages)
    return channel, call


async def in_the_second_attempt(backend: Backend, kind: Kind) -> tuple[Channel, Any]:
    """The first failed, the second is under way (a stream of responses: in a task of its own)."""
    backend.script(fail(), hang())
    channel = channel_to(backend, retry=IDEMPOTENT)
    call = kind.start(channel)
    await backend.until(lambda: len(backend.received) == 2)
    return channel, call


async def by_cancel(channel: Channel, call: Any, kind: Kind) -> None:
    """``call.cancel()``."""
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)


async def by_its_task(channel: Channel, call: Any, kind: Kind) -> None:
    """The task that waits for the call is cancelled."""
    task = asyncio.ensure_future(kind.responses(call))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_a_timeout(channel: Channel, call: Any, kind: Kind) -> None:
    """``asyncio.timeout`` around it: its own error comes out, not one of the call."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await kind.responses(call)


async def by_close(channel: Channel, call: Any, kind: Kind) -> None:
    """``channel.close()``."""
    await channel.close()


async def by_close_with_grace(channel: Channel, call: Any, kind: Kind) -> None:
    """``channel.close(grace)``, and the grace passes."""
    await channel.close(0.03)


STAGES = (queued, paused, under_way, with_headers, between_messages, in_the_second_attempt)
WAYS = (by_cancel, by_its_task, by_a_timeout, by_close, by_close_with_grace)
Stage = Callable[[Backend, Kind], Coroutine[Any, Any, tuple[Channel, Any]]]
Way = Callable[[Channel, Any, Kind], Coroutine[Any, Any, None]]


CASES = [
    pytest.param(kind, stage, id=f"{kind}-{stage.__name__}")
    for kind in KINDS
    for stage in STAGES
    if kind is not UU or stage not in (with_headers, between_messages)  # these come with its answer
]


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("kind", "stage"), CASES)
async def test_a_cancelled_call_leaves_nothing(backend: Backend, kind: Kind, stage: Stage, way: Way) -> None:
    """At each stage and in each way: CANCELLED, no attempt in flight here or there, no task, no retry to come."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(HANGS_S):
        channel, call = await stage(backend, kind)
        await way(channel, call, kind)
        assert call.done()
        assert call.cancelled()
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert in_flight(channel) == 0
        await eventually(lambda: not doors.waits_for_change(channel), "nobody waits for a change")
        received = len(backend.received)
        await backend.until(lambda: backend.in_flight == 0)
        await channel.close()
        assert lb_tasks() == []
        await eventually(lambda: not _ours(asyncio.all_tasks() - before), "no task is left")
        assert len(backend.received) == received


def _ours(tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Without those of the server in this process."""
    return {t for t in tasks if "grpc/aio/_call" in repr(t) or "lb/aio" in repr(t)}


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_a_call_cancelled_as_its_retry_begins_gives_it_back(backend: Backend, kind: Kind) -> None:
    """The next attempt was picked but not begun: its place is free again, and the server never sees it."""
    backend.script(pushback(0))

    def cancel_soon(picks: int) -> None:
        if picks == 2:
            asyncio.get_running_loop().call_soon(call.cancel)

    async with channel_to(backend, policy=First(cancel_soon)) as channel:
        await ready(channel, 1)
        call = kind.start(channel)
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert in_flight(channel) == 0
        assert len(lb.attempts(call)) == 2
        assert all(attempt.outcome is not None for attempt in lb.attempts(call))
    assert len(backend.received) == 1


async def test_a_reader_cancelled_before_the_headers_ends_the_writer_too(backend: Backend) -> None:
    """As in grpcio: the task that consumes the request iterator is cancelled, and the iterator closed."""
    backend.always(hang())
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with channel_to(backend) as channel:
        call = SS.stub(channel)(requests())
        reader = asyncio.ensure_future(SS.responses(call))
        await backend.until(lambda: backend.in_flight == 1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        async with asyncio.timeout(HANGS_S):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await call.read()


async def test_a_cancelled_call_is_not_retried_whatever_a_strategy_says(backend: Backend, kind: Kind) -> None:
    """A ``retry`` strategy that always says yes is asked about failures, not about the caller's own end."""
    backend.always(hang())
    retry = lb.Retry(retry=lambda state: True, wait=lambda state: 0.0)
    async with channel_to(backend, retry=retry) as channel:
        call = kind.start(channel)
        await backend.until(lambda: backend.in_flight == 1)
        task = asyncio.ensure_future(kind.responses(call))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert in_flight(channel) == 0
        assert len(lb.attempts(call)) == 1
        assert channel.snapshot().retry_budget >= 100
    assert len(backend.received) == 1


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_a_forgotten_call_is_cancelled(backend: Backend, kind: Kind) -> None:
    """As in grpcio: nobody holds the call object any more, so the server is told and the place given back."""
    backend.always(hang(after=1))
    async with channel_to(backend) as channel:
        call = kind.start(channel)
        assert await call.read() == b"one"
        del call
        await backend.until(lambda: backend.in_flight == 0)
        assert in_flight(channel) == 0


async def test_calls_cancelled_at_random_moments_leave_nothing_behind(fleet: Fleet) -> None:
    """Two thousand calls of all kinds against servers that fail, refuse, hang and echo."""
    rng = Random(4)
    backends = await fleet(3)
    steps = [echo(), echo(), fail(), pushback(0), pushback(2), hang(), hang(after=1), fail(after=1)]
    calls = 2000
    for backend in backends:
        backend.script(*(rng.choice(steps) for _ in range(2 * calls)))
    before = asyncio.all_tasks()
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(0.002))

    async def one(kind: Kind) -> None:
        call = kind.start(channel, timeout=rng.choice((0.02, 5)))
        task = asyncio.ensure_future(kind.responses(call))
        turns, pause, way = 1 + rng.randrange(12), rng.choice((0, 0, 0.001, 0.004, 0.01)), rng.randrange(3)
        for _ in range(turns):
            await asyncio.sleep(0)
        if pause:
            await asyncio.sleep(pause)
        if way == 0:
            call.cancel()
        elif way == 1:
            task.cancel()
        else:
            call.cancel()
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if kind.streams_responses and not call.done():
            call.cancel()  # grpcio's reader forgets to, when it is cancelled just as the headers have arrived
        assert call.done()

    async with channel_to(*backends, retry=retry, breaker=lb.Breaker(open_s=0.01, max_open_s=0.02)) as channel:
        await ready(channel, 3)
        for _ in range(calls // 40):
            await asyncio.gather(*(one(rng.choice(KINDS)) for _ in range(40)))
        assert in_flight(channel) == 0
        assert doors.waits_for_change(channel) == 0
        for backend in backends:
            await backend.until(lambda backend=backend: backend.in_flight == 0)  # type: ignore[misc]  # a closure
        await eventually(
            lambda: {t.get_name() for t in _ours(asyncio.all_tasks() - before)} <= set(lb_tasks()),
            "only the connections' own tasks are left",
        )
    assert lb_tasks() == []
