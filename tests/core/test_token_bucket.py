"""The token bucket: never too many, and waiting as told is enough."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.token_bucket import TokenBucket

rates = st.floats(0.1, 1000)
bursts = st.floats(1, 50)
starts = st.floats(0, 1e6)
steps = st.lists(st.floats(0, 3), min_size=1, max_size=60)


def test_burst_then_rate() -> None:
    """A full bucket gives its burst at once, then one token each 1/rate seconds."""
    bucket = TokenBucket(rate=10, burst=2)
    assert [bucket.take(5.0), bucket.take(5.0)] == [0.0, 0.0]
    assert bucket.take(5.0) == pytest.approx(0.1)
    assert bucket.take(5.05) == pytest.approx(0.05)
    assert bucket.take(5.1) == 0.0


def test_refusal_takes_nothing() -> None:
    """Asking in vain a hundred times does not postpone the next token."""
    bucket = TokenBucket(rate=1, burst=1)
    bucket.take(0.0)
    for i in range(100):
        assert bucket.take(i / 200) > 0
    assert bucket.take(1.0) == 0.0


def test_available_is_projected() -> None:
    """Reading projects to the given instant and changes nothing; it never exceeds the burst."""
    bucket = TokenBucket(rate=2, burst=4)
    bucket.take(0.0, 4)
    assert bucket.available(0.0) == pytest.approx(0)
    assert bucket.available(1.5) == pytest.approx(3)
    assert bucket.available(99.0) == 4
    assert bucket.available(0.0) == pytest.approx(0)


@settings(deadline=None)
@given(rates, bursts, starts, steps)
def test_never_more_than_burst_plus_rate(rate: float, burst: float, start: float, waits: list[float]) -> None:
    """Over any window from any grant on, at most burst + rate x its length was given out."""
    bucket = TokenBucket(rate, burst)
    now, grants = start, []
    for wait in waits:
        now += wait
        while bucket.take(now) == 0.0:
            grants.append(now)
    for i, first in enumerate(grants):
        for j in range(i, len(grants)):
            assert j - i + 1 <= burst + rate * (grants[j] - first + 1e-6) + 1e-6


@settings(deadline=None)
@given(rates, bursts, starts, st.lists(st.floats(0.01, 1), min_size=1, max_size=40))
def test_waiting_as_told_is_enough(rate: float, burst: float, start: float, amounts: list[float]) -> None:
    """Whoever waits exactly the returned seconds gets the tokens, whatever was rounded."""
    bucket = TokenBucket(rate, burst)
    now = start
    for amount in amounts:
        wait = bucket.take(now, amount)
        if wait:
            now += wait
            assert bucket.take(now, amount) == 0.0


@settings(deadline=None)
@given(rates, bursts, starts, st.floats(-5, 0))
def test_clock_going_back_is_harmless(rate: float, burst: float, start: float, back: float) -> None:
    """An earlier instant gives no tokens away and breaks nothing."""
    bucket = TokenBucket(rate, burst)
    while bucket.take(start) == 0.0:
        pass
    assert bucket.take(start + back) > 0


@pytest.mark.parametrize(
    ("rate", "burst", "name"),
    [(0, 1, "rate"), (-1, 1, "rate"), (float("nan"), 1, "rate"), (1, 0, "burst"), (1, float("inf"), "burst")],
)
def test_bad_settings(rate: float, burst: float, name: str) -> None:
    """The error names the setting and what is accepted."""
    with pytest.raises(ValueError, match=rf"TokenBucket.{name} is .*expected a number > 0"):
        TokenBucket(rate, burst)


@pytest.mark.parametrize("n", [0, -1, 3])
def test_bad_amount(n: float) -> None:
    """More than the burst would wait for ever, so it is refused at once."""
    with pytest.raises(ValueError, match="n is"):
        TokenBucket(1, 2).take(0.0, n)
