"""Thousands of calls in virtual time through the real core: what failures are left, and what retries cost."""

from __future__ import annotations

from collections import Counter

from lb.core.budget import Budget
from lb.core.outcome import OK, Outcome
from lb.core.policies import WeightedRoundRobin
from lb.core.retry import Retry
from tests.core.rig import INTERNAL, UNAVAILABLE
from tests.core.simulation import NO_BREAKER, Simulation


def test_one_of_three_fails_and_no_call_does() -> None:
    """10,000 calls, one endpoint dead from the start: every call succeeds, and the breaker keeps retries few."""
    sim = Simulation(lambda name, _: UNAVAILABLE if name == "c" else OK, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=100)
    assert sim.answers == {"ok": 10_000}
    # Five failures open it; then probes after 1, 2, 4 s, and every 6 to 9 s from then on.
    assert 5 <= len(sim.retries) <= 20
    assert sim.within_budget()
    shares = Counter(name for _, name, _ in sim.attempts)
    assert abs(shares["a"] - shares["b"]) < 60
    assert shares["c"] == len(sim.retries)


def test_without_a_breaker_the_budget_bounds_the_retries() -> None:
    """A third of the calls would need a retry, the budget allows a fifth and 10 a second: the rest fails, at once."""
    sim = Simulation(
        lambda name, _: UNAVAILABLE if name == "c" else OK,
        weights=dict.fromkeys("abc", 1),
        breaker=NO_BREAKER,
    )
    sim.run(10_000, rate=1000)
    assert sim.answers.total() == 10_000
    # 3,333 needed. There to spend: 20 % of 10,000 calls, and the reserve of 100, some of which comes back
    # when the first retries are forgotten.
    assert 2_000 <= len(sim.retries) <= 2_120
    assert sim.within_budget()
    assert 0.11 <= sim.answers["failed"] / 10_000 <= 0.14
    assert set(sim.gave_up) == {"the retry budget is used up"}


def test_when_all_fail_retries_add_a_fifth() -> None:
    """A service that is down gets at most a fifth more traffic, and the reserve; not four times as much."""
    sim = Simulation(lambda *_: UNAVAILABLE, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=500)
    assert sim.answers == {"failed": 10_000}
    # 20 s: a fifth of the calls, and the reserve of 100 retries, which comes back once.
    assert len(sim.retries) <= 0.2 * 10_000 + 10 * 30
    assert len(sim.attempts) == 10_000 + len(sim.retries)
    assert sim.within_budget()


def test_a_budget_of_nothing_means_no_retries() -> None:
    """Ratio and floor at 0: each call has one attempt."""
    sim = Simulation(lambda *_: UNAVAILABLE, weights={"a": 1, "b": 1}, retry=Retry(budget=Budget(ratio=0, min_per_s=0)))
    sim.run(500, rate=100)
    assert (len(sim.attempts), sim.answers) == (500, {"failed": 500})


def test_an_endpoint_that_recovers_gets_its_share_back() -> None:
    """Down from 10 s to 20 s: no call fails; half a minute after it is back shares are by weight again, within 2 %."""

    def server(name: str, now: float) -> Outcome:
        return UNAVAILABLE if name == "c" and 1010 <= now < 1020 else OK

    sim = Simulation(server, weights={"a": 1, "b": 2, "c": 5}, policy=WeightedRoundRobin())
    sim.run(10_000, rate=100)
    assert sim.answers == {"ok": 10_000}
    for start, end, share_c in ((1000, 1010, 5 / 8), (1012, 1020, 0.0), (1040, 1100, 5 / 8)):
        stretch = Counter(name for at, name, _ in sim.attempts if start <= at < end)
        assert abs(stretch["c"] / stretch.total() - share_c) < 0.02, (start, end, stretch)
        assert abs(stretch["b"] / (stretch["a"] + stretch["b"]) - 2 / 3) < 0.02, (start, end, stretch)


def test_errors_that_are_not_retried_end_with_the_breaker() -> None:
    """INTERNAL is never retried: the failing endpoint costs what opens its breaker, and its probes, no more."""
    sim = Simulation(lambda name, _: INTERNAL if name == "c" else OK, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=100)
    assert 5 <= sim.answers["failed"] <= 20
    assert set(sim.gave_up) == {"INTERNAL is not retried"}
    assert sim.retries == []


def test_a_simulation_repeats() -> None:
    """The same seed gives the same attempts at the same instants."""

    def run() -> list[tuple[float, str, int]]:
        sim = Simulation(lambda name, _: UNAVAILABLE if name == "c" else OK, weights=dict.fromkeys("abc", 1))
        sim.run(1_000, rate=200)
        return sim.attempts

    assert run() == run()
