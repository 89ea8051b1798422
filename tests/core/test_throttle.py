"""gRFC A6's retry throttling: failures take a token, successes bring a share of one, half stops retries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.throttle import Throttle


@pytest.mark.parametrize(
    ("tokens", "ratio", "message"),
    [
        (0, 0.1, "Throttle.max_tokens is 0; expected a whole number >= 1"),
        (1.5, 0.1, "Throttle.max_tokens is 1.5; expected a whole number >= 1"),
        (True, 0.1, "Throttle.max_tokens is True; expected a whole number >= 1"),
        (1, 0.0009, "Throttle.token_ratio is 0.0009; expected a number >= 0.001"),
        (1, -1, "Throttle.token_ratio is -1; expected a number >= 0.001"),
        (1, float("inf"), "Throttle.token_ratio is inf; expected a number >= 0.001, at most 1e+300"),
        (1, "1", "Throttle.token_ratio is '1'; expected a number >= 0.001"),
    ],
)
def test_a_bad_setting_is_named(tokens: int, ratio: float, message: str) -> None:
    """The error has field, value and what is accepted."""
    with pytest.raises((TypeError, ValueError)) as caught:
        Throttle(max_tokens=tokens, token_ratio=ratio)
    assert str(caught.value) == message


def test_retries_stop_at_half() -> None:
    """Of 10 tokens the fifth failure takes the last above half: no retry, until successes raise it again."""
    state = Throttle(max_tokens=10, token_ratio=0.1).new_state()
    allowed = []
    for _ in range(6):
        state.failed()
        allowed.append(state.withdraw(0.0))
    assert allowed == [True, True, True, True, False, False]
    for _ in range(10):
        assert not state.withdraw(0.0)
        state.succeeded()
    assert not state.withdraw(0.0)  # 5 again is not above half
    state.succeeded()
    assert state.withdraw(0.0)
    assert repr(state) == "<ThrottleState 5.1 of 10>"


def test_a_call_that_begins_and_a_look_change_nothing() -> None:
    """Only how attempts end counts."""
    state = Throttle(max_tokens=4, token_ratio=0.5).new_state()
    state.failed()
    for _ in range(20):
        state.deposit(1.0)
        assert state.withdraw(1.0)
        assert state.balance(1.0) == 1.0


@pytest.mark.parametrize(("ratio", "needed"), [(0.57, 2), (0.5466, 2), (0.001, 1000), (1, 1), (2.5, 1)])
def test_a_ratio_has_three_decimals(ratio: float, needed: int) -> None:
    """What lies behind the third is dropped, and no sum is short of what it was meant to be."""
    state = Throttle(max_tokens=1000, token_ratio=ratio).new_state()
    state.failed()
    full = state.balance(0.0) + 1
    for _ in range(needed - 1):
        state.succeeded()
        assert repr(state) != "<ThrottleState 1000 of 1000>"
    state.succeeded()
    assert repr(state) == "<ThrottleState 1000 of 1000>"
    assert state.balance(0.0) == full


@given(
    most=st.integers(1, 20),
    ratio=st.integers(1, 3000).map(lambda milli: milli / 1000),
    ends=st.lists(st.booleans(), max_size=100),
)
def test_it_is_a_clamped_counter(most: int, ratio: float, ends: list[bool]) -> None:
    """It counts as A6 says, never leaves 0 to ``max_tokens``; the balance says how many failures it stands."""
    state = Throttle(max_tokens=most, token_ratio=ratio).new_state()
    tokens = most * 1000
    for good in ends:
        if good:
            state.succeeded()
            tokens = min(most * 1000, tokens + round(ratio * 1000))
        else:
            state.failed()
            tokens = max(0, tokens - 1000)
        assert state.withdraw(0.0) == (tokens > most * 500)
        assert (state.balance(0.0) >= 1) == state.withdraw(0.0)
    left = int(state.balance(0.0))
    for _ in range(left):
        assert state.withdraw(0.0)
        state.failed()
    assert not state.withdraw(0.0)
