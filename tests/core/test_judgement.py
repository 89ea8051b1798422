"""What the end of an attempt means for its endpoint: each rule by example."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from grpc import StatusCode

from lb.core.breaker import Breaker, State
from lb.core.outcome import LATE, LOST, OK, Outcome, classify
from tests.core.rig import (
    CANCELLED,
    EXPIRED,
    REFUSED,
    STEADY,
    UNAVAILABLE,
    Rig,
    endpoint,
)


def test_the_outcome_of_a_forced_attempt_decides_nothing() -> None:
    """In panic the breakers stay as they are until their time is up."""
    rig = Rig("a")
    rig.trip("a")
    attempt = rig.pick()
    assert attempt.breaker_state is State.OPEN
    before = rig.candidate("a").breaker.retry_at
    rig.end(attempt, OK)
    assert rig.candidate("a").breaker.state is State.OPEN
    assert rig.candidate("a").breaker.retry_at == before


# ---- what outcomes change ----


def test_an_attempt_records_its_end() -> None:
    """Outcome, duration and last error; only a success counts as latency, and it leaves the last error."""
    rig = Rig("a")
    attempt = rig.pick()
    assert (attempt.duration_s, attempt.endpoint, attempt.address) == (None, endpoint("a"), "a:1")
    rig.clock.advance(0.5)
    rig.end(attempt, UNAVAILABLE)
    assert (attempt.outcome, attempt.duration_s) == (UNAVAILABLE, 0.5)
    a = rig.candidate("a")
    assert (a.last_error, a.load.samples, a.in_flight) == ("UNAVAILABLE: Socket closed", 0, 0)
    assert repr(attempt) == "<Attempt 1 on a (a:1): UNAVAILABLE: Socket closed>"
    attempt = rig.pick()
    rig.clock.advance(0.25)
    rig.end(attempt)
    assert (a.last_error, a.load.latency_s, a.load.samples) == ("UNAVAILABLE: Socket closed", 0.25, 1)


@pytest.mark.parametrize("outcome", [CANCELLED, REFUSED, classify(StatusCode.UNIMPLEMENTED)])
def test_an_ignored_outcome_says_nothing_of_the_endpoint(outcome: Outcome) -> None:
    """No sample of latency, no last error, no step towards an open breaker."""
    rig = Rig("ab")
    rig.picked(50, outcome)
    for candidate in rig.balancer.candidates:
        assert candidate.breaker.state is State.CLOSED
        assert (candidate.load.samples, candidate.last_error, candidate.in_flight) == (0, "", 0)


# ---- slow, unanswered, late ----

HASTY = Breaker(consecutive_failures=1, failure_ratio=None, jitter=0.0, slow_call_s=0.5, unanswered_s=1.0)


NOT_FOUND = classify(StatusCode.NOT_FOUND)


@pytest.mark.parametrize("outcome", [OK, NOT_FOUND, CANCELLED, EXPIRED, LOST, LATE, REFUSED])
@pytest.mark.parametrize(("took_s", "state"), [(0.49, State.CLOSED), (0.5, State.OPEN)])
def test_what_takes_too_long_is_a_failure_whatever_came_of_it(outcome: Outcome, took_s: float, state: State) -> None:
    """Also what lost a race after that long; the endpoint's record says so. (A late one counts by itself.)"""
    rig = Rig("ab", breaker=HASTY)
    attempt = rig.pick()
    rig.clock.advance(took_s)
    rig.end(attempt, outcome)
    if outcome is LATE:
        state = State.OPEN
    assert attempt.candidate.breaker.state is state
    if state is State.OPEN and outcome is not LATE:
        assert attempt.candidate.last_error == "slower than 0.5 s"


def test_a_slow_loser_counts_into_the_share_too() -> None:
    """Late alone counts in a row only; late and slower than allowed is a failure like any other."""
    breaker = Breaker(consecutive_failures=None, failure_ratio=0.5, minimum_calls=2, jitter=0.0, slow_call_s=0.5)
    for took_s, state in ((0.4, State.CLOSED), (0.6, State.OPEN)):
        rig = Rig("a", breaker=breaker)
        for _ in range(2):
            attempt = rig.pick()
            rig.clock.advance(took_s)
            rig.end(attempt, LATE)
        assert rig.candidate("a").breaker.state is state


def test_of_a_stream_the_time_to_its_first_response_counts() -> None:
    """It ran for an hour, and is no slow call; its latency is that of the first response."""
    rig = Rig("ab", breaker=HASTY)
    attempt = rig.pick()
    rig.clock.advance(0.25)
    attempt.answered_at = rig.now
    rig.clock.advance(3600)
    rig.end(attempt, OK)
    assert attempt.candidate.breaker.state is State.CLOSED
    assert attempt.candidate.load.latency_s == 0.25


def test_a_streams_first_response_ends_a_probe() -> None:
    """It may run for hours, and so may all others: the endpoint has its share again at once, whatever it ends with."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    rig.picked(1)
    probe = next(attempt for attempt in iter(rig.pick, None) if attempt.endpoint_id == "a")
    rig.balancer.answered(probe, rig.now)
    assert rig.candidate("a").breaker.state is State.CLOSED
    streams = [rig.pick() for _ in range(10)]
    assert Counter(attempt.endpoint_id for attempt in streams) == {"a": 5, "b": 5}
    rig.clock.advance(3600)
    for attempt in (probe, *streams):
        rig.end(attempt, UNAVAILABLE if attempt is probe else OK)
    assert rig.candidate("a").breaker.state is State.CLOSED
    assert probe.candidate.in_flight == 0


def test_a_first_response_that_was_too_slow_fails_the_probe() -> None:
    """By ``slow_call_s``, as at the end of a call. That is an opening like any other."""
    rig = Rig("ab", breaker=HASTY)
    rig.trip("a")
    rig.clock.advance(1.0)
    probe = next(attempt for attempt in iter(rig.pick, None) if attempt.endpoint_id == "a")
    rig.clock.advance(0.5)
    rig.balancer.answered(probe, rig.now)
    a = rig.candidate("a")
    assert (a.breaker.state, a.evidence.opened_at) == (State.OPEN, rig.now)


# ---- who refuses everything ----


def refuse(rig: Rig, seconds: float, every_s: float = 0.01, outcome: Outcome = REFUSED) -> None:
    """Endpoint a refuses every call for so long; the others answer."""
    for _ in range(round(seconds / every_s)):
        rig.clock.advance(every_s)
        attempt = rig.pick()
        rig.end(attempt, outcome if attempt.endpoint_id == "a" else OK)


@pytest.mark.parametrize("outcome", [REFUSED, classify(StatusCode.RESOURCE_EXHAUSTED, pushback="-1")])
def test_who_refuses_everything_is_left_out(outcome: Outcome) -> None:
    """Refusals are quick, so it looks like the least loaded of all, and retries would use up the budget."""
    rig = Rig("ab")
    refuse(rig, 0.5, outcome=outcome)
    assert rig.candidate("a").breaker.state is State.CLOSED
    refuse(rig, 0.05, outcome=outcome)
    a = rig.candidate("a")
    assert a.breaker.last is not None
    assert (a.breaker.state, a.breaker.last.reason) == (State.OPEN, "it refuses all calls")
    assert a.last_error == outcome.reason()


def test_a_refused_probe_has_failed() -> None:
    """Open again and for longer: its place is not given to one call after the other."""
    rig = Rig("ab")
    refuse(rig, 0.6)
    opened = rig.candidate("a").breaker.last
    refuse(rig, 1.2)
    again = rig.candidate("a").breaker.last
    assert opened is not None
    assert again is not None
    assert (again.after, again.open_s, opened.open_s) == (State.OPEN, 2.0, 1.0)


def test_who_answers_some_is_full_and_stays() -> None:
    """One answer in thirty is enough, and so is one that will come: it takes a second, and the rest is refused."""
    rig = Rig("a")
    for number in range(3000):
        rig.clock.advance(0.01)
        rig.end(rig.pick(), OK if number % 30 == 0 else REFUSED)
    assert rig.candidate("a").breaker.state is State.CLOSED
    rig = Rig("a")
    for _ in range(20):
        slow = rig.pick()
        rig.clock.advance(0.3)
        refuse(rig, 0.7 if rig.candidate("a").load.samples else 0.1)
        rig.end(slow, OK)
    assert rig.candidate("a").breaker.state is State.CLOSED


@pytest.mark.parametrize("breaker", [replace(STEADY, refused_s=None), replace(STEADY, consecutive_failures=None)])
def test_refusals_may_count_for_nothing_at_all(breaker: Breaker) -> None:
    """``refused_s=None``, or a breaker that does not open by what comes in a row."""
    rig = Rig("ab", breaker=breaker)
    refuse(rig, 5.0)
    assert rig.candidate("a").breaker.state is State.CLOSED


def test_a_few_refusals_are_none_however_long_they_take() -> None:
    """Four in a minute; the fifth opens it."""
    rig = Rig("a")
    refuse(rig, 60.0, every_s=15.0)
    assert rig.candidate("a").breaker.state is State.CLOSED
    refuse(rig, 15.0, every_s=15.0)
    assert rig.candidate("a").breaker.state is State.OPEN


@pytest.mark.parametrize(
    ("took_s", "outcome", "answered", "state"),
    [
        (0.9, EXPIRED, False, State.CLOSED),
        (1.0, EXPIRED, False, State.OPEN),
        (1.0, EXPIRED, True, State.CLOSED),
        (1.0, CANCELLED, False, State.CLOSED),
        (1.0, LOST, False, State.CLOSED),
    ],
)
def test_a_callers_deadline_without_an_answer_counts_after_a_second(
    took_s: float, outcome: Outcome, answered: bool, state: State
) -> None:
    """A hung endpoint shows in nothing else; a cancellation, a lost race or a begun stream says nothing."""
    rig = Rig("ab", breaker=replace(HASTY, slow_call_s=None))
    attempt = rig.pick()
    rig.clock.advance(took_s)
    if answered:
        attempt.answered_at = rig.now
    rig.end(attempt, outcome)
    assert attempt.candidate.breaker.state is state


def test_a_straggler_does_not_decide_a_probe() -> None:
    """An attempt from before the breaker opened ends well while the probe is out: still half-open."""
    rig = Rig("a")
    straggler = rig.pick()
    rig.trip("a")
    rig.clock.advance(1.0)
    probe = rig.pick()
    rig.end(straggler, OK)
    breaker = rig.candidate("a").breaker
    assert breaker.state is State.HALF_OPEN
    rig.end(probe, OK)
    assert breaker.state is not State.HALF_OPEN
