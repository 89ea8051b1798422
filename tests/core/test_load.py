"""The decayed latency, on a clock that is told."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.load import DECAY_S, Load
from lb.testing.clock import FakeClock


def test_nothing_is_known_before_the_first_sample() -> None:
    """``samples`` tells; the first sample is taken as it is."""
    load = Load()
    assert (load.latency_s, load.samples) == (0.0, 0)
    load.observe(0.2, FakeClock()())
    assert (load.latency_s, load.samples) == (0.2, 1)
    assert repr(load) == "<Load 200.0 ms of 1>"


def test_a_sample_weighs_by_the_time_since_the_last() -> None:
    """After one decay time the old value keeps 1/e of its say, whatever number of samples made it."""
    for count in (1, 50):
        clock, load = FakeClock(), Load()
        for _ in range(count):
            load.observe(1.0, clock())
        clock.advance(DECAY_S)
        load.observe(0.0, clock())
        assert load.latency_s == pytest.approx(exp(-1))
        assert load.samples == count + 1


def test_many_samples_forget_as_fast_as_few() -> None:
    """In the same time, ten times as many samples come to nearly the same value."""
    values = []
    for step in (1.0, 0.1):
        clock, load = FakeClock(), Load()
        load.observe(1.0, clock())
        for _ in range(round(20 / step)):
            clock.advance(step)
            load.observe(0.1, clock())
        values.append(load.latency_s)
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert values[0] == pytest.approx(0.1 + 0.9 * exp(-2.0))


def test_a_burst_in_one_instant_moves_nothing() -> None:
    """Samples that come together have no time between them, so no weight; they are counted."""
    load = Load()
    load.observe(0.1, 5.0)
    load.observe(9.0, 5.0)
    assert (load.latency_s, load.samples) == (0.1, 2)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), min_size=1, max_size=30))
def test_it_stays_between_the_least_and_the_most_seen(samples: list[tuple[float, float]]) -> None:
    """An average never leaves the range of what went into it."""
    clock, load = FakeClock(0.0), Load()
    for latency, gap in samples:
        clock.advance(gap)
        load.observe(latency, clock())
    seen = [latency for latency, _ in samples]
    assert min(seen) - 1e-9 <= load.latency_s <= max(seen) + 1e-9
