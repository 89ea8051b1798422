"""P2C on peak EWMA: what is measured, what a slow, a failing or a new endpoint gets, on a virtual clock."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from grpc import StatusCode

from lb.core.outcome import OK, Origin, Outcome, classify
from lb.core.policies import P2C, LeastRequest, RoundRobin
from lb.core.policies.peak_ewma import FALL, PeakEwma
from tests.core.backends import Backend, backend, backends, ids
from tests.core.fleet import Fleet, takes

FAILED = classify(StatusCode.INTERNAL)
CANCELLED = classify(StatusCode.CANCELLED, origin=Origin.CALLER)
REFUSED = classify(StatusCode.UNAVAILABLE, pushback="0")


def measured(latencies: dict[str, float], now: float = 0.0) -> list[Backend]:
    """Endpoints that answered once each, by name."""
    servers = [backend(name) for name in latencies]
    for server, latency in zip(servers, latencies.values(), strict=True):
        P2C().ended(server, OK, latency, now)
    return servers


def count(servers: list[Backend], now: float, draws: int = 4000) -> Counter[str]:
    """How often each is picked while nothing changes."""
    picker, rng = P2C().picker(servers, None), Random(3)
    return Counter(ids([picker.pick(None, now, rng) for _ in range(draws)]))


def test_a_latency_rises_at_once_and_falls_slowly() -> None:
    """A quarter of the way up with one answer; down a 32nd with each, or by what time took off, if that is more."""
    peak = PeakEwma(0.010, 100.0, 10.0)
    peak.observe(0.110, 100.0)
    assert peak.latency_s == pytest.approx(0.035)
    peak.observe(0.010, 100.0)
    assert peak.latency_s == pytest.approx(0.035 - FALL * 0.025)
    peak.observe(0.010, 1000.0)
    assert peak.latency_s == pytest.approx(0.010)


def test_reading_projects_and_changes_nothing() -> None:
    """A latency read later is lower, by e in ten seconds; the record and all later picks stay as they were."""
    peak = PeakEwma(0.1, 100.0, 10.0)
    assert peak.read(110.0) == pytest.approx(0.1 / 2.718281828)
    servers = measured({"a": 0.01, "b": 0.02, "c": 0.03})
    before = [(s.stats.latency_s, s.stats.stamp) for s in servers]
    assert count(servers, 50.0) == count(servers, 50.0)
    assert [(s.stats.latency_s, s.stats.stamp) for s in servers] == before
    assert (peak.latency_s, peak.stamp) == (0.1, 100.0)


def test_the_faster_one_wins_and_load_counts() -> None:
    """Of two the faster; with nine calls in flight on it and three times the speed, the other."""
    servers = measured({"a": 0.01, "b": 0.03})
    assert set(count(servers, 1.0)) == {"a"}
    servers[0].in_flight = 9
    assert set(count(servers, 1.0)) == {"b"}


def test_one_ten_times_slower_leaves_the_99th_percentile_alone() -> None:
    """64 in flight over three: p99 within 1.2 of three healthy ones, and the slow one gets less than 0.5 %.

    From the first call on; round robin and least request are far off.
    """
    slow = {"a": 0.05}
    healthy = Fleet(P2C(), backends([1] * 3), takes({})).run(30_000, 64)
    ours = Fleet(P2C(), backends([1] * 3), takes(slow)).run(30_000, 64)
    assert ours.quantile(0.99) <= 1.2 * healthy.quantile(0.99)
    assert ours.share("a") < 0.005
    for other in (LeastRequest(), RoundRobin()):
        assert Fleet(other, backends([1] * 3), takes(slow)).run(30_000, 64).quantile(0.99) > 5 * healthy.quantile(0.99)


def test_rare_outliers_do_not_send_calls_to_the_slow_one() -> None:
    """One answer in a thousand takes twenty times as long: p99 stays within 1.2 all the same."""

    def service(server: Backend, rng: Random) -> tuple[float, Outcome]:
        took = (0.05 if server.endpoint.id == "a" else 0.005) * rng.uniform(0.75, 1.25)
        return took * (20 if rng.random() < 0.001 else 1), OK

    fleet = Fleet(P2C(), backends([1] * 3), service).run(40_000, 64)
    assert fleet.quantile(0.99) <= 1.2 * 0.00625
    assert fleet.share("a") < 0.01


def test_it_becomes_slow_under_load_and_comes_back() -> None:
    """When it slows down its share falls below a hundredth; when it is fast again it gets its third again."""
    seconds = {"a": 0.005}
    fleet = Fleet(P2C(), backends([1] * 3), takes(seconds)).run(5_000, 64)
    assert abs(fleet.share("a") - 1 / 3) < 0.05
    seconds["a"] = 0.05
    fleet.run(2_000, 64).forget()
    assert fleet.run(20_000, 64).share("a") < 0.01
    seconds["a"] = 0.005
    before = fleet.now
    while fleet.now < before + 40:
        fleet.run(5_000, 64)
    fleet.forget()
    assert abs(fleet.run(20_000, 64).share("a") - 1 / 3) < 0.05


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_who_fails_fast_does_not_win(part: float) -> None:
    """One answers at once, with an error (always, or every second time): it gets less than a hundredth."""

    def service(server: Backend, rng: Random) -> tuple[float, Outcome]:
        if server.endpoint.id == "a" and rng.random() < part:
            return 0.0002, FAILED
        return 0.005 * rng.uniform(0.75, 1.25), OK

    fleet = Fleet(P2C(), backends([1] * 3), service).run(500, 16)
    fleet.forget()
    assert fleet.run(20_000, 16).share("a") < 0.01


@pytest.mark.parametrize(("chance", "part"), [(1e-4, 0.02), (1e-3, 0.25)])
def test_rare_failures_leave_the_loads_even(chance: float, part: float) -> None:
    """On each one call in so many fails: in most stretches of 1000 calls nobody has more than 45 percent.

    (Were an endpoint out for a minute with each failure, there would always be one who bears half of it or more.)
    """

    def service(server: Backend, rng: Random) -> tuple[float, Outcome]:
        if rng.random() < chance:
            return 0.0005, FAILED
        return 0.005 * rng.uniform(0.75, 1.25), OK

    fleet = Fleet(P2C(), backends([1] * 3), service, seed=5).run(2_000, 16)
    most = []
    for _ in range(60):
        fleet.forget()
        fleet.run(1_000, 16)
        most.append(max(fleet.share(name) for name in "abc"))
    assert sum(share > 0.45 for share in most) <= part * len(most)


def test_a_newcomer_is_neither_flooded_nor_starved() -> None:
    """Not measured, it gets its share of what starts, and never more in flight than others hold."""
    fleet = Fleet(P2C(), backends([1] * 9), takes({})).run(5_000, 90)
    new = backend("new")
    fleet.change([*fleet.servers, new])
    fleet.forget()
    most = 0
    for _ in range(60):
        fleet.run(1, 90)
        most = max(most, new.in_flight)
    assert new.stats is None
    assert 5 <= fleet.count["new"] <= 25
    assert most <= 1.5 * max(server.in_flight for server in fleet.servers if server is not new)
    fleet.run(2_000, 90).forget()
    assert abs(fleet.run(20_000, 90).share("new") - 0.1) < 0.03


def test_what_ends_without_a_verdict_may_only_raise_the_latency() -> None:
    """A cancelled call took at least that long; a quick refusal says nothing."""
    (server,) = measured({"a": 0.010})
    P2C().ended(server, CANCELLED, 0.001, 1.0)
    P2C().ended(server, REFUSED, 0.0, 1.0)
    assert server.stats.latency_s == 0.010
    P2C().ended(server, CANCELLED, 0.110, 1.0)
    assert server.stats.latency_s == pytest.approx(0.035)


def test_a_refusal_measures_nothing_of_a_new_one() -> None:
    """An endpoint that only ever refused is still not measured; one whose calls are given up took that long."""
    server = backend("a")
    P2C().ended(server, REFUSED, 0.0, 1.0)
    before = server.stats
    P2C().ended(server, CANCELLED, 0.2, 1.0)
    assert (before, server.stats.latency_s) == (None, 0.2)


def test_equal_latencies_give_shares_by_weight() -> None:
    """Weights 1, 2, 5 of equal speed hold calls in flight by weight, and get them by weight."""
    fleet = Fleet(P2C(), backends([1, 2, 5]), takes({})).run(2_000, 64)
    fleet.forget()
    fleet.run(20_000, 64)
    for name, weight in zip("abc", (1, 2, 5), strict=True):
        assert abs(fleet.share(name) - weight / 8) < 0.05


def test_survivors_keep_what_is_known_of_them() -> None:
    """A change of the set touches no record."""
    servers = measured({"a": 0.01, "b": 0.02})
    records = [server.stats for server in servers]
    first = P2C().picker(servers, None)
    P2C().picker([*servers, backend("c", 3)], first).pick(None, 5.0, Random(1))
    assert [server.stats for server in servers] == records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay_s": 0}, r"P2C.decay_s is 0; expected seconds > 0"),
        ({"decay_s": float("nan")}, r"P2C.decay_s is nan; expected seconds > 0"),
        ({"failure_s": -1}, r"P2C.failure_s is -1; expected seconds >= 0"),
        ({"failure_s": "1"}, r"P2C.failure_s is '1'; expected seconds >= 0"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, float], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        P2C(**arguments)
