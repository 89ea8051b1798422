"""The window of ten buckets against a list of instants."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lb.core.window import BUCKETS, Window

# Quarters of a bucket: every sum of them is exact.
STEPS = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=60)


def count(window: Window, now: float, marked: bool) -> None:
    """Count one call as the window's users do."""
    if now >= window.edge:
        window.roll(now)
    window.calls += 1
    window.marked += marked


@given(steps=STEPS)
def test_totals_are_those_of_the_last_nine_to_ten_buckets(steps: list[tuple[int, bool]]) -> None:
    """What is younger than 9 buckets is counted, what is older than 10 is not; looking changes nothing."""
    window, now = Window(float(BUCKETS)), 0.0
    events: list[tuple[float, bool]] = []
    for quarters, marked in steps:
        now += quarters / 4
        for later in (now, now + 3.25):
            calls, bad = window.totals(later)
            assert (calls, bad) == window.totals(later)
            assert sum(at > later - 9 for at, _ in events) <= calls <= sum(at > later - 10 for at, _ in events)
            assert sum(m for at, m in events if at > later - 9) <= bad <= sum(m for at, m in events if at > later - 10)
        count(window, now, marked)
        events.append((now, marked))
        assert window.totals(now)[0] >= 1


def test_an_endless_window_forgets_nothing() -> None:
    """A window of infinite length never rolls."""
    window = Window(math.inf)
    count(window, 0.0, True)
    count(window, 1e12, False)
    assert window.totals(1e15) == (2, 1)


def test_clear_forgets_everything() -> None:
    """After ``clear`` the window is as new."""
    window = Window(10.0)
    count(window, 5.0, True)
    window.clear()
    assert window.totals(5.0) == (0, 0)
    count(window, 2.0, False)
    assert window.totals(2.0) == (1, 0)
