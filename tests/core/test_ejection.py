"""How much of a pool breakers may take out of use."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.candidate import Candidate
from lb.core.ejection import Ejection
from tests.core.rig import endpoint


class Refusing:
    """A breaker as the pool sees it."""

    def __init__(self, retry_at: float | None = None, openings: int = 1) -> None:
        self.retry_at = retry_at
        self.openings = openings


def pool_of(size: int, out: int, openings: Any = ()) -> tuple[list[Candidate], list[Candidate]]:
    """So many candidates, of which the first ``out`` refuse, the very first one for the longest."""
    ready: list[Candidate] = []
    for at in range(size):
        breaker: Any = Refusing(100.0 - at, openings[at] if openings else 1)
        ready.append(Candidate(endpoint(str(at)), breaker))
    return ready, ready[:out]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_share", 1.1),
        ("max_share", -0.1),
        ("panic_share", "half"),
        ("panic_share", True),
        ("panic_share", float("nan")),
        ("small", -1),
        ("small", 2.5),
        ("small", False),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    """By class, field and value."""
    with pytest.raises((TypeError, ValueError), match=f"Ejection.{field} is {value!r}"):
        Ejection(**{field: value})


def test_nobody_refuses() -> None:
    """All are used, and this is no panic."""
    ready, refusing = pool_of(3, 0)
    assert Ejection().pool(ready, refusing, 3) == (ready, "")


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_a_small_pool_may_lose_all_but_one(size: int) -> None:
    """A share would round down to none of two, or keep broken ones in use."""
    ready, refusing = pool_of(size, size - 1)
    assert Ejection().pool(ready, refusing, size) == (ready[-1:], "")


@pytest.mark.parametrize("size", [1, 2, 20])
def test_never_the_last_one(size: int) -> None:
    """All refuse: all are used, and it is panic."""
    ready, refusing = pool_of(size, size)
    assert Ejection().pool(ready, refusing, size) == (ready, "every breaker is open, all are used")


def test_in_panic_those_that_never_failed_a_probe_come_first() -> None:
    """One endpoint is really gone (three openings); the others opened once, with the client's own stall."""
    ready, refusing = pool_of(3, 3, openings=(1, 3, 1))
    assert Ejection().pool(ready, refusing, 3) == (
        [ready[0], ready[2]],
        "every breaker is open, the 2 of 3 that failed least are used",
    )


@pytest.mark.parametrize(("fewest", "used"), [(1, 20), (9, 20), (10, 10), (20, 20)])
def test_in_a_larger_pool_those_are_half_of_it_or_all_are_used(fewest: int, used: int) -> None:
    """A service is down for long: chance leaves a single one with the fewest openings, which would get every call."""
    ready, refusing = pool_of(20, 20, openings=[7] * fewest + [8] * (20 - fewest))
    pool, panic = Ejection().pool(ready, refusing, 20)
    assert (list(pool), bool(panic)) == (ready[:used], True)


def test_in_a_larger_pool_half_may_go_and_who_returns_soonest_stays() -> None:
    """Eight of ten refuse: five are out, those that refuse longest."""
    ready, refusing = pool_of(10, 8)
    pool, panic = Ejection(panic_share=0).pool(ready, refusing, 10)
    assert (list(pool), panic) == (ready[5:], "")


@pytest.mark.parametrize(
    ("size", "share", "out"),
    [(6, 0.1, 1), (9, 0.1, 1), (10, 0.1, 1), (20, 0.1, 2), (100, 0.29, 29), (6, 1e-9, 1), (6, 0, 0), (20, 0, 0)],
)
def test_a_small_share_lets_one_go(size: int, share: float, out: int) -> None:
    """A share that rounds down to nobody means one, as with Envoy and grpc-go; only a share of 0 means nobody."""
    ready, refusing = pool_of(size, size // 2)
    pool, panic = Ejection(max_share=share).pool(ready, refusing, size)
    assert (size - len(pool), panic) == (out, "")


def test_too_few_of_a_larger_pool_mean_panic() -> None:
    """Of ten, five are connected, and one of these refuses: four are less than half of all."""
    ready, refusing = pool_of(6, 2)
    why = "only 4 of 10 could be used (4 lost, 2 open breakers), all 6 connected ones are used"
    assert Ejection().pool(ready, refusing, 10) == (ready, why)
    assert Ejection().pool(ready, refusing, 8) == (ready[2:], "")
    assert Ejection(panic_share=0).pool(ready, refusing, 10) == (ready[2:], "")


@given(
    size=st.integers(1, 30),
    out=st.integers(0, 30),
    unconnected=st.integers(0, 30),
    max_share=st.floats(0, 1),
    panic_share=st.floats(0, 1),
    small=st.integers(0, 10),
)
def test_what_always_holds(
    size: int, out: int, unconnected: int, max_share: float, panic_share: float, small: int
) -> None:
    """Somebody is used, in order, nobody twice; who does not refuse is used; the share is kept."""
    ready, refusing = pool_of(size, min(out, size))
    settings = Ejection(max_share=max_share, panic_share=panic_share, small=small)
    pool, panic = settings.pool(ready, refusing, size + unconnected)
    assert pool
    assert [c for c in ready if c in pool] == list(pool)
    if not panic:
        assert all(c in pool for c in ready if c not in refusing)
        assert size <= small or size - len(pool) <= (max(1, size * max_share + 1e-9) if max_share else 0)


def test_ten_thousand_endpoints_cost_no_square() -> None:
    """Most of them refuse, and many of these are kept: it takes the time of a sort."""
    ready, refusing = pool_of(10_000, 9_000)
    least = min(_timed(ready, refusing) for _ in range(3))
    assert least < 0.5  # 5 ms or so; a square would take seconds


def _timed(ready: list[Candidate], refusing: list[Candidate]) -> float:
    started = time.thread_time()
    Ejection(panic_share=0).pool(ready, refusing, 10_000)
    return time.thread_time() - started
