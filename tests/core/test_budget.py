"""The retry budget: retries are bounded by a share of the calls and a floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.budget import Budget

ACTIONS = st.lists(st.tuples(st.sampled_from(["call", "retry"]), st.integers(0, 8)), max_size=200)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("ratio", -0.1, ">= 0"),
        ("ratio", float("nan"), ">= 0"),
        ("ratio", True, ">= 0"),
        ("min_per_s", float("inf"), ">= 0, at most 1e+09"),
        ("min_per_s", "10", ">= 0"),
        ("ttl_s", 0, "> 0"),
        ("ttl_s", None, "> 0"),
    ],
)
def test_a_bad_setting_is_named(field: str, value: object, accepted: str) -> None:
    """The error has field, value and what is accepted."""
    with pytest.raises((TypeError, ValueError)) as error:
        Budget(**{field: value})  # type: ignore[arg-type]  # the point of the test
    unit = "seconds" if field == "ttl_s" else "a number"
    assert str(error.value) == f"Budget.{field} is {value!r}; expected {unit} {accepted}"


def test_the_reserve_is_there_from_the_start() -> None:
    """10 a second for 10 s are 100 retries, at once if need be, and back 10 s later."""
    state = Budget().new_state()
    assert sum(state.withdraw(0.0) for _ in range(200)) == 100
    assert not state.withdraw(8.9)
    assert sum(state.withdraw(10.0) for _ in range(200)) == 100


@pytest.mark.parametrize("ratio", [0.2, 0.29, 0.1, 1.0, 2.0])
def test_a_share_of_the_calls_may_be_retried(ratio: float) -> None:
    """100 calls buy 100 * ratio retries, to the last one whatever the rounding, until they are forgotten."""
    for now, expected in ((1.0, round(100 * ratio)), (11.5, 0)):
        state = Budget(ratio=ratio, min_per_s=0).new_state()
        for _ in range(100):
            state.deposit(0.5)
        assert sum(state.withdraw(now) for _ in range(300)) == expected


def test_nothing_allowed_means_nothing() -> None:
    """With ratio and floor 0 no call is ever retried."""
    state = Budget(ratio=0, min_per_s=0).new_state()
    state.deposit(0.0)
    assert not state.withdraw(0.0)


def test_balance_only_looks() -> None:
    """Reading the balance, now or for later, changes nothing; it is never negative."""
    state = Budget(ratio=0.5, min_per_s=0.1).new_state()
    for _ in range(4):
        state.deposit(0.0)
    assert (state.balance(0.0), state.balance(50.0), state.balance(0.0)) == (3.0, 1.0, 3.0)
    assert [state.withdraw(0.0) for _ in range(4)] == [True, True, True, False]
    assert state.balance(0.0) == 0.0
    assert "newest=4/3" in repr(state)


@given(actions=ACTIONS, ratio=st.sampled_from([0.0, 0.2, 0.5, 1.5]), floor=st.sampled_from([0.0, 0.3, 2.0]))
def test_retries_never_exceed_calls_times_ratio_plus_the_reserve(
    actions: list[tuple[str, int]], ratio: float, floor: float
) -> None:
    """A retry is granted when with it those of 9 s are at most the reserve and the share of 10 s, else refused."""
    settings = Budget(ratio=ratio, min_per_s=floor)
    state, now = settings.new_state(), 0.0
    calls: list[float] = []
    granted: list[float] = []
    for action, quarters in actions:
        now += quarters / 4
        if action == "call":
            state.deposit(now)
            calls.append(now)
            continue
        before = state.balance(now)
        if state.withdraw(now):
            granted.append(now)
            assert state.balance(now) == pytest.approx(before - 1, abs=1e-6)
            recent = sum(at > now - 9 for at in granted)
            assert recent <= floor * 10 + ratio * sum(at > now - 10 for at in calls) + 1e-6
        else:
            assert before < 1
            assert state.balance(now) == before
