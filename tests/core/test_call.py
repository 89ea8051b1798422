"""One call as a sequence of actions, on a fake clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from grpc import StatusCode
from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_fixed,
    wait_none,
)

from lb.core.attempt import Attempt
from lb.core.breaker import Breaker, State
from lb.core.budget import Budget
from lb.core.call import DONE, Done, Failed, Pause, Queued
from lb.core.outcome import OK, Origin, Outcome, classify
from lb.core.retry import Retry
from lb.core.throttle import Throttle
from tests.core.rig import (
    CANCELLED,
    CONNECTING,
    FAILING,
    IDLE,
    INTERNAL,
    READY,
    REFUSED,
    STEADY,
    TIMED_OUT,
    UNAVAILABLE,
    UNSENT,
    Rig,
)

EAGER = Retry(wait=wait_none(), jitter=0.0)
STEADY_RETRY = Retry(jitter=0.0)


def test_a_call_begins_with_an_attempt() -> None:
    """The first action is an attempt on a READY endpoint; it has no reason for being made again."""
    rig = Rig("ab")
    call = rig.call()
    action = call.begin(rig.now)
    assert isinstance(action, Attempt)
    assert (action.number, action.why, action.outcome) == (1, "", None)
    assert call.attempts == [action]
    assert repr(call).startswith("<Call /shop.Shop/Get [<Attempt 1 on ")


def test_each_call_deposits_once() -> None:
    """A call pays into the budget when it begins, not per attempt."""
    rig = Rig("ab", retry=Retry(budget=Budget(ratio=0.5, min_per_s=0), wait=wait_none()))
    call = rig.call()
    call.begin(rig.now)
    assert rig.budget.balance(rig.now) == 0.5
    call.resume(rig.now)
    assert rig.budget.balance(rig.now) == 0.5


def test_a_failure_is_tried_again_after_a_pause() -> None:
    """Failed, 25 ms, elsewhere; the second attempt knows its number and why it is made."""
    rig = Rig("ab", retry=STEADY_RETRY)
    call = rig.call(timeout=1.0)
    first = call.begin(rig.now)
    assert isinstance(first, Attempt)
    pause = rig.fail(call, UNAVAILABLE)
    assert pause == Pause(0.025)
    rig.clock.advance(0.025)
    second = call.resume(rig.now)
    assert isinstance(second, Attempt)
    assert (second.number, second.why) == (2, "retry: UNAVAILABLE: Socket closed")
    assert second.candidate is not first.candidate
    assert first.duration_s == 0.0
    assert call.gave_up == ""


def test_no_wait_means_the_next_attempt_at_once() -> None:
    """A wait of 0, or a push-back of 0, needs no pause."""
    rig = Rig("ab", retry=EAGER)
    call = rig.call()
    call.begin(rig.now)
    assert isinstance(rig.fail(call, UNAVAILABLE), Attempt)
    rig = Rig("ab")
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    assert isinstance(rig.fail(call, REFUSED), Attempt)


def test_all_endpoints_are_tried_before_one_is_asked_twice() -> None:
    """Those already tried are avoided while others are admitted; then any is taken."""
    retry = Retry(stop=stop_after_attempt(5), wait=wait_none(), jitter=0.0)
    for seed in range(20):
        rig = Rig("abcd", retry=retry, seed=seed)
        call = rig.call()
        call.begin(rig.now)
        while isinstance(rig.fail(call, REFUSED), Attempt):
            pass
        ids = [attempt.endpoint_id for attempt in call.attempts]
        assert len(ids) == 5
        assert sorted(ids[:4]) == ["a", "b", "c", "d"]


def test_one_endpoint_alone_is_tried_again() -> None:
    """With no other, the one tried is asked once more."""
    rig = Rig("a", retry=EAGER)
    call = rig.call()
    call.begin(rig.now)
    again = rig.fail(call, UNAVAILABLE)
    assert isinstance(again, Attempt)
    assert again.endpoint_id == "a"


@pytest.mark.parametrize(
    ("outcome", "idempotent", "why"),
    [
        (INTERNAL, True, "INTERNAL is not retried"),
        (UNAVAILABLE, False, "the method is not declared idempotent"),
        (CANCELLED, True, "the caller cancelled"),
        (classify(StatusCode.UNAVAILABLE, pushback="-1"), True, "the server said not to retry"),
    ],
)
def test_what_is_not_retried_ends_the_call(outcome: Outcome, idempotent: bool, why: str) -> None:
    """Done, with the reason in words."""
    rig = Rig("ab")
    call = rig.call(idempotent=idempotent)
    call.begin(rig.now)
    assert rig.fail(call, outcome) is DONE
    assert call.gave_up == why


# ---- an attempt that is silent for too long ----

SILENT_AFTER = 0.3


def silent(rig: Rig, timeout: float | None = 3.0, *, idempotent: bool = True, replayable: bool = True) -> Any:
    """A call whose first attempt passes ``attempt_timeout_s``, and whether it is to be given up."""
    call = rig.call(timeout=timeout, idempotent=idempotent)
    call.begin(rig.now)
    rig.clock.advance(SILENT_AFTER)
    return call, call.overdue(call.attempts[0], rig.now, replayable=replayable).give_up


def test_a_silent_attempt_is_given_up_for_another() -> None:
    """The other one is paid for at that moment, so that it follows whatever the budget has when the first has ended."""
    budget = Budget(ratio=0, min_per_s=0.1, ttl_s=10)
    rig = Rig("ab", retry=Retry(wait=wait_none(), attempt_timeout_s=SILENT_AFTER, budget=budget))
    call, given_up = silent(rig)
    assert given_up
    assert rig.budget.balance(rig.now) == 0
    again = rig.fail(call, TIMED_OUT)
    assert isinstance(again, Attempt)
    assert again.endpoint_id != call.attempts[0].endpoint_id
    assert rig.budget.balance(rig.now) == 0


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, {"idempotent": False}),
        ({"enabled": False}, {}),
        ({"stop": stop_after_attempt(1)}, {}),
        ({"stop": stop_after_delay(0.2)}, {}),
        ({"wait": wait_fixed(5)}, {}),
        ({"budget": Budget(ratio=0, min_per_s=0)}, {}),
        ({}, {"replayable": False}),
    ],
    ids=["not idempotent", "off", "no attempts", "no time", "the deadline is nearer", "no budget", "not replayable"],
)
def test_a_silent_attempt_that_nothing_may_follow_goes_on(changes: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Without a deadline it is given up, since nothing else would end the call: UNAVAILABLE, and the words name it."""
    rig = Rig("ab", retry=Retry(attempt_timeout_s=SILENT_AFTER, **changes))
    call, given_up = silent(rig, **arguments)
    assert not given_up
    assert call.attempts[0].outcome is None
    if changes.get("wait"):
        return  # without a deadline it may follow
    call, given_up = silent(rig, timeout=None, **arguments)
    assert given_up
    failed = rig.fail(call, TIMED_OUT, replayable=arguments.get("replayable", True))
    assert isinstance(failed, Failed)
    assert failed.code is StatusCode.UNAVAILABLE
    assert failed.details.startswith("no answer within attempt_timeout_s (0.3 s), and ")


@pytest.mark.parametrize("late", [OK, UNAVAILABLE], ids=["answer", "failure"])
def test_a_silent_attempt_has_one_outcome(late: Outcome) -> None:
    """The breaker counts the silence; what comes late neither ends the row of failures nor adds to it."""
    breaker = Breaker(consecutive_failures=2, failure_ratio=None, jitter=0.0)
    rig = Rig("a", retry=Retry(attempt_timeout_s=SILENT_AFTER, enabled=False), breaker=breaker)
    call, _ = silent(rig)
    assert rig.candidate("a").last_error.startswith("DEADLINE_EXCEEDED (attempt timeout): no response within")
    rig.end(call.attempts[0], late)
    assert rig.candidate("a").breaker.state is State.CLOSED
    silent(rig)
    assert rig.candidate("a").breaker.state is State.OPEN


def test_a_silent_probe_has_failed() -> None:
    """Its place is free at once: the endpoint is probed again although the silent one still runs."""
    breaker = Breaker(consecutive_failures=1, failure_ratio=None, open_s=1, jitter=0.0)
    rig = Rig("ab", retry=Retry(attempt_timeout_s=SILENT_AFTER, enabled=False), breaker=breaker)
    rig.trip("a")
    rig.clock.advance(1)
    call = rig.call()
    probe = call.begin(rig.now)
    assert isinstance(probe, Attempt)
    if probe.endpoint_id == "b":
        call = rig.call()
        probe = call.begin(rig.now)
        assert isinstance(probe, Attempt)
    assert probe.endpoint_id == "a"
    assert rig.candidate("a").breaker.state is State.HALF_OPEN
    call.deadline = rig.now + 3
    assert not call.overdue(probe, rig.now).give_up
    assert rig.candidate("a").breaker.state is State.OPEN
    rig.end(probe)
    assert rig.candidate("a").breaker.state is State.OPEN


def test_silence_is_told_of_an_attempt_that_runs() -> None:
    """One that has ended meanwhile (in another thread) has had its outcome."""
    breaker = Breaker(consecutive_failures=1, failure_ratio=None)
    rig = Rig("a", retry=Retry(attempt_timeout_s=SILENT_AFTER, enabled=False), breaker=breaker)
    call = rig.call(timeout=3)
    call.begin(rig.now)
    rig.end(call.attempts[0])
    assert not call.overdue(call.attempts[0], rig.now).give_up
    assert rig.candidate("a").breaker.state is State.CLOSED


# ---- commitment ----


@pytest.mark.parametrize("outcome", [UNAVAILABLE, UNSENT, REFUSED, INTERNAL])
def test_a_committed_call_is_never_retried(outcome: Outcome) -> None:
    """After headers or a message (gRFC A6), whatever the outcome, a strategy or wait_for_ready say."""
    retry = Retry(retry=retry_if_exception(lambda _: True), stop=stop_never, wait=wait_none())
    for wait_for_ready in (None, True):
        rig = Rig("ab", retry=retry)
        call = rig.call(wait_for_ready=wait_for_ready)
        call.begin(rig.now)
        assert rig.fail(call, outcome, committed=True) is DONE
        assert call.gave_up == "the response had begun"


def test_a_request_that_is_not_at_hand_any_more_is_not_retried() -> None:
    """A stream whose replay buffer has overflowed cannot be resent, whatever allows it."""
    rig = Rig("ab")
    call = rig.call()
    call.begin(rig.now)
    assert rig.fail(call, REFUSED, replayable=False) is DONE
    assert call.gave_up == "the request stream cannot be resent"


# ---- push-back and the throttle (gRFC A6) ----


def pauses(outcomes: Sequence[Outcome]) -> list[float]:
    """How long a call waits after each of these failures."""
    rig = Rig("abcdef", retry=Retry(stop=stop_never, jitter=0.0))
    call = rig.call()
    call.begin(rig.now)
    delays = []
    for outcome in outcomes:
        action = rig.fail(call, outcome)
        delays.append(action.delay_s if isinstance(action, Pause) else 0.0)
        if isinstance(action, Pause):
            rig.clock.advance(action.delay_s)
            assert isinstance(call.resume(rig.now), Attempt)
    return delays


def test_after_a_push_back_the_backoff_begins_again() -> None:
    """Retry in n ms; if that fails, too, the next wait is the initial one, and doubles from there."""
    pushed_back = classify(StatusCode.UNAVAILABLE, pushback="300")
    assert pauses([UNAVAILABLE] * 4) == [0.025, 0.05, 0.1, 0.2]
    assert pauses([UNAVAILABLE, UNAVAILABLE, pushed_back, UNAVAILABLE, UNAVAILABLE]) == [0.025, 0.05, 0.3, 0.025, 0.05]
    assert pauses([pushed_back, UNAVAILABLE]) == [0.3, 0.025]
    assert pauses([UNAVAILABLE, REFUSED, UNPROCESSED, UNAVAILABLE]) == [0.025, 0.0, 0.0, 0.025]


NEVER_AGAIN = classify(StatusCode.UNAVAILABLE, pushback="-1")


@pytest.mark.parametrize("end", [{"committed": True}, {"replayable": False}, {}], ids=["headers", "buffer", "open"])
@pytest.mark.parametrize(
    ("outcome", "settings", "idempotent", "counts"),
    [
        (UNAVAILABLE, {}, True, True),
        (UNAVAILABLE, {}, False, False),
        (UNAVAILABLE, {"stop": stop_after_attempt(1)}, True, True),
        (UNAVAILABLE, {"enabled": False}, True, False),
        (NEVER_AGAIN, {}, False, True),
        (classify(StatusCode.INTERNAL, pushback="nonsense"), {}, False, True),
        (REFUSED, {}, False, True),
        (TIMED_OUT, {}, True, True),
        (INTERNAL, {}, True, False),
        (INTERNAL, {"retry": retry_if_exception(lambda _: True)}, False, True),
        (classify(StatusCode.INVALID_ARGUMENT), {}, True, False),
        (CANCELLED, {}, True, False),
        (classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER), {}, True, False),
    ],
)
def test_what_takes_a_token(
    outcome: Outcome, settings: dict[str, Any], idempotent: bool, counts: bool, end: dict[str, bool]
) -> None:
    """What could be retried, or must not be by push-back; committed or not: as in gRPC's core, once an attempt."""
    rig = Rig("ab", retry=Retry(wait=wait_none(), **settings), throttle=Throttle(max_tokens=10, token_ratio=0.5))
    call = rig.call(idempotent=idempotent)
    call.begin(rig.now)
    rig.fail(call, outcome, **end)
    assert repr(rig.throttle) == f"<ThrottleState {9 if counts else 10} of 10>"


@pytest.mark.parametrize("end", [{}, {"committed": True}, {"replayable": False}])
def test_what_no_server_processed_takes_no_token(end: dict[str, bool]) -> None:
    """Throttling protects servers, and these had nothing of it (A6, transparent retries)."""
    rig = Rig("ab", throttle=Throttle(max_tokens=10, token_ratio=0.5))
    call = rig.call()
    call.begin(rig.now)
    rig.fail(call, UNPROCESSED, **end)
    assert repr(rig.throttle) == "<ThrottleState 10 of 10>"


def test_a_failure_counts_before_it_is_asked() -> None:
    """The failure that brings the tokens down to half is not retried itself."""
    rig = Rig("ab", retry=EAGER, throttle=Throttle(max_tokens=2, token_ratio=0.5))
    call = rig.call()
    call.begin(rig.now)
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert call.gave_up == "the retry budget is used up"


# ---- limits ----


def test_attempts_end_with_stop() -> None:
    """Four by default."""
    rig = Rig("abcdef", retry=EAGER)
    call = rig.call()
    call.begin(rig.now)
    while rig.fail(call, UNAVAILABLE) is not DONE:
        pass
    assert len(call.attempts) == 4
    assert call.gave_up == "stopped after 4 attempts"


def test_stop_after_delay_counts_from_the_begin() -> None:
    """Time that attempts took counts, too."""
    rig = Rig("ab", retry=Retry(stop=stop_after_delay(1.0), wait=wait_none()))
    call = rig.call()
    call.begin(rig.now)
    rig.clock.advance(0.6)
    assert isinstance(rig.fail(call, UNAVAILABLE), Attempt)
    rig.clock.advance(0.6)
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert call.gave_up == "stopped after 2 attempts"


def test_strategies_see_the_time_slept() -> None:
    """``idle_for`` is the sum of the pauses so far, not the time that attempts took."""
    slept: list[float] = []

    def stop(state: RetryCallState) -> bool:
        slept.append(state.idle_for)
        return len(slept) == 3

    rig = Rig("ab", retry=Retry(stop=stop, jitter=0.0))
    call = rig.call()
    action = call.begin(rig.now)
    while action is not DONE:
        rig.clock.advance(1.0)
        action = rig.fail(call, UNAVAILABLE)
        if isinstance(action, Pause):
            rig.clock.advance(action.delay_s)
            action = call.resume(rig.now)
    assert slept == pytest.approx([0.0, 0.025, 0.075])


def test_a_deadline_nearer_than_the_next_attempt_ends_the_call_now() -> None:
    """Nobody waits for an attempt that could not be made; the last status is told at once, no budget is spent."""
    rig = Rig("ab", retry=Retry(wait=wait_fixed(0.5), jitter=0.0))
    before = rig.budget.balance(rig.now)
    call = rig.call(timeout=0.5)
    call.begin(rig.now)
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert call.gave_up == "the deadline is nearer than the next attempt"
    assert rig.budget.balance(rig.now) >= before
    call = rig.call(timeout=0.501)
    call.begin(rig.now)
    assert rig.fail(call, UNAVAILABLE) == Pause(0.5)


def test_a_deadline_that_passes_in_a_pause_ends_the_call_without_an_attempt() -> None:
    """The timer was late, as timers are: DEADLINE_EXCEEDED, with what was tried; nothing is sent."""
    rig = Rig("ab", retry=Retry(wait=wait_fixed(0.5), jitter=0.0))
    call = rig.call(timeout=0.501)
    call.begin(rig.now)
    assert rig.fail(call, UNAVAILABLE) == Pause(0.5)
    rig.clock.advance(0.501)
    failed = call.resume(rig.now)
    assert isinstance(failed, Failed)
    assert failed.code is StatusCode.DEADLINE_EXCEEDED
    assert failed.details.startswith("Deadline Exceeded after 0.501 s: between attempts; tried a (a:1): UNAVAILABLE")
    assert (len(call.attempts), rig.in_flight) == (1, 0)


def test_a_push_back_beyond_the_deadline_ends_the_call() -> None:
    """The server's delay is obeyed, not shortened."""
    rig = Rig("ab")
    call = rig.call(timeout=1.0)
    call.begin(rig.now)
    assert rig.fail(call, classify(StatusCode.UNAVAILABLE, pushback="1000")) is DONE
    assert call.gave_up == "the deadline is nearer than the next attempt"


def test_an_empty_budget_ends_the_call() -> None:
    """Retries of one channel share what there is; when it is used up the failure is told."""
    rig = Rig("ab", retry=Retry(budget=Budget(ratio=0.0, min_per_s=0.2), wait=wait_none()))
    done = []
    for _ in range(3):
        call = rig.call()
        call.begin(rig.now)
        done.append(rig.fail(call, REFUSED) is DONE)
    assert done == [False, False, True]
    assert call.gave_up == "the retry budget is used up"
    rig.clock.advance(11)
    call = rig.call()
    call.begin(rig.now)
    assert isinstance(rig.fail(call, REFUSED), Attempt)


# ---- what no server has processed ----

UNPROCESSED = classify(StatusCode.UNAVAILABLE, origin=Origin.UNPROCESSED, details="GOAWAY")
CLOSING = classify(StatusCode.UNAVAILABLE, origin=Origin.CLOSING, details="GOAWAY")
NOTHING_LEFT = Retry(stop=stop_after_attempt(1), budget=Budget(ratio=0, min_per_s=0))


def test_what_no_server_has_processed_is_repeated_for_nothing() -> None:
    """Elsewhere, at once, outside of stop and budget, whatever the method is; after three times it pauses."""
    rig = Rig("abcde", retry=NOTHING_LEFT)
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    for _ in range(3):
        attempt = rig.fail(call, UNPROCESSED)
        assert isinstance(attempt, Attempt)
        assert attempt.why == "transparent: UNAVAILABLE (unprocessed): GOAWAY"
        assert call.previous(attempt) == 0
    assert len({attempt.endpoint_id for attempt in call.attempts}) == 4
    pauses = []
    while isinstance(action := rig.fail(call, UNPROCESSED), Pause):
        pauses.append(action.delay_s)
        rig.clock.advance(action.delay_s)
        attempt = call.resume(rig.now)
        assert isinstance(attempt, Attempt)
        assert call.previous(attempt) == 0
    assert pauses == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, *[0.25] * 11]
    assert action is DONE
    assert call.gave_up == "stopped after 1 attempt"


def test_transparent_retries_do_not_count_as_attempts() -> None:
    """Two attempts are allowed: one that was not processed, and two more."""
    rig = Rig("abcd", retry=Retry(stop=stop_after_attempt(2), wait=wait_none()))
    call = rig.call()
    call.begin(rig.now)
    assert isinstance(rig.fail(call, UNPROCESSED), Attempt)
    assert isinstance(rig.fail(call, UNAVAILABLE), Attempt)
    assert rig.fail(call, UNAVAILABLE) is DONE


@pytest.mark.parametrize("outcome", [UNPROCESSED, CLOSING])
def test_with_retries_off_there_are_no_transparent_ones(outcome: Outcome) -> None:
    """As with core's own option."""
    rig = Rig("ab", retry=Retry(enabled=False))
    call = rig.call()
    call.begin(rig.now)
    assert rig.fail(call, outcome) is DONE
    assert call.gave_up == "retries are off"


@pytest.mark.parametrize("committed", [True, False])
def test_what_was_committed_or_is_not_at_hand_is_not_repeated(committed: bool) -> None:
    """Also when no server has processed it."""
    rig = Rig("ab")
    call = rig.call()
    call.begin(rig.now)
    assert rig.fail(call, UNPROCESSED, committed=committed, replayable=committed) is DONE


def test_words_of_a_closing_connection_are_believed_once_its_loss_is_known() -> None:
    """At once when it was lost after the attempt began, though another one stands by now."""
    rig = Rig("ab", retry=NOTHING_LEFT)
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    name = call.attempts[0].endpoint_id
    rig.connect(name, IDLE)
    rig.connect(name, READY)
    assert isinstance(rig.fail(call, CLOSING), Attempt)


def test_the_news_of_a_loss_may_come_a_little_later() -> None:
    """The call pauses 5 ms at a time; then it is repeated."""
    rig = Rig("ab", retry=NOTHING_LEFT)
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    assert rig.fail(call, CLOSING) == Pause(0.005)
    rig.clock.advance(0.005)
    assert call.resume(rig.now) == Pause(0.005)
    rig.clock.advance(0.005)
    rig.connect(call.attempts[0].endpoint_id, CONNECTING)
    attempt = call.resume(rig.now)
    assert isinstance(attempt, Attempt)
    assert attempt.why == "transparent: UNAVAILABLE (unprocessed): GOAWAY"


def test_a_strategy_that_raises_after_a_doubtful_end_is_told() -> None:
    """The end of the call brings along what was raised, for the log: as late as the doubt is resolved."""

    def broken(state: Any) -> bool:
        raise RuntimeError("the strategy is broken")

    rig = Rig("a", retry=Retry(retry=broken))
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    assert rig.fail(call, CLOSING) == Pause(0.005)
    rig.clock.advance(0.2)
    action = call.resume(rig.now)
    assert isinstance(action, Done)
    assert "the strategy is broken" in str(action.raised)


def test_a_doubtful_end_says_nothing_of_the_endpoint_until_it_is_judged() -> None:
    """Five calls that a closing connection gave back open no breaker, however late the news; five failures do."""
    for lost in (True, False):
        rig = Rig("a", retry=NOTHING_LEFT)
        calls = [rig.call(idempotent=False) for _ in range(5)]
        for call in calls:
            call.begin(rig.now)
        assert all(rig.fail(call, CLOSING) == Pause(0.005) for call in calls)
        assert rig.candidate("a").breaker.state is State.CLOSED
        if lost:
            rig.connect("a", IDLE)
            rig.connect("a", READY)
        rig.clock.advance(0.1)
        ended = [call.resume(rig.now) for call in calls]
        assert all(isinstance(action, Attempt) if lost else action is DONE for action in ended)
        assert rig.candidate("a").breaker.state is (State.CLOSED if lost else State.OPEN)
        judged = calls[0].attempts[0].outcome
        assert judged is not None
        assert judged.origin is (Origin.UNPROCESSED if lost else Origin.PEER)


@pytest.mark.parametrize("end", [{"committed": True}, {"replayable": False}])
def test_a_doubtful_end_that_nothing_may_follow_is_judged_at_once(end: dict[str, Any]) -> None:
    """Its permit is given back: a probe's place is free again."""
    rig = Rig("a", retry=Retry(), breaker=Breaker(consecutive_failures=1, jitter=0.0))
    opening = rig.call(idempotent=False)
    opening.begin(rig.now)
    rig.fail(opening, UNAVAILABLE)
    rig.clock.advance(1.0)
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    assert rig.candidate("a").breaker.state is State.HALF_OPEN
    rig.connect("a", IDLE)
    rig.connect("a", READY)
    rig.fail(call, CLOSING, **end)
    assert rig.candidate("a").breaker.admits(rig.now)
    judged = call.attempts[0].outcome
    assert judged is not None
    assert judged.origin is Origin.UNPROCESSED


@pytest.mark.parametrize("by", ["deadline", "caller"])
def test_a_doubtful_end_of_a_call_that_ends_meanwhile_is_judged(by: str) -> None:
    """Its permit is given back then: the endpoint is not out for as long as a probe may take."""
    rig = Rig("a", retry=Retry(), breaker=Breaker(consecutive_failures=1, jitter=0.0))
    opening = rig.call(idempotent=False)
    opening.begin(rig.now)
    rig.fail(opening, UNAVAILABLE)
    rig.clock.advance(1.0)
    call = rig.call(idempotent=False, timeout=0.002)
    call.begin(rig.now)
    assert rig.candidate("a").breaker.state is State.HALF_OPEN
    assert rig.fail(call, CLOSING) == Pause(0.005)
    if by == "caller":
        call.settled()
    else:
        rig.clock.advance(0.005)
        failed = call.resume(rig.now)
        assert isinstance(failed, Failed)
        assert "between attempts" in failed.details
    assert rig.candidate("a").breaker.state is State.OPEN
    judged = call.attempts[0].outcome
    assert judged is not None
    assert judged.origin is Origin.PEER


# ---- refused for want of streams ----

REFUSED_STREAM = classify(StatusCode.UNAVAILABLE, origin=Origin.REFUSED, details="error code 7")


def test_what_was_refused_is_repeated_if_that_is_safe() -> None:
    """Once for nothing, then by the rules of retries: a server may pass on such words, and is not to be stormed."""
    rig = Rig("ab", retry=NOTHING_LEFT)
    call = rig.call(idempotent=False)
    call.begin(rig.now)
    assert rig.fail(call, REFUSED_STREAM) is DONE
    assert call.gave_up == "the method is not declared idempotent"
    call = rig.call()
    call.begin(rig.now)
    attempt = rig.fail(call, REFUSED_STREAM)
    assert isinstance(attempt, Attempt)
    assert attempt.why == "transparent: UNAVAILABLE (refused): error code 7"
    assert call.previous(attempt) == 0
    assert call.attempts[0].endpoint_id != attempt.endpoint_id
    assert rig.fail(call, REFUSED_STREAM) is DONE
    assert call.gave_up == "stopped after 1 attempt"


def test_a_pause_before_a_transparent_retry_ends_at_the_deadline() -> None:
    """Then the call says so."""
    rig = Rig("ab", retry=NOTHING_LEFT)
    call = rig.call(idempotent=False, timeout=0.004)
    call.begin(rig.now)
    for _ in range(3):
        assert isinstance(rig.fail(call, UNPROCESSED), Attempt)
    action = rig.fail(call, UNPROCESSED)
    assert isinstance(action, Pause)
    assert action.delay_s == pytest.approx(0.004)
    rig.clock.advance(0.005)
    ended = call.resume(rig.now)
    assert isinstance(ended, Failed)
    assert ended.code is StatusCode.DEADLINE_EXCEEDED


def test_a_few_refusals_open_no_breaker_but_nothing_else_for_long_does() -> None:
    """Who is full answers what it has taken. Who does nothing but refuse for half a second is left out."""
    rig = Rig("a")
    for _ in range(20):
        rig.end(rig.pick(), REFUSED_STREAM)
    assert rig.candidate("a").breaker.state is State.CLOSED
    rig.clock.advance(0.6)
    rig.end(rig.pick(), REFUSED_STREAM)
    assert rig.candidate("a").breaker.state is State.OPEN


def test_words_of_a_connection_that_stands_are_not_believed() -> None:
    """A server passed on what its own client met: UNAVAILABLE like any other, after 0.1 s; an older loss is none."""
    for idempotent in (True, False):
        rig = Rig("ab", retry=Retry(wait=wait_none()))
        for name in "ab":
            rig.connect(name, IDLE)
            rig.connect(name, READY)
        rig.clock.advance(1.0)
        call = rig.call(idempotent=idempotent)
        call.begin(rig.now)
        pauses = 0
        action = rig.fail(call, CLOSING)
        while isinstance(action, Pause):
            pauses += 1
            rig.clock.advance(action.delay_s)
            action = call.resume(rig.now)
        assert pauses in (20, 21)
        if idempotent:
            assert isinstance(action, Attempt)
            assert action.why.startswith("retry: ")
        else:
            assert action is DONE
            assert call.gave_up == "the method is not declared idempotent"


# ---- waiting for the balancer ----


def test_a_call_waits_for_the_first_resolution() -> None:
    """Queued with what it waits for, also when the balancer changed but not enough."""
    rig = Rig()
    call = rig.call(timeout=1.0)
    assert call.begin(rig.now) == Queued("static:///shop is not resolved yet")
    rig.update("a")
    assert call.resume(rig.now) == Queued("static:///shop: still connecting (1 endpoint)")
    rig.connect("a")
    action = call.resume(rig.now)
    assert isinstance(action, Attempt)
    assert (action.number, action.why) == (1, "")


def test_a_queued_call_fails_at_its_deadline_and_says_for_what_it_waited() -> None:
    """DEADLINE_EXCEEDED, how long, and the reason."""
    rig = Rig("")
    rig.update("a")
    call = rig.call(timeout=0.5)
    assert isinstance(call.begin(rig.now), Queued)
    rig.clock.advance(0.5)
    assert call.expired(rig.now) == Failed(
        StatusCode.DEADLINE_EXCEEDED,
        "Deadline Exceeded after 0.500 s: static:///shop: still connecting (1 endpoint)",
    )


def test_what_was_tried_before_is_told_at_the_deadline() -> None:
    """An attempt that failed before the wait is named with its outcome."""
    rig = Rig("a", retry=EAGER)
    call = rig.call(timeout=1.0)
    call.begin(rig.now)
    rig.connect("a", IDLE)
    assert isinstance(rig.fail(call, UNAVAILABLE), Queued)
    rig.clock.advance(1.0)
    assert call.expired(rig.now).details == (
        "Deadline Exceeded after 1.000 s: static:///shop: still connecting (1 endpoint);"
        " tried a (a:1): UNAVAILABLE: Socket closed"
    )


def test_what_the_resolver_said_meanwhile_is_told_at_the_deadline() -> None:
    """The first call of a channel is queued before the resolver can fail: its error must name the cause."""
    rig = Rig()
    call = rig.call(timeout=1.0)
    call.begin(rig.now)
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: connection refused", rig.now)
    rig.clock.advance(1.0)
    assert "connection refused" in call.expired(rig.now).details


def test_the_reason_of_an_earlier_wait_is_not_told_later() -> None:
    """Between attempts the deadline passes "between attempts", whatever it waited for before."""
    rig = Rig(retry=STEADY_RETRY)
    call = rig.call(timeout=1.0)
    assert isinstance(call.begin(rig.now), Queued)
    rig.update("a")
    rig.connect("a")
    assert isinstance(call.resume(rig.now), Attempt)
    assert isinstance(rig.fail(call, UNAVAILABLE), Pause)
    assert "not resolved yet" not in call.expired(rig.now).details


def test_no_endpoint_fails_at_once() -> None:
    """An empty set is an answer: UNAVAILABLE with the resolver's note, without waiting."""
    rig = Rig()
    rig.update("", note="consul: no service 'catalgo' is registered")
    assert rig.call(timeout=9.0).begin(rig.now) == Failed(
        StatusCode.UNAVAILABLE, "static:///shop has no endpoint: consul: no service 'catalgo' is registered"
    )


def test_nothing_to_reach_fails_at_once_with_each_cause() -> None:
    """When every endpoint fails to connect, the call names them and why."""
    rig = Rig("ab")
    rig.connect("a", FAILING, "connection refused")
    rig.connect("b", FAILING)
    assert rig.call().begin(rig.now) == Failed(
        StatusCode.UNAVAILABLE,
        "no endpoint of static:///shop can be reached: a (a:1): connection refused; b (b:1): no connection",
    )


@pytest.mark.parametrize("names", ["", "a"])
def test_wait_for_ready_waits_instead(names: str) -> None:
    """A call that asked to wait is queued where others fail, and goes when a connection stands."""
    rig = Rig(names)
    if names:
        rig.connect("a", FAILING, "connection refused")
    call = rig.call(wait_for_ready=True, timeout=5.0)
    assert isinstance(call.begin(rig.now), Queued)
    rig.update("a")
    rig.connect("a", CONNECTING)
    assert isinstance(call.resume(rig.now), Queued)
    rig.connect("a", READY)
    assert isinstance(call.resume(rig.now), Attempt)


def test_wait_for_ready_outlives_a_connection_that_was_gone() -> None:
    """Never sent means: wait again, without asking stop, budget or idempotence."""
    retry = Retry(stop=stop_after_attempt(1), budget=Budget(ratio=0, min_per_s=0))
    rig = Rig("a", retry=retry)
    call = rig.call(wait_for_ready=True, idempotent=False)
    call.begin(rig.now)
    for number in range(2, 9):
        pause = rig.fail(call, UNSENT)
        assert isinstance(pause, Pause)
        assert pause.delay_s > 0
        rig.clock.advance(pause.delay_s)
        action = call.resume(rig.now)
        assert isinstance(action, Attempt)
        assert (action.number, action.why) == (number, "wait for ready: UNAVAILABLE (unsent): connection refused")
        assert call.previous(action) == 0


def test_what_could_not_be_sent_is_no_attempt_that_counts() -> None:
    """It waited for ready through five connections that were gone: the four attempts it has are left."""
    rig = Rig("a", retry=Retry(wait=wait_none()))
    call = rig.call(wait_for_ready=True)
    call.begin(rig.now)
    for _ in range(5):
        assert isinstance(rig.fail(call, UNSENT), Pause)
        call.resume(rig.now)
    told = []
    for _ in range(3):
        attempt = rig.fail(call, UNAVAILABLE)
        assert isinstance(attempt, Attempt)
        told.append(call.previous(attempt))
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert (call.gave_up, told) == ("stopped after 4 attempts", [1, 2, 3])


def test_waiting_for_ready_ends_with_the_deadline() -> None:
    """A pause reaches no further, and no attempt begins at its end."""
    rig = Rig("a")
    call = rig.call(wait_for_ready=True, timeout=0.025)
    call.begin(rig.now)
    rig.fail(call, UNSENT)
    rig.clock.advance(0.01)
    call.resume(rig.now)
    pause = rig.fail(call, UNSENT)
    assert isinstance(pause, Pause)
    assert pause.delay_s == pytest.approx(0.015)
    rig.clock.advance(pause.delay_s)
    assert isinstance(call.resume(rig.now), Failed)
    assert len(call.attempts) == 2


def test_wait_for_ready_does_not_retry_what_was_sent() -> None:
    """It concerns connections alone."""
    rig = Rig("ab")
    call = rig.call(wait_for_ready=True, idempotent=False)
    call.begin(rig.now)
    assert rig.fail(call, UNAVAILABLE) is DONE


def test_a_retry_that_finds_nobody_left_ends_with_the_last_status() -> None:
    """That says more than "no endpoint can be reached"; why there was no other attempt is kept."""
    rig = Rig("a", retry=EAGER)
    call = rig.call()
    call.begin(rig.now)
    rig.connect("a", FAILING, "connection refused")
    assert rig.fail(call, UNAVAILABLE) is DONE
    assert call.gave_up == "no endpoint of static:///shop can be reached: a (a:1): connection refused"
    assert call.tried() == "a (a:1): UNAVAILABLE: Socket closed"


def test_a_retry_waits_for_a_connection_that_is_being_made() -> None:
    """The only endpoint lost its connection and connects anew: queued, then attempt 2 with its reason."""
    rig = Rig("a", retry=EAGER)
    call = rig.call(timeout=1.0)
    call.begin(rig.now)
    rig.connect("a", CONNECTING)
    assert isinstance(rig.fail(call, UNAVAILABLE), Queued)
    rig.connect("a", READY)
    action = call.resume(rig.now)
    assert isinstance(action, Attempt)
    assert (action.number, action.why) == (2, "retry: UNAVAILABLE: Socket closed")


def test_tried_says_what_runs() -> None:
    """An attempt without an outcome is running."""
    rig = Rig("a")
    call = rig.call()
    assert call.tried() == ""
    call.begin(rig.now)
    assert call.tried() == "a (a:1): running"
    assert repr(call.attempts[0]) == "<Attempt 1 on a (a:1): running>"


def test_a_seeded_call_repeats() -> None:
    """The same seed: the same endpoints and the same pauses."""

    def run(seed: int) -> list[object]:
        rig = Rig("abcde", retry=Retry(stop=stop_after_attempt(8)), breaker=STEADY, seed=seed)
        call, trace = rig.call(), list[object]()
        action = call.begin(rig.now)
        while action is not DONE:
            if isinstance(action, Attempt):
                trace.append(action.endpoint_id)
                action = rig.fail(call, UNAVAILABLE)
            else:
                assert isinstance(action, Pause)
                trace.append(action.delay_s)
                rig.clock.advance(action.delay_s)
                action = call.resume(rig.now)
        return trace

    assert run(4) == run(4)
    assert run(4) != run(5)
