"""Hedged calls over real connections: the first answer wins, the others end, and nothing is left of them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from tenacity import wait_fixed, wait_none

import lb
from lb.aio import Channel
from lb.core.outcome import Origin
from lb.core.quantile import LEAST_SAMPLES
from lb.testing.backend import METHODS, Backend, Gate, answered_by, fail, hang, hold, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    HANGS_S,
    SS,
    SU,
    US,
    UU,
    First,
    Kind,
    channel_to,
    collected,
    eventually,
    failure,
    in_flight,
    lb_tasks,
    ready,
)
from tests.support.wait import longer

AT_ONCE = lb.Hedging(delay_s=0.0)
SOON = lb.Hedging(delay_s=0.03)
RETRY = lb.Retry(idempotent=METHODS, wait=wait_none(), jitter=0.0)
INTERNAL, UNAVAILABLE = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE


async def hedged(fleet: Fleet, size: int = 2, *, hedging: lb.Hedging = SOON, **settings: Any) -> Any:
    """So many backends and a channel that prefers the first one."""
    backends = await fleet(size)
    settings.setdefault("retry", RETRY)
    settings.setdefault("policy", First())
    channel = channel_to(*backends, hedging=hedging, **settings)
    await ready(channel, size)
    return channel, *backends


async def answer(call: Any) -> bytes:
    """What it answers; ``TimeoutError`` when it hangs."""
    async with asyncio.timeout(HANGS_S):
        response: bytes = await call
        return response


async def nothing_left(channel: Channel, *backends: Backend) -> None:
    """No attempt, no hedge's task; and no handler runs any more."""
    await eventually(lambda: in_flight(channel) == 0, "nothing is in flight")
    await eventually(lambda: not any(backend.in_flight for backend in backends), "no handler runs")
    await eventually(lambda: "lb: hedge" not in lb_tasks(), "no task of a hedge is left")


async def test_the_hedge_wins_and_the_first_is_cancelled(fleet: Fleet) -> None:
    """The caller gets the hedge's answer and trailers; the server of the first sees its call cancelled."""
    channel, one, two = await hedged(fleet)
    async with channel:
        one.always(hang())
        call = UU.start(channel)
        assert await answer(call) == b"one"
        assert answered_by(await call.trailing_metadata()) == "b"
        await nothing_left(channel, one, two)
        first, hedge = lb.attempts(call)
        assert one.received[0].cancelled
        assert first.outcome is not None
        assert first.outcome.details.startswith("another attempt was faster")
        assert (hedge.number, hedge.why) == (2, "hedge: no answer yet")
        assert two.received[0].metadata["grpc-previous-rpc-attempts"] == "1"


async def test_the_first_wins_and_the_hedge_is_cancelled(fleet: Fleet) -> None:
    """It answers while its hedge runs."""
    channel, one, two = await hedged(fleet)
    gate = Gate()
    async with channel:
        one.always(hold(gate))
        two.always(hang())
        call = UU.start(channel)
        await two.until(lambda: two.in_flight == 1)
        gate.open()
        assert await answer(call) == b"one"
        assert answered_by(await call.trailing_metadata()) == "a"
        await nothing_left(channel, one, two)
        assert two.received[0].cancelled


def timers(monkeypatch: pytest.MonkeyPatch, delay_s: float) -> list[asyncio.TimerHandle]:
    """The running loop's timers of about this delay, as they are set from now on."""
    handles = []
    loop = asyncio.get_running_loop()
    set_timer = loop.call_later

    def call_later(delay: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        handle = set_timer(delay, *arguments, **named)
        if abs(delay - delay_s) < 0.1 * delay_s:
            handles.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_later", call_later)
    return handles


async def test_a_quick_answer_needs_no_hedge(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt, and no timer of its own that begins one later: all calls of the method have one."""
    channel, one, two = await hedged(fleet, hedging=lb.Hedging(delay_s=77))
    begun = timers(monkeypatch, 77)
    async with channel:
        for _ in range(20):
            call = UU.start(channel)
            await answer(call)
            assert len(lb.attempts(call)) == 1
        assert sum(not timer.cancelled() for timer in begun) <= 1
    assert (len(one.received), len(two.received)) == (20, 0)


async def test_at_most_n_attempts_each_elsewhere(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of five backends get the call, however long it takes, and no timer runs for a fourth."""
    channel, *backends = await hedged(fleet, 5, hedging=lb.Hedging(delay_s=0.013, max_attempts=3))
    begun = timers(monkeypatch, 0.013)
    async with channel:
        for backend in backends:
            backend.always(hang())
        call = UU.start(channel)
        await eventually(lambda: sum(backend.in_flight for backend in backends) == 3, "three have it")
        after = asyncio.get_running_loop().time()
        assert all(timer.cancelled() or timer.when() < after for timer in begun), "a fourth is to come"
        call.cancel()
        await nothing_left(channel, *backends)
        assert len(lb.attempts(call)) == 3
    assert sorted(len(backend.received) for backend in backends) == [0, 0, 1, 1, 1]


async def test_one_endpoint_alone_is_not_hedged(fleet: Fleet) -> None:
    """There is no other; the call ends as it would."""
    channel, one = await hedged(fleet, 1, hedging=lb.Hedging(delay_s=0.0, max_attempts=5))
    async with channel:
        one.always(hang())
        for timeout in longer(0.15):
            assert (await failure(UU.start(channel, timeout=timeout))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await nothing_left(channel, one)
            if one.received:
                break
    assert len(one.received) == 1


async def test_an_endpoint_that_joins_while_it_runs_takes_the_hedge(fleet: Fleet) -> None:
    """It is asked for again until there is one."""
    one, two = await fleet(2)
    await two.stop()
    one.always(hang())
    async with channel_to(one, two, hedging=AT_ONCE, retry=RETRY) as channel:
        await ready(channel, 1)
        call = UU.start(channel)
        await one.until(lambda: one.in_flight == 1)
        await two.start()
        assert await answer(call) == b"one"


async def test_methods_that_are_not_idempotent_are_never_hedged(fleet: Fleet) -> None:
    """Whatever the channel says."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE, retry=lb.Retry())
    async with channel:
        one.always(hang())
        assert (await failure(UU.start(channel, timeout=0.15))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(two.received) == 0


@pytest.mark.parametrize("kind", [US, SU, SS], ids=str)
async def test_streams_are_not_hedged(fleet: Fleet, kind: Kind) -> None:
    """They go on as without it, retries with their pauses included."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE)
    async with channel:
        one.always(hang())
        for timeout in longer(0.15):
            assert (await failure(kind.start(channel, timeout=timeout))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await nothing_left(channel, one)
            if one.received:
                break
        assert len(two.received) == 0
        one.always(None)
        one.script(fail())
        call = kind.start(channel)
        assert await kind.responses(call) == kind.echo()
        assert lb.attempts(call)[1].why.startswith("retry: ")


# ---- failures ----


@pytest.mark.parametrize("failing", [0, 1], ids=["the first", "the hedge"])
async def test_a_failure_leaves_it_to_the_other(fleet: Fleet, failing: int) -> None:
    """Either of the two fails with what may be retried: the other answers."""
    channel, *backends = await hedged(fleet, hedging=AT_ONCE)
    gates = (Gate(), Gate())
    async with channel:
        for backend, gate in zip(backends, gates, strict=True):
            backend.always(hold(gate))
        backends[failing].always(hold(gates[failing], fail()))
        call = UU.start(channel)
        for backend in backends:
            await backend.until(lambda backend=backend: backend.in_flight == 1)
        gates[failing].open()
        await eventually(lambda: in_flight(channel) == 1, "the failed one was given back")
        assert not call.done()
        gates[1 - failing].open()
        assert await answer(call) == b"one"
        await nothing_left(channel, *backends)


async def test_when_all_fail_retries_go_on_and_the_last_failure_is_the_calls(fleet: Fleet) -> None:
    """Two hedges of two backends, then retries until stop, with their words."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE)
    async with channel:
        for backend in (one, two):
            backend.always(fail(details=f"{backend.name} is ill"))
        call = UU.start(channel)
        error = await failure(call)
        assert error.code() is UNAVAILABLE
        assert error.details() in ("a is ill", "b is ill")
        assert len(lb.attempts(call)) == 4
        assert all(attempt.outcome for attempt in lb.attempts(call))
        await nothing_left(channel, one, two)
        assert (await failure(UU.start(channel))).code() is UNAVAILABLE


@pytest.mark.parametrize("failing", [0, 1], ids=["the first", "the hedge"])
async def test_a_fatal_status_ends_all(fleet: Fleet, failing: int) -> None:
    """INTERNAL of one is the call's status; the other is cancelled on its server."""
    channel, *backends = await hedged(fleet, hedging=AT_ONCE)
    gate = Gate()
    async with channel:
        backends[1 - failing].always(hang())
        backends[failing].always(hold(gate, fail(INTERNAL)))
        call = UU.start(channel)
        for backend in backends:
            await backend.until(lambda backend=backend: backend.in_flight == 1)
        gate.open()
        assert (await failure(call)).code() is INTERNAL
        await nothing_left(channel, *backends)
        assert backends[1 - failing].received[0].cancelled


async def test_a_code_named_non_fatal_ends_nothing(fleet: Fleet) -> None:
    """The other still answers."""
    hedging = lb.Hedging(delay_s=0.0, non_fatal=(INTERNAL,))
    channel, one, two = await hedged(fleet, hedging=hedging)
    gate = Gate()
    async with channel:
        one.always(hold(gate, fail(INTERNAL)))
        two.always(hold(gate))
        call = UU.start(channel)
        for backend in (one, two):
            await backend.until(lambda backend=backend: backend.in_flight == 1)
        gate.open()
        assert await answer(call) == b"one"


async def test_after_a_failure_the_next_goes_out_at_once(fleet: Fleet) -> None:
    """Not after the delay of a minute: beside the one that runs, or alone."""
    channel, one, two, three = await hedged(fleet, 3, hedging=lb.Hedging(delay_s=60, max_attempts=3))
    async with channel:
        one.always(fail())
        call = UU.start(channel)
        assert await answer(call) == b"one"
        assert lb.attempts(call)[1].why == "hedge: UNAVAILABLE: scripted failure"
    assert len(two.received) + len(three.received) == 1


@pytest.mark.parametrize("failing", [0, 1], ids=["the first", "the hedge"])
async def test_beside_what_runs_the_next_goes_out_at_once(fleet: Fleet, failing: int) -> None:
    """Before its turn: the one that failed makes room for it."""
    channel, *backends = await hedged(fleet, 3, hedging=lb.Hedging(delay_s=1.0, max_attempts=3))
    gates = {backend: Gate() for backend in backends}
    async with channel:
        for backend in backends:
            backend.script(hold(gates[backend], fail()))
        call = UU.start(channel)
        await eventually(lambda: sum(backend.in_flight for backend in backends) == 2, "the hedge has arrived")
        (hedge,) = (backend for backend in backends[1:] if backend.in_flight)
        gates[hedge if failing else backends[0]].open()
        await eventually(lambda: len(lb.attempts(call)) == 3, "the third attempt began")
        _, second, third = lb.attempts(call)
        assert third.started_at < second.started_at + 1.0
        assert not call.done()
        call.cancel()
        await nothing_left(channel, *backends)


async def test_a_server_that_says_never_ends_hedging_not_the_call(fleet: Fleet) -> None:
    """What runs goes on; nothing more begins."""
    hedging = lb.Hedging(delay_s=0.0, max_attempts=3)
    channel, one, two, three = await hedged(fleet, 3, hedging=hedging)
    gate, late = Gate(), Gate()
    async with channel:
        one.always(hold(gate, pushback(-1)))
        two.always(hold(late))
        three.always(hold(gate, pushback(-1)))
        call = UU.start(channel)
        for backend in (one, two, three):
            await backend.until(lambda backend=backend: backend.in_flight == 1)
        gate.open()
        await eventually(lambda: in_flight(channel) == 1)
        assert not call.done()
        late.open()
        assert await answer(call) == b"one"


async def test_no_budget_no_hedge(fleet: Fleet) -> None:
    """Hedges and retries draw on one budget."""
    retry = lb.Retry(idempotent=METHODS, budget=lb.Budget(ratio=0, min_per_s=0.02, ttl_s=100), wait=wait_none())
    channel, one, two = await hedged(fleet, hedging=AT_ONCE, retry=retry)
    async with channel:
        one.always(hang())
        two.always(hang())
        for hedges in (1, 1, 0):
            call = UU.start(channel)
            await one.until(lambda: one.in_flight == 1)
            await two.until(lambda hedges=hedges: two.in_flight == hedges)
            call.cancel()
            await nothing_left(channel, one, two)
    assert (len(one.received), len(two.received)) == (3, 2)


async def test_hedges_are_retried_after_a_pause(fleet: Fleet) -> None:
    """Both fail; the retry waits as told, and is hedged again if attempts are left."""
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(0.02), jitter=0.0)
    channel, one, two, three = await hedged(fleet, 3, hedging=lb.Hedging(delay_s=0.0, max_attempts=2), retry=retry)
    async with channel:
        for backend in (one, two, three):
            backend.script(fail())
        call = UU.start(channel)
        assert await answer(call) == b"one"
        assert [a.why.partition(":")[0] for a in lb.attempts(call)[1:]] == ["hedge", "retry", "retry"]
        await nothing_left(channel, one, two, three)


# ---- ends from outside, while two run ----


async def two_running(fleet: Fleet) -> Any:
    """A call whose two attempts both hang."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE)
    for backend in (one, two):
        backend.always(hang())
    call = UU.start(channel)
    for backend in (one, two):
        await backend.until(lambda backend=backend: backend.in_flight == 1)
    return channel, call, one, two


async def test_cancelling_cancels_both(fleet: Fleet) -> None:
    """On the servers, too."""
    channel, call, one, two = await two_running(fleet)
    async with channel:
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await nothing_left(channel, one, two)
        assert one.received[0].cancelled
        assert two.received[0].cancelled


async def test_cancelling_the_task_that_awaits_cancels_both(fleet: Fleet) -> None:
    """As without hedging."""
    channel, call, one, two = await two_running(fleet)
    async with channel:
        waiting = asyncio.ensure_future(answer(call))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await nothing_left(channel, one, two)


async def test_the_deadline_ends_both(fleet: Fleet) -> None:
    """DEADLINE_EXCEEDED, which is nobody's fault."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE)
    for backend in (one, two):
        backend.always(hang())
    async with channel:
        for timeout in longer(0.3):
            error = await failure(UU.start(channel, timeout=timeout))
            await nothing_left(channel, one, two)
            if one.received and two.received:
                break
        assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        assert one.received[-1].cancelled
        assert two.received[-1].cancelled


async def test_closing_the_channel_ends_both(fleet: Fleet) -> None:
    """And leaves no task."""
    channel, call, one, two = await two_running(fleet)
    await channel.close()
    with pytest.raises(asyncio.CancelledError):
        await answer(call)
    await eventually(lambda: lb_tasks() == [], "no task is left")
    for backend in (one, two):
        await backend.until(lambda backend=backend: backend.in_flight == 0)
    assert in_flight(channel) == 0


# ---- the method's own p95 ----


async def test_no_hedges_before_the_p95_is_known(fleet: Fleet) -> None:
    """A hundred calls later a call that hangs is hedged."""
    channel, one, two = await hedged(fleet, hedging=lb.Hedging(least_delay_s=0.02))
    async with channel:
        for _ in range(LEAST_SAMPLES - 1):
            await answer(UU.start(channel))
        one.always(hang())
        assert (await failure(UU.start(channel, timeout=0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(two.received) == 0
        one.always(None)
        await answer(UU.start(channel))
        one.always(hang())
        assert await answer(UU.start(channel)) == b"one"
        assert len(two.received) == 1


# ---- what is left of it ----


async def test_what_raises_in_a_policy_ends_hedging_alone(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt goes on; the bug is told once."""

    class Broken(First):
        repeatable = True

        def pick(self, call: Any, now: Any, rng: Any) -> Any:
            if self.picks:
                raise ZeroDivisionError("a bug")
            return super().pick(call, now, rng)

    channel, one, two = await hedged(fleet, hedging=AT_ONCE, policy=Broken())
    gate = Gate()
    async with channel:
        one.always(hold(gate))
        with caplog.at_level(logging.ERROR, "lb.channel"):
            call = UU.start(channel)
            begun = timers(monkeypatch, 0.01)
            await eventually(lambda: caplog.records, "the bug is told")
            assert not begun, "it would be asked again"
            gate.open()
            assert await answer(call) == b"one"
        await nothing_left(channel, one, two)
    assert len(caplog.records) == 1
    assert len(two.received) == 0


async def test_a_late_first_opens_its_breaker(fleet: Fleet) -> None:
    """It hangs: after as many lost races in a row as the breaker allows, it is left out."""
    breaker = lb.Breaker(consecutive_failures=3, failure_ratio=None, open_s=60)
    channel, one, two = await hedged(fleet, breaker=breaker)
    async with channel:
        one.always(hang())
        lost: list[Any] = []
        async with asyncio.timeout(HANGS_S):
            while channel.snapshot().endpoints[0].breaker != "OPEN":
                call = UU.start(channel)
                assert await answer(call) == b"one"
                lost.append(lb.attempts(call)[0].outcome)
        # Where the hedge took its time, too, losing says nothing.
        assert sum(outcome.origin is Origin.LATE for outcome in lost) == 3
        for _ in range(5):
            assert await answer(UU.start(channel)) == b"one"
        await nothing_left(channel, one, two)
    assert len(one.received) <= len(lost)


async def test_many_at_once_leave_nothing(fleet: Fleet) -> None:
    """Two hundred calls, hedged at once over three backends of which one hangs: all answer, nothing is left."""
    retry = lb.Retry(idempotent=METHODS, budget=lb.Budget(ratio=5, min_per_s=1000))
    channel, *backends = await hedged(fleet, 3, hedging=lb.Hedging(delay_s=0.0, max_attempts=3), retry=retry)
    async with channel:
        backends[0].always(hang())
        calls = [UU.start(channel) for _ in range(200)]
        assert await asyncio.gather(*map(answer, calls)) == [b"one"] * 200
        await nothing_left(channel, *backends)
        assert all(attempt.outcome for call in calls for attempt in lb.attempts(call))


async def test_hedged_calls_are_freed_without_the_collector(fleet: Fleet) -> None:
    """No cycle of ours waits for it, won by whichever."""
    channel, one, two = await hedged(fleet, hedging=AT_ONCE)
    async with channel:
        await answer(UU.start(channel))
        await nothing_left(channel, one, two)
        with collected() as found:
            for _ in range(50):
                await answer(UU.start(channel))
            await nothing_left(channel, one, two)
    assert not found
