"""Which calls cannot be answered in time."""

from __future__ import annotations

import pytest

from lb.core.quantile import GROWTH, LEAST_SAMPLES
from lb.core.serving.deadlines import Typical


def typical(*took_s: float, times: int = 200) -> Typical:
    """After so many calls of each duration."""
    made = Typical()
    for _ in range(times):
        for one in took_s:
            made.observe(one)
    return made


def test_nothing_is_hopeless_before_enough_is_known() -> None:
    """Whatever time is left, even none."""
    made = typical(0.2, times=LEAST_SAMPLES - 1)
    assert made.median_s is None
    assert not made.hopeless(0.0)
    assert "unknown" in repr(made)


@pytest.mark.parametrize("took_s", [0.0, 0.000_001, 0.001, 0.04, 0.2, 5.0])
def test_the_median_is_at_most_a_fifth_too_low(took_s: float) -> None:
    """And never too high: a call is not given up that could be answered. A time of zero is one as well."""
    median_s = typical(took_s).median_s
    assert median_s is not None
    assert took_s / GROWTH <= median_s <= max(took_s * (1 + 1e-9), 1e-5)


def test_it_is_the_median_that_counts() -> None:
    """A few slow calls change nothing."""
    made = typical(0.01, 0.01, 0.01, 3.0)
    assert not made.hopeless(0.01)
    assert made.hopeless(0.005)


def test_a_call_with_as_much_time_as_the_median_is_tried() -> None:
    """And one with clearly less is not."""
    made = typical(0.2)
    assert not made.hopeless(0.2)
    assert made.hopeless(0.2 / GROWTH**2)
    assert made.hopeless(0.0)
    assert made.hopeless(-1.0)


def test_one_in_twenty_is_let_through() -> None:
    """The last of each twenty, so that the estimate can recover."""
    made = typical(0.2)
    assert [made.hopeless(0.01) for _ in range(100)] == [*[True] * 19, False] * 5


def test_those_that_are_let_through_find_out_that_a_method_has_become_faster() -> None:
    """All calls have 50 ms left; the method took 200 ms, and takes 10 ms now. In the end none is refused."""
    made = typical(0.2, times=2000)
    refused = 0
    for _ in range(60_000):
        if made.hopeless(0.05):
            refused += 1
        else:
            made.observe(0.01)
    assert not made.hopeless(0.05)
    assert refused < 50_000
