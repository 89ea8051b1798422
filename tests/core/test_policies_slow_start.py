"""Slow start: newcomers ramp up, in any policy, and nobody else notices."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lb.core.policies import P2C, LeastRequest, Policy, RoundRobin, SlowStart, WeightedRoundRobin
from tests.core.backends import Backend, backends, ids
from tests.core.fleet import Fleet, takes


def old_and_new(old: int, new: int, since: float = 1000.0) -> list[Backend]:
    """So many that stand for long, and so many that came at ``since``."""
    servers = backends([1] * (old + new))
    for at, server in enumerate(servers):
        server.ready_since = 0.0 if at < old else since
    return servers


def share(policy: SlowStart, servers: list[Backend], now: float, picks: int = 6000) -> float:
    """The part of the picks at one instant that the last one gets."""
    picker, rng = policy.picker(servers, None), Random(4)
    count = Counter(ids([picker.pick(None, now, rng) for _ in range(picks)]))
    return count[servers[-1].endpoint.id] / picks


@pytest.mark.parametrize("policy", [RoundRobin(), WeightedRoundRobin(), "random", LeastRequest(), P2C()])
@pytest.mark.parametrize(("age", "part"), [(0.0, 0.1), (1.0, 0.1), (5.0, 0.25), (10.0, 0.5), (19.0, 0.95), (20.0, 1.0)])
def test_the_share_rises_evenly(policy: Policy | str, age: float, part: float) -> None:
    """After a quarter of the window a quarter of its share, and never below a tenth, whatever the policy inside."""
    assert abs(share(SlowStart(policy=policy), old_and_new(3, 1), 1000.0 + age) - part / 4) < 0.02


def test_what_it_does_not_take_goes_to_the_warm_evenly() -> None:
    """Two warm and two warming: the warm get all the rest, half each."""
    picker, rng = SlowStart(policy=RoundRobin()).picker(old_and_new(2, 2), None), Random(4)
    count = Counter(ids([picker.pick(None, 1000.0, rng) for _ in range(8000)]))
    assert abs(count["c"] - 200) < 60
    assert abs(count["a"] - count["b"]) < 120


def test_while_all_are_new_nothing_happens() -> None:
    """A channel that starts uses all evenly, though some connected a moment later."""
    servers = old_and_new(0, 4)
    for at, server in enumerate(servers):
        server.ready_since = 1000.0 + at / 10
    picker, rng = SlowStart(policy=RoundRobin()).picker(servers, None), Random(4)
    assert Counter(ids([picker.pick(None, 1001.0, rng) for _ in range(400)])) == dict.fromkeys("abcd", 100)


def test_unknown_ages_are_warm() -> None:
    """Where nobody says since when a connection stands, nothing happens."""
    assert abs(share(SlowStart(policy=RoundRobin()), backends([1] * 4), 5.0) - 0.25) < 0.001


def test_once_all_are_warm_a_pick_is_the_inner_one() -> None:
    """It costs nothing any more: the picker's method is the inner picker's own."""
    servers = old_and_new(3, 1)
    picker, rng = SlowStart(policy=RoundRobin()).picker(servers, None), Random(4)
    picker.pick(None, 1019.0, rng)
    assert picker.pick.__self__ is picker  # type: ignore[attr-defined]
    picker.pick(None, 1021.0, rng)
    assert picker.pick.__self__ is picker.inner
    assert abs(Counter(ids([picker.pick(None, 1022.0, rng) for _ in range(40)]))["d"] - 10) <= 1


def test_who_became_warm_is_seen_within_a_second() -> None:
    """One after another: each joins those who take over, at its end of the window or soon after."""
    servers = old_and_new(1, 3)
    for at, server in enumerate(servers[1:]):
        server.ready_since = 1000.0 + at * 5
    picker, rng = SlowStart(policy=RoundRobin()).picker(servers, None), Random(4)
    picker.pick(None, 1010.0, rng)
    count = Counter(ids([picker.pick(None, 1021.0, rng) for _ in range(4000)]))
    assert abs(count["a"] - count["b"]) < 100  # both warm
    assert count["d"] < count["c"] < count["b"]


def test_the_place_inside_outlives_a_change() -> None:
    """A rebuild in the middle of a round goes on with it."""
    servers = old_and_new(4, 0)
    policy, rng = SlowStart(policy=RoundRobin()), Random(4)
    first = policy.picker(servers, None)
    done = ids([first.pick(None, 1000.0, rng) for _ in range(2)])
    second = policy.picker(servers, first)
    assert sorted(done + ids([second.pick(None, 1000.0, rng) for _ in range(2)])) == list("abcd")


def test_a_cold_endpoint_costs_less_latency() -> None:
    """A newcomer whose first 200 answers take 50 ms: with slow start fewer calls of the first second meet that."""

    def cold(with_start: bool) -> int:
        served = Counter[str]()
        inner = takes({})

        def service(server: Backend, rng: Random) -> tuple[float, object]:
            served[server.endpoint.id] += 1
            took, outcome = inner(server, rng)
            return (0.05 if server.endpoint.id == "d" and served["d"] < 200 else took), outcome

        policy: Policy = SlowStart(policy=RoundRobin()) if with_start else RoundRobin()
        fleet = Fleet(policy, old_and_new(3, 1), service)  # type: ignore[arg-type]
        fleet.run(500, 16)
        return sum(latency > 0.02 for latency in fleet.latencies)

    assert cold(True) < 0.3 * cold(False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_s": 0}, "SlowStart.window_s is 0; expected seconds > 0"),
        ({"minimum": 0}, "SlowStart.minimum is 0; expected a number > 0 and <= 1"),
        ({"minimum": 1.5}, "SlowStart.minimum is 1.5; expected a number > 0 and <= 1"),
        ({"policy": "best"}, "policy is 'best'; expected one of"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, object], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        SlowStart(**arguments)  # type: ignore[arg-type]
