"""For how long the client was held, as its beats show it."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lb.core.breaker import Breaker, State
from lb.core.outcome import OK, Origin, Outcome, classify
from lb.core.pulse import BEAT_S, Pulse
from tests.core.rig import CANCELLED, Rig


def beaten(*instants: float) -> Pulse:
    """One with beats at these instants."""
    pulse = Pulse()
    for now in instants:
        pulse.beat(now)
    return pulse


def test_who_never_beats_was_never_held() -> None:
    """Nothing is known of it: all time counts."""
    pulse = Pulse()
    assert pulse.held_s(0, 100) == 0
    assert pulse.left_s(0, 1, 0.25) == 0.75
    assert pulse.left_s(0, 1, 1) == 0


def test_a_late_beat_shows_what_was_held() -> None:
    """From when it was due; also before it has come, which is when the first answers are taken in."""
    pulse = beaten(10)
    assert pulse.held_s(9, 10.09) == 0  # late, not held
    assert pulse.held_s(9, 12) == pytest.approx(2 - BEAT_S)
    pulse.beat(12)
    assert pulse.held_s(9, 13) == pytest.approx(2 - BEAT_S + 1 - BEAT_S)
    pulse.beat(12.05)
    assert pulse.held_s(9, 12.06) == pytest.approx(2 - BEAT_S)


def test_a_driver_may_be_held_before_its_first_beat() -> None:
    """It was told to begin, and that counts; when it beats already it is told nothing new."""
    pulse = Pulse()
    pulse.expect(10)
    assert pulse.held_s(9, 12) == pytest.approx(2 - BEAT_S)
    pulse.beat(12)
    pulse.expect(20)
    assert pulse.held_s(12, 12.06) == 0


def test_only_what_overlaps_counts() -> None:
    """Of what held it only the part between the two instants."""
    pulse = beaten(10, 12, 12.05)
    assert pulse.held_s(11, 12.06) == pytest.approx(1)
    assert pulse.held_s(11, 11.5) == pytest.approx(0.5)
    assert pulse.held_s(8, 9) == 0
    assert pulse.held_s(12, 12.06) == 0


def test_what_is_remembered_adds_up() -> None:
    """Of many stalls the last ones count, each in the part that overlaps."""
    pulse = beaten(*range(0, 1000, 2))
    held_s = 2 - BEAT_S
    assert pulse.held_s(989, 999) == pytest.approx(1 + 4 * held_s + 1 - BEAT_S)
    assert pulse.held_s(989, 993) == pytest.approx(1 + held_s + 1 - BEAT_S)
    assert pulse.held_s(0, 998) >= 60 * held_s


def test_after_the_last_beat_nothing_is_known() -> None:
    """Who stops beating was not held from then on; what was held before is remembered."""
    pulse = beaten(10)
    pulse.beat(12, last=True)
    assert pulse.held_s(9, 100) == pytest.approx(2 - BEAT_S)
    pulse.beat(200)
    assert pulse.held_s(9, 200.01) == pytest.approx(2 - BEAT_S)


def test_a_timeout_runs_on_after_a_stall() -> None:
    """For what is left of it, and for a beat at least."""
    pulse = beaten(10)
    assert pulse.left_s(10, 0.5, 11) == pytest.approx(0.5 - BEAT_S)
    assert pulse.left_s(10, 0.06, 11) == BEAT_S
    pulse.beat(11)
    pulse.beat(11.05)
    assert pulse.left_s(10, 0.1, 11.05) == 0  # it ran before and after for as long


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=100), st.floats(0.01, 2.0))
def test_every_timeout_ends(gaps: list[float], limit_s: float) -> None:
    """Also of a client that is held again and again: what ran between beats adds up, a beat's length each time."""
    pulse = beaten(0.0)
    now = 0.0
    for gap in gaps:
        now += gap
        pulse.beat(now)
    turns = 0
    while pulse.left_s(0.0, limit_s, now) > 0:
        now += 1.0
        pulse.beat(now)
        turns += 1
        assert turns <= limit_s / BEAT_S + 2
    assert 0 <= pulse.held_s(0.0, now) <= now


PASSED = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER)


@pytest.mark.parametrize("beats", [True, False], ids=["held", "waited"])
@pytest.mark.parametrize("outcome", [OK, CANCELLED, PASSED], ids=["slow", "cancelled", "deadline"])
def test_what_held_the_client_blames_nobody(outcome: Outcome, beats: bool) -> None:
    """A slow or unanswered attempt counts against its endpoint, unless the time went while the client was held."""
    rig = Rig("a", breaker=Breaker(consecutive_failures=1, failure_ratio=None, slow_call_s=1, unanswered_s=1))
    if beats:
        rig.balancer.pulse.beat(rig.now)
    attempt = rig.pick()
    rig.clock.advance(1.04)
    rig.end(attempt, outcome)
    assert rig.candidate("a").breaker.state is (State.CLOSED if beats else State.OPEN)


def test_a_stall_is_no_latency() -> None:
    """Policies that read the latency do not take it for the endpoint's."""
    rig = Rig("a")
    rig.balancer.pulse.beat(rig.now)
    attempt = rig.pick()
    rig.clock.advance(5)
    rig.end(attempt)
    assert rig.candidate("a").load.latency_s <= 2 * BEAT_S


def test_a_probe_is_as_slow_as_its_endpoint() -> None:
    """A stream's first response decides a probe; what held the client is taken off there, too."""
    rig = Rig("a", breaker=Breaker(consecutive_failures=1, failure_ratio=None, slow_call_s=1, open_s=1, jitter=0.0))
    rig.trip("a")
    rig.clock.advance(1)
    rig.balancer.pulse.beat(rig.now)
    probe = rig.pick()
    rig.clock.advance(3)
    rig.balancer.answered(probe, rig.now)
    assert rig.candidate("a").breaker.state is State.CLOSED
