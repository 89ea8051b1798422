"""The p95 of a method's latency."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.quantile import HALVE_AT, LEAST_SAMPLES, Quantile


def test_it_is_unknown_until_enough_was_seen() -> None:
    """99 calls tell nothing; the hundredth does."""
    quantile = Quantile()
    for _ in range(LEAST_SAMPLES - 1):
        quantile.observe(0.01)
    assert quantile.value_s is None
    assert repr(quantile) == "<Quantile p95 unknown of 99>"
    quantile.observe(0.01)
    assert quantile.value_s is not None


@given(seed=st.integers(0, 1000), scale=st.floats(1e-4, 10), spread=st.floats(0, 2), share=st.sampled_from([0.5, 0.95]))
def test_it_is_never_too_low_and_at_most_a_quarter_too_high(
    seed: int, scale: float, spread: float, share: float
) -> None:
    """Against the sorted durations, whatever their shape."""
    rng = Random(seed)
    durations = [scale * math.exp(spread * rng.gauss(0, 1)) for _ in range(LEAST_SAMPLES)]
    durations = [min(max(duration, 2e-5), 400.0) for duration in durations]
    quantile = Quantile(share)
    for duration in durations:
        quantile.observe(duration)
    true = sorted(durations)[math.ceil(share * len(durations)) - 1]
    assert quantile.value_s is not None
    assert true * (1 - 1e-9) <= quantile.value_s <= true * 1.25 * (1 + 1e-9)


@pytest.mark.parametrize("duration", [0.0, -1.0, 1e-9, 1e9])
def test_any_duration_has_a_bucket(duration: float) -> None:
    """Nothing, a clock that ran backwards, an hour: the ends take what is beyond them."""
    quantile = Quantile()
    for _ in range(LEAST_SAMPLES):
        quantile.observe(duration)
    assert quantile.value_s == pytest.approx(1e-5 if duration < 1 else 1e-5 * 1.25**79)


def test_old_durations_fade() -> None:
    """After a method became ten times faster its p95 follows within two halvings, also ten times slower."""
    for before, after in ((0.1, 0.01), (0.01, 0.1)):
        quantile = Quantile()
        for _ in range(HALVE_AT - 1):
            quantile.observe(before)
        for _ in range(4 * HALVE_AT):
            quantile.observe(after)
        assert quantile.value_s is not None
        assert after <= quantile.value_s <= 1.25 * after


def test_counts_stay_bounded() -> None:
    """A million calls take the memory of two thousand."""
    quantile = Quantile()
    for _ in range(10 * HALVE_AT):
        quantile.observe(0.01)
    assert quantile.samples < HALVE_AT + 32
