"""For how long refused clients stay away, by how much more is asked than can be done."""

from __future__ import annotations

from random import Random

import pytest

from lb.core.serving.demand import MOST_S, Demand


def demand(asked: int, refused: int, now: float = 10.0) -> Demand:
    """So many calls in the last second."""
    made = Demand()
    for number in range(asked):
        made.asked(now)
        if number < refused:
            made.refused(now)
    return made


def mean_s(made: Demand, now: float = 10.0) -> float:
    """The mean of what clients are told."""
    rng = Random(1)
    return sum(made.pushback_s(now, rng) for _ in range(2000)) / 2000


def test_nobody_is_sent_away_while_most_are_served() -> None:
    """Up to two refusals in three, the next server may be asked at once."""
    assert demand(300, 0).pushback_s(10.0, Random(1)) == 0.0
    assert demand(300, 200).pushback_s(10.0, Random(1)) == 0.0
    assert demand(300, 201).pushback_s(10.0, Random(1)) > 0.0


@pytest.mark.parametrize(("refused", "expected_s"), [(750, 0.3), (900, 0.9), (980, 4.9), (990, MOST_S), (1000, MOST_S)])
def test_the_more_is_refused_the_longer_they_stay_away(refused: int, expected_s: float) -> None:
    """A tenth of a second for each refusal per call that is served: at ten times the load about one second."""
    assert mean_s(demand(1000, refused)) == pytest.approx(expected_s, rel=0.05)


def test_they_do_not_come_back_together() -> None:
    """Each stays away for between half and one and a half of the mean."""
    made, rng = demand(1000, 900), Random(7)
    seen = [made.pushback_s(10.0, rng) for _ in range(1000)]
    assert min(seen) < 0.5
    assert max(seen) > 1.3
    assert all(0.45 <= one <= 1.35 for one in seen)


def test_few_calls_say_nothing() -> None:
    """Nineteen of nineteen refused is a small burst."""
    assert demand(19, 19).share(10.0) == 0.0
    assert demand(20, 20).share(10.0) == 1.0


def test_what_is_older_than_a_second_is_forgotten() -> None:
    """Then the server is asked again at once."""
    made = demand(1000, 1000, now=10.0)
    assert made.share(10.5) == 1.0
    assert made.share(11.1) == 0.0
    assert made.pushback_s(11.1, Random(1)) == 0.0


def test_calls_that_waited_are_refused_later_than_they_came() -> None:
    """A refusal may fall into a second without calls, and there are never more refusals than calls."""
    made = Demand()
    for _ in range(100):
        made.asked(10.0)
    for _ in range(100):
        made.refused(10.95)
    for _ in range(30):
        made.asked(11.5)
    assert made.share(11.5) == 1.0
    assert repr(made) == "<Demand 30 asked, 0 refused>"
