"""A caller cancelled at each single step of a call: the cancellation comes out, or the call had its answer before.

What a call does is a chain of callbacks of the event loop. The tests count these, and cancel the caller right before
the first one is put in line, then (in another call) before the second one, and so on to the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tenacity import wait_fixed

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS, Gate, Step, fail, hang, hold, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, UU, First, Kind, channel_to, eventually, in_flight, lb_tasks, ready
from tests.aio.worlds import World

MOST_STEPS = 2000
OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED
RETRY = lb.Retry(idempotent=METHODS, wait=wait_fixed(0.001), jitter=0.0, budget=lb.Budget(ratio=1, min_per_s=1e6))


@contextlib.contextmanager
def before_step(number: int, act: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Do something right before the loop is told of its ``number``-th callback; says whether that was done."""
    loop: Any = asyncio.get_running_loop()
    steps = itertools.count(1)
    done = False

    def call_soon(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        if next(steps) == number:
            done = True
            act()
        return type(loop).call_soon(loop, *arguments, **named)

    loop.call_soon = call_soon
    try:
        yield lambda: done
    finally:
        del loop.call_soon


async def cancelled_at_each_step(kind: Kind, channel: Any, prepare: Callable[[], object] = lambda: None) -> None:
    """Calls of this kind, each cancelled one step later than the one before."""
    for step in range(1, MOST_STEPS):
        prepare()
        if not await _cancelled_at(step, kind, channel):
            return
    raise AssertionError(f"more than {MOST_STEPS} steps")


async def _cancelled_at(step: int, kind: Kind, channel: Any) -> bool:
    """One call; False when it has fewer steps."""
    made: list[Any] = []
    settled: list[bool] = []
    cancelling = False

    async def use() -> list[bytes]:
        made.append(kind.start(channel))
        return await kind.responses(made[0])

    def cancel() -> None:
        nonlocal cancelling
        if made:
            settled.append(made[0].done())
            cancelling = task.cancel()

    task = asyncio.ensure_future(use())
    with before_step(step, cancel) as reached:
        await asyncio.wait((task,), timeout=HANGS_S)
    assert task.done(), f"step {step}: it hangs"
    if not settled:  # it has ended by itself, or was about to be made
        assert task.result() == kind.echo()
        return reached()
    (call,) = made
    if cancelling:
        assert task.cancelled(), f"step {step}: cancelled, but {task!r}"
    if settled[0]:
        assert await call.code() is OK, f"step {step}: it was settled"
    elif not kind.streams_responses:  # grpcio's reader forgets to cancel when the headers have just arrived
        assert await call.code() is CANCELLED, f"step {step}"
    if not kind.streams_responses:  # who asks again learns no other end
        again: Any = (await asyncio.gather(_result(call), return_exceptions=True))[0]
        assert [again] == kind.echo() or isinstance(again, asyncio.CancelledError), f"step {step}: {again!r}"
    call.cancel()
    return True


async def _result(call: Any) -> Any:
    return await call


async def test_a_plain_call(world: World, kind: Kind) -> None:
    """Also on grpcio's own channel."""
    await world.channel.channel_ready()
    await cancelled_at_each_step(kind, world.channel)


@pytest.mark.parametrize("first", [fail(), pushback(0)], ids=["a pause", "at once"])
async def test_a_call_with_a_retry(fleet: Fleet, kind: Kind, first: Step) -> None:
    """In the first attempt, between the two, and in the second; nothing stays in flight."""
    backends = await fleet(2)
    one = backends[0]

    def prepare() -> None:
        one.clear_script()
        one.script(first)

    async with channel_to(*backends, retry=RETRY, policy=First()) as channel:
        await ready(channel, 2)
        await cancelled_at_each_step(kind, channel, prepare)
        await eventually(lambda: in_flight(channel) == 0, "nothing is in flight")
        await _quiet(backends)


@pytest.mark.parametrize(
    "script",
    [
        lambda gate: (hang(), None),
        lambda gate: (hold(gate, fail()), None),
        lambda gate: (hold(gate), fail()),
        lambda gate: (hold(gate, fail()), fail(), None),
    ],
    ids=["the hedge wins", "the first fails", "the hedge fails", "two fail"],
)
async def test_a_hedged_call(fleet: Fleet, script: Any) -> None:
    """While either attempt answers or fails, and in the instant in which one has won."""
    backends = await fleet(3)

    def prepare() -> None:
        gate = Gate()
        for backend, step in itertools.zip_longest(backends, script(gate)):
            backend.always(step)

        async def open_soon() -> None:  # once the hedge is under way
            await backends[1].until(lambda: len(backends[1].received) > seen)
            gate.open()

        seen = len(backends[1].received)
        opening.append(asyncio.ensure_future(open_soon()))

    opening: list[asyncio.Future[None]] = []
    hedging = lb.Hedging(delay_s=0.0, max_attempts=3)
    async with channel_to(*backends, hedging=hedging, retry=RETRY, policy=First()) as channel:
        await ready(channel, 3)
        await cancelled_at_each_step(UU, channel, prepare)
        for task in opening:
            task.cancel()
        await asyncio.wait(opening)
        await eventually(lambda: in_flight(channel) == 0, "nothing is in flight")
        await eventually(lambda: "lb: hedge" not in lb_tasks(), "no task of a hedge is left")
        await _quiet(backends)


async def _quiet(backends: list[Backend]) -> None:
    for backend in backends:
        await backend.until(lambda backend=backend: backend.in_flight == 0)  # type: ignore[misc]  # a closure
