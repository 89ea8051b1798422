"""Attempts beside each other, on a fake clock: when one may begin, and what a failure means while others run."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from tenacity import wait_fixed, wait_none

from lb.core.attempt import Attempt
from lb.core.budget import Budget
from lb.core.call import DONE, Call, Failed, Others, Pause
from lb.core.concurrency import ConcurrencyLimit
from lb.core.hedging import Hedging
from lb.core.outcome import LATE, LOST, OK, Origin, Outcome, classify
from lb.core.quantile import LEAST_SAMPLES
from lb.core.retry import Retry
from lb.core.throttle import Throttle
from tests.core.rig import CANCELLED, INTERNAL, REFUSED, TIMED_OUT, UNAVAILABLE, Rig

SOON = Hedging(delay_s=0.05)
THREE = Hedging(delay_s=0.05, max_attempts=3)
NEVER_AGAIN = classify(StatusCode.UNAVAILABLE, pushback="-1", details="go away")
LATER = classify(StatusCode.UNAVAILABLE, pushback="300", details="later")
DEADLINE = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delay_s", -0.1),
        ("delay_s", float("nan")),
        ("delay_s", "soon"),
        ("delay_s", True),
        ("max_attempts", 1),
        ("max_attempts", 6),
        ("max_attempts", 2.0),
        ("max_attempts", True),
        ("least_delay_s", 0),
        ("least_delay_s", float("inf")),
        ("non_fatal", (StatusCode.OK,)),
        ("non_fatal", ("UNAVAILABLE",)),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    """By class and field."""
    with pytest.raises((TypeError, ValueError), match=f"Hedging.{field}"):
        Hedging(**{field: value})


def begun(rig: Rig, hedges: int = 1, **settings: Any) -> Call:
    """A call with so many hedges beside its first attempt."""
    call = rig.call(**settings)
    assert isinstance(call.begin(rig.now), Attempt)
    call.hedge_delay_s()
    for _ in range(hedges):
        assert isinstance(call.hedge(rig.now), Attempt)
    return call


# ---- when a hedge begins ----


def test_without_hedging_there_is_none() -> None:
    """No delay, and no attempt for who asks anyway."""
    rig = Rig("ab")
    call = begun(rig, 0)
    assert call.hedge_delay_s() is None
    assert call.hedge(rig.now) is None


def test_a_fixed_delay_is_that_delay_until_all_attempts_are_out() -> None:
    """At most max_attempts, the first one too."""
    rig = Rig("abcd", hedging=THREE)
    call = begun(rig, 0)
    for _ in range(2):
        assert call.hedge_delay_s() == 0.05
        assert isinstance(call.hedge(rig.now), Attempt)
    assert call.hedge_delay_s() is None
    assert call.hedge(rig.now) is None
    assert [attempt.number for attempt in call.attempts] == [1, 2, 3]
    assert [attempt.why for attempt in call.attempts] == ["", "hedge: no answer yet", "hedge: no answer yet"]
    assert call.shared.tally.attempts == 3


def test_the_p95_is_used_once_it_is_known() -> None:
    """No hedges before 100 calls were seen; then after their p95, but never sooner than the least delay."""
    rig = Rig("ab", hedging=Hedging(least_delay_s=0.002))
    call = begun(rig, 0)
    for _ in range(LEAST_SAMPLES - 1):
        rig.latency.observe(0.1)
    assert call.hedge_delay_s() is None
    rig.latency.observe(0.1)
    delay = call.hedge_delay_s()
    assert delay is not None
    assert 0.1 <= delay <= 0.125
    quick = Rig("ab", hedging=Hedging(least_delay_s=0.002))
    for _ in range(LEAST_SAMPLES):
        quick.latency.observe(0.0001)
    assert begun(quick, 0).hedge_delay_s() == 0.002


def test_hedges_never_meet_on_one_endpoint() -> None:
    """With two endpoints there are two attempts, whatever max_attempts says; with one there is one."""
    rig = Rig("ab", hedging=Hedging(delay_s=0, max_attempts=5))
    call = begun(rig, 1)
    assert call.hedge(rig.now) is None
    assert {attempt.endpoint_id for attempt in call.attempts} == {"a", "b"}
    alone = Rig("a", hedging=SOON)
    assert begun(alone, 0).hedge(alone.now) is None


def test_a_hedge_is_drawn_from_the_retry_budget() -> None:
    """One each; none when less than one is left, and nothing is taken for a hedge that found no endpoint."""
    rig = Rig("ab", hedging=SOON, retry=Retry(budget=Budget(ratio=0, min_per_s=0.1)))
    begun(rig, 1)
    assert rig.budget.balance(rig.now) == 0
    call = begun(rig, 0)
    assert call.hedge(rig.now) is None
    assert len(call.attempts) == 1
    alone = Rig("a", hedging=SOON, retry=Retry(budget=Budget(ratio=0, min_per_s=0.1)))
    assert begun(alone, 0).hedge(alone.now) is None
    assert alone.budget.balance(alone.now) == 1


def test_a_hedge_keeps_the_concurrency_limit_and_the_line() -> None:
    """No hedge on a full endpoint, and none while a call waits for a place: that call goes first."""
    rig = Rig("ab", hedging=SOON, limit=ConcurrencyLimit(limit=1))
    call, other = begun(rig, 0), begun(rig, 0)
    assert call.hedge(rig.now) is None
    waiting = rig.call()
    waiting.begin(rig.now)
    rig.end(other.attempts[0])
    assert call.hedge(rig.now) is None
    assert isinstance(waiting.resume(rig.now), Attempt)
    rig.end(waiting.attempts[0])
    assert isinstance(call.hedge(rig.now), Attempt)


# ---- what a failure means while others run ----


@pytest.mark.parametrize("outcome", [UNAVAILABLE, REFUSED, TIMED_OUT])
def test_what_may_be_retried_leaves_it_to_the_others(outcome: Outcome) -> None:
    """The next hedge need not wait for its turn."""
    rig = Rig("abc", hedging=THREE)
    assert rig.fail(begun(rig), outcome, at=0) == Others(0.0)


@pytest.mark.parametrize("outcome", [INTERNAL, classify(StatusCode.NOT_FOUND), CANCELLED, DEADLINE])
def test_a_fatal_status_ends_all(outcome: Outcome) -> None:
    """Also the caller's deadline and cancellation."""
    rig = Rig("abc", hedging=Hedging(delay_s=0, max_attempts=3))
    call = begun(rig)
    assert rig.fail(call, outcome, at=0) is DONE
    assert "ends all attempts" in call.gave_up


def test_non_fatal_codes_are_the_users_to_name() -> None:
    """They leave it to the others; but for the caller's own deadline nothing is non-fatal."""
    rig = Rig("abc", hedging=Hedging(delay_s=0, non_fatal=(StatusCode.INTERNAL, StatusCode.DEADLINE_EXCEEDED)))
    assert rig.fail(begun(rig), INTERNAL, at=0) == Others(0.0)
    assert rig.fail(begun(rig), DEADLINE, at=0) is DONE


def test_a_server_that_says_never_again_ends_hedging_not_the_call() -> None:
    """GRFC A6: what runs goes on, nothing more begins."""
    rig = Rig("abcd", hedging=THREE)
    call = begun(rig)
    assert rig.fail(call, NEVER_AGAIN, at=0) == Others(None)
    assert call.hedge_delay_s() is None
    assert call.hedge(rig.now) is None
    assert rig.fail(call, NEVER_AGAIN) is DONE


def test_a_servers_push_back_delays_the_next_hedge() -> None:
    """300 ms, its own word."""
    rig = Rig("abc", hedging=THREE)
    assert rig.fail(begun(rig), LATER, at=0) == Others(0.3)


def test_the_next_hedge_goes_out_at_once_when_nothing_runs_any_more() -> None:
    """A first attempt that failed before its hedge was due is followed elsewhere without a wait."""
    rig = Rig("abc", hedging=Hedging(delay_s=9, non_fatal=(StatusCode.INTERNAL,)), retry=Retry(wait=wait_fixed(5)))
    for outcome in (UNAVAILABLE, INTERNAL):
        call = begun(rig, 0)
        second = rig.fail(call, outcome)
        assert isinstance(second, Attempt)
        assert second.why == f"hedge: {outcome.reason()}"
        assert second.candidate is not call.attempts[0].candidate
        rig.end(second)


def test_a_stream_is_retried_and_not_hedged() -> None:
    """A driver that runs no attempts beside each other keeps the pauses between them."""
    rig = Rig("abc", hedging=SOON, retry=Retry(wait=wait_fixed(5), jitter=0))
    call = rig.call()
    call.begin(rig.now)  # and nobody asks for the delay to a hedge
    assert rig.fail(call, UNAVAILABLE) == Pause(5.0)


def test_after_the_last_hedge_retries_go_on() -> None:
    """By the rules of retrying: wait, stop and budget; hedges count as attempts."""
    rig = Rig("abcdef", hedging=SOON, retry=Retry(wait=wait_none(), jitter=0))
    call = begun(rig)
    assert rig.fail(call, UNAVAILABLE, at=0) == Others(0.0)
    third = rig.fail(call, UNAVAILABLE)
    assert isinstance(third, Attempt)
    assert third.why == "retry: UNAVAILABLE: Socket closed"
    assert isinstance(rig.fail(call, UNAVAILABLE), Attempt)
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert call.gave_up == "stopped after 4 attempts"
    assert rig.in_flight == 0


def test_the_last_attempt_out_of_time_is_told_as_unavailable() -> None:
    """Nothing runs, nothing is left to try: the attempt's own time-out must not read as the caller's."""
    rig = Rig("ab", hedging=SOON, retry=Retry(budget=Budget(ratio=0, min_per_s=0.1)))
    call = begun(rig)
    rig.fail(call, TIMED_OUT, at=0)
    failed = rig.fail(call, TIMED_OUT)
    assert isinstance(failed, Failed)
    assert failed.code is StatusCode.UNAVAILABLE


def test_what_was_paid_for_a_silent_attempt_goes_to_one_that_follows() -> None:
    """Two attempts are given up at one moment: two follow for two payments, and what fails for good is not repeated."""
    retry = Retry(wait=wait_none(), attempt_timeout_s=0.3, budget=Budget(ratio=0, min_per_s=0.3))
    rig = Rig("abcde", hedging=Hedging(delay_s=0.1, max_attempts=3), retry=retry)
    call = begun(rig)
    spent = 3 - rig.budget.balance(rig.now)
    first, second = call.attempts
    assert call.overdue(first, rig.now, running=1).give_up
    assert call.overdue(second, rig.now, running=0).give_up
    assert rig.fail(call, TIMED_OUT, at=0) == Others(0.0)
    third = call.hedge(rig.now)
    assert third is not None
    assert 3 - rig.budget.balance(rig.now) == spent + 1
    assert rig.fail(call, TIMED_OUT, at=1) == Others(0.0)
    assert rig.fail(call, INTERNAL) is DONE
    assert rig.in_flight == 0


def test_failures_of_hedges_take_tokens() -> None:
    """Each failed attempt costs the throttle one, whether others run or not; at half there are no hedges."""
    rig = Rig("abc", hedging=THREE, throttle=Throttle(max_tokens=4, token_ratio=0.1))
    call = begun(rig)
    rig.fail(call, UNAVAILABLE, at=0)
    rig.fail(call, NEVER_AGAIN)
    assert rig.throttle is not None
    assert repr(rig.throttle) == "<ThrottleState 2 of 4>"
    assert begun(rig, 0).hedge(rig.now) is None


def test_a_status_that_hedges_outlive_takes_a_token() -> None:
    """A non-fatal code counts (gRFC A6), also where nothing follows it; and before the next hedge is asked."""
    hedging = Hedging(delay_s=0.1, max_attempts=2, non_fatal=[StatusCode.INTERNAL])
    rig = Rig("abc", hedging=hedging, throttle=Throttle(max_tokens=4, token_ratio=0.1))
    call = begun(rig)
    rig.fail(call, INTERNAL, at=0)
    assert repr(rig.throttle) == "<ThrottleState 3 of 4>"
    assert rig.fail(call, INTERNAL) is DONE
    assert repr(rig.throttle) == "<ThrottleState 2 of 4>"
    rig = Rig("abc", hedging=hedging, throttle=Throttle(max_tokens=2, token_ratio=0.1))
    call = begun(rig, 0)
    assert rig.fail(call, INTERNAL) is DONE
    assert len(call.attempts) == 1


@pytest.mark.parametrize("outcome", [LOST, LATE])
def test_a_loser_says_nothing_of_load_or_last_error_but_late(outcome: Outcome) -> None:
    """Its time is not observed, in flight returns to 0, and the breaker stays closed."""
    rig = Rig("ab", hedging=SOON)
    call = begun(rig)
    rig.clock.advance(0.1)
    rig.end(call.attempts[1], OK)
    rig.end(call.attempts[0], outcome)
    loser = call.attempts[0].candidate
    assert loser.load.samples == 0
    assert rig.in_flight == 0
    assert loser.breaker.state.name == "CLOSED"
    assert bool(loser.last_error) == (outcome is LATE)
