"""The clock that tests move."""

from __future__ import annotations

import pytest

import lb.testing
from lb.testing import FakeClock


def test_it_is_loaded_on_first_use() -> None:
    """``lb.testing.FakeClock`` is the class, and a misspelt name lists what there is."""
    assert lb.testing.FakeClock is FakeClock
    with pytest.raises(AttributeError, match=r"no attribute 'FakeClok'; it has .*FakeClock"):
        _ = lb.testing.FakeClok


def test_it_stands_still_until_moved() -> None:
    """Reading moves nothing, ``advance`` moves by exactly so much."""
    clock = FakeClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(0.25)
    assert clock() == 5.25
    assert repr(clock) == "<FakeClock at 5.250, 0 scheduled>"


def test_what_is_due_runs_in_order_at_its_own_instant() -> None:
    """Events run by instant, those of the same instant as scheduled; later ones stay."""
    clock, seen = FakeClock(0.0), []

    def note(name: str) -> None:
        seen.append((name, clock()))

    clock.call_later(2.0, note, "second")
    clock.call_later(1.0, note, "first")
    clock.call_at(2.0, note, "second, too")
    clock.call_at(-1.0, note, "past: at once")
    clock.call_later(2.5, note, "later")
    clock.advance(2.0)
    assert seen == [("past: at once", 0.0), ("first", 1.0), ("second", 2.0), ("second, too", 2.0)]
    clock.run()
    assert seen[-1] == ("later", 2.5)
    assert clock() == 2.5


def test_an_event_may_schedule_others() -> None:
    """What an event schedules within the same stretch of time runs in it, too."""
    clock, ticks = FakeClock(0.0), []

    def tick() -> None:
        ticks.append(clock())
        clock.call_later(1.0, tick)

    clock.call_later(1.0, tick)
    clock.advance(3.5)
    assert ticks == [1.0, 2.0, 3.0]
    assert clock() == 3.5


def test_a_cancelled_timer_does_not_run() -> None:
    """Cancelling is safe before and after; ``pending`` tells; time does not jump to what was cancelled."""
    clock, seen = FakeClock(0.0), list[int]()
    timer, other = clock.call_later(9.0, seen.append, 1), clock.call_later(1.0, seen.append, 2)
    timer.cancel()
    clock.run()
    other.cancel()
    assert seen == [2]
    assert clock() == 1.0
    assert not timer.pending
    assert not other.pending
    assert repr(other) == "<Timer at 1.000, over>"


def test_what_repeats_for_ever_is_found_out() -> None:
    """``run`` ends with an error instead of never; exactly ``most`` events are fine."""
    clock = FakeClock()

    def again() -> None:
        clock.call_later(1.0, again)

    again()
    with pytest.raises(RuntimeError, match="10 events ran and there are more"):
        clock.run(most=10)
    short = FakeClock()
    for _ in range(10):
        short.call_later(1.0, int)
    short.run(most=10)


def test_bad_times_are_named() -> None:
    """Backwards, not finite, not a number: the error has the field and the value."""
    clock = FakeClock(3.0)
    with pytest.raises(ValueError, match=r"seconds is -1; expected a number >= 0, time does not go back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match=r"when is 2.0; expected an instant >= 3.0"):
        clock.advance_to(2.0)
    with pytest.raises(ValueError, match=r"delay_s is inf; expected a finite number of seconds"):
        clock.call_later(float("inf"), int)
    with pytest.raises(TypeError, match=r"now is '1'; expected a finite number of seconds"):
        FakeClock("1")  # type: ignore[arg-type]  # the point of the test
