"""What passes with ``attempt_timeout_s``: another attempt where one may follow, else nothing that the caller sees."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tenacity import stop_after_attempt, stop_never

import lb
from lb.aio.alarm import Alarm
from lb.core.outcome import Origin
from lb.testing.backend import METHODS, Gate, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import AT_ONCE, HANGS_S, UU, First, Kind, channel_to, eventually, failure, in_flight, ready
from tests.support.calls import breakers
from tests.support.wait import longer

AT_THE_FIRST = lb.Breaker(consecutive_failures=1, failure_ratio=None, open_s=600, max_open_s=600)

NOTHING_FOLLOWS: dict[str, dict[str, Any]] = {
    "may not run twice": {"retry": lb.Retry(attempt_timeout_s=0.05)},
    "retries are off": {"retry": lb.Retry(attempt_timeout_s=0.05, idempotent=METHODS, enabled=False)},
    "no attempts left": {"retry": lb.Retry(attempt_timeout_s=0.05, idempotent=METHODS, stop=stop_after_attempt(1))},
    "no budget left": {
        "retry": lb.Retry(attempt_timeout_s=0.05, idempotent=METHODS, budget=lb.Budget(ratio=0.0, min_per_s=0.0))
    },
}
WHY = {
    "may not run twice": "the method is not declared idempotent",
    "retries are off": "retries are off",
    "no attempts left": "stopped after 1 attempt",
    "no budget left": "the retry budget is used up",
}


@pytest.mark.parametrize("case", NOTHING_FOLLOWS)
async def test_a_call_that_nothing_may_follow_has_its_whole_time(fleet: Fleet, kind: Kind, case: str) -> None:
    """The breaker is told at ``attempt_timeout_s``, once; the answer comes later, and the caller gets it."""
    (backend,) = await fleet(1)
    gate = Gate()
    backend.always(hold(gate))
    async with channel_to(backend, breaker=AT_THE_FIRST, **NOTHING_FOLLOWS[case]) as channel:
        await ready(channel, 1)
        call = kind.start(channel, timeout=HANGS_S)
        await eventually(lambda: breakers(channel) == ["OPEN"], "the breaker is told of the silence")
        assert not call.done()
        assert in_flight(channel) == 1
        gate.open()
        assert await kind.responses(call) == kind.echo()
        (attempt,) = lb.attempts(call)
        assert breakers(channel) == ["OPEN"]  # the late answer is no second outcome
        assert in_flight(channel) == 0
    assert attempt.outcome is not None
    assert attempt.outcome.code is grpc.StatusCode.OK
    assert len(backend.received) == 1


@pytest.mark.parametrize("case", NOTHING_FOLLOWS)
async def test_without_a_deadline_such_a_call_ends_unavailable(fleet: Fleet, kind: Kind, case: str) -> None:
    """Nothing else would end it; the words name the setting, and say why no other attempt follows."""
    (backend,) = await fleet(1)
    backend.always(hang())
    async with channel_to(backend, breaker=AT_THE_FIRST, **NOTHING_FOLLOWS[case]) as channel:
        await ready(channel, 1)
        call = kind.start(channel)
        error = await failure(call)
        assert breakers(channel) == ["OPEN"]
        (attempt,) = lb.attempts(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert str(error.details()).startswith(f"no answer within attempt_timeout_s (0.05 s), and {WHY[case]}; tried ")
    assert attempt.outcome is not None
    assert attempt.outcome.origin is Origin.ATTEMPT_TIMEOUT


async def test_the_last_attempt_has_the_rest_of_the_calls_time(fleet: Fleet, kind: Kind) -> None:
    """Of three attempts the first two are given up; the third one answers late, and that is the answer."""
    (backend,) = await fleet(1)
    gate = Gate()
    backend.always(hold(gate))
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_after_attempt(3), attempt_timeout_s=0.05)
    async with channel_to(backend, retry=retry) as channel:
        await ready(channel, 1)
        call = kind.start(channel, timeout=HANGS_S)
        await eventually(
            lambda: (
                len(lb.attempts(call)) == 3
                and channel.snapshot().endpoints[0].last_error.endswith("no response within attempt_timeout_s (0.05 s)")
            )
        )
        gate.open()
        assert await kind.responses(call) == kind.echo()
        origins = [attempt.outcome.origin for attempt in lb.attempts(call) if attempt.outcome]
    assert origins == [Origin.ATTEMPT_TIMEOUT, Origin.ATTEMPT_TIMEOUT, Origin.PEER]


async def test_many_silent_calls_share_what_the_budget_has_left(fleet: Fleet) -> None:
    """One token: one of the calls goes elsewhere, and the others keep their attempts; no call fails."""
    one, two = await fleet(2)
    gate = Gate()
    one.always(hold(gate))
    budget = lb.Budget(ratio=0.0, min_per_s=0.001, ttl_s=1000)
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, attempt_timeout_s=0.1, budget=budget)
    async with channel_to(one, two, policy=First(), retry=retry) as channel:
        await ready(channel, 2)
        calls = [UU.start(channel, timeout=HANGS_S) for _ in range(8)]
        await eventually(lambda: sum(len(lb.attempts(call)) == 2 for call in calls) == 1)
        gate.open()
        for call in calls:
            assert await UU.responses(call) == UU.echo()
        assert sorted(len(lb.attempts(call)) for call in calls) == [1] * 7 + [2]


async def test_hedged_calls_keep_an_attempt_that_nothing_may_follow(fleet: Fleet) -> None:
    """Both attempts of a hedged call hang beyond ``attempt_timeout_s``; none is left, and the late answer counts."""
    one, two = await fleet(2)
    gate = Gate()
    one.always(hold(gate))
    two.always(hold(gate))
    settings: dict[str, Any] = {
        "retry": lb.Retry(idempotent=METHODS, attempt_timeout_s=0.05, stop=stop_after_attempt(2)),
        "hedging": lb.Hedging(delay_s=0.01),
        "breaker": AT_THE_FIRST,
    }
    async with channel_to(one, two, policy=First(), **settings) as channel:
        await ready(channel, 2)
        call = UU.start(channel, timeout=HANGS_S)
        await eventually(lambda: breakers(channel) == ["OPEN", "OPEN"])
        assert not call.done()
        gate.open()
        assert await UU.responses(call) == UU.echo()
        assert in_flight(channel) == 0


async def test_a_hedged_call_gives_up_a_silent_attempt_for_a_retry(fleet: Fleet) -> None:
    """Two that hang, a third that answers: retries may go further than hedges."""
    for attempt_timeout_s in longer(0.1):
        one, two, three = await fleet(3)
        one.always(hang())
        two.always(hang())
        settings: dict[str, Any] = {
            "retry": lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_never, attempt_timeout_s=attempt_timeout_s),
            "hedging": lb.Hedging(delay_s=0.01),
        }
        async with channel_to(one, two, three, policy=First(), **settings) as channel:
            await ready(channel, 3)
            call = UU.start(channel, timeout=HANGS_S)
            assert await UU.responses(call) == UU.echo()
            attempts = lb.attempts(call)
        if len(attempts) >= 3:
            break
    assert attempts[-1].outcome is not None
    assert attempts[-1].outcome.code is grpc.StatusCode.OK


async def test_a_strategy_that_fails_when_asked_lets_the_attempt_go_on(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged, and the answer still counts."""
    (backend,) = await fleet(1)
    gate = Gate()
    backend.always(hold(gate))

    def broken(state: Any) -> bool:
        raise RuntimeError("no idea")

    retry = lb.Retry(idempotent=METHODS, stop=broken, attempt_timeout_s=0.05)
    async with channel_to(backend, retry=retry, breaker=AT_THE_FIRST) as channel:
        await ready(channel, 1)
        call = UU.start(channel, timeout=HANGS_S)
        await eventually(lambda: breakers(channel) == ["OPEN"])
        gate.open()
        assert await UU.responses(call) == UU.echo()
    assert "Retry.stop raised RuntimeError: no idea" in caplog.text


async def test_the_server_is_told_the_calls_own_deadline(fleet: Fleet, kind: Kind) -> None:
    """An attempt may go on beyond ``attempt_timeout_s``, and so may the server's work on it."""
    (backend,) = await fleet(1)
    retry = lb.Retry(idempotent=METHODS, attempt_timeout_s=HANGS_S)
    async with channel_to(backend, retry=retry) as channel:
        await ready(channel, 1)
        await kind.run(channel, timeout=2 * HANGS_S)
    told = backend.received[0].timeout_s
    assert told is not None
    assert told > 1.5 * HANGS_S


async def test_attempts_that_end_while_others_are_looked_at() -> None:
    """They may at any moment, by another thread or a finalizer: all those left are told, and the watch goes on."""
    watch = Alarm(lambda: 0.0, lambda attempt: attempt.overdue())
    looks: list[Callable[[], object]] = []
    told: list[Any] = []

    class Channel:
        @staticmethod
        def in_loop(function: Callable[[Any], object], argument: Any) -> None:
            looks.append(lambda: function(argument))

    class Attempt:
        def overdue(self) -> None:
            told.append(self)

    channel: Any = Channel()
    attempts: list[Any] = [Attempt() for _ in range(5000)]  # more than Python keeps tuples in store
    for attempt in attempts:
        watch.add(attempt, 0.0, channel)
    (look,) = looks
    ending = attempts[2500:]

    def end(phase: str, info: dict[str, int]) -> None:
        if ending:
            watch.remove(ending.pop())

    usual = gc.get_threshold()
    gc.callbacks.append(end)
    gc.set_threshold(1)
    try:
        look()
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(end)
    assert told[:2500] == attempts[:2500]
    assert len(watch) == 0
    watch.add(attempts[0], 0.0, channel)
    assert len(looks) == 2
