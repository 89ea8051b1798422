"""Zone aware: home while there is room, the excess abroad, and everything abroad when home is gone."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lb.core.endpoint import Endpoint
from lb.core.outcome import OK
from lb.core.policies import P2C, LeastRequest, RingHash, RoundRobin, ZoneAware
from tests.core.backends import Backend, ids
from tests.core.fleet import Fleet, takes


def zoned(zones: str, weights: list[int] | None = None) -> list[Backend]:
    """One endpoint a letter, in the zone of that letter; named by letter and number."""
    return [
        Backend(Endpoint(f"{zone}{i}:1", id=f"{zone}{i}", zone=zone), (weights or [1] * len(zones))[i])
        for i, zone in enumerate(zones)
    ]


def by_zone(fleet: Fleet) -> Counter[str]:
    """Calls in flight by zone."""
    count = Counter[str]()
    for server in fleet.servers:
        count[server.endpoint.zone] += server.in_flight
    return count


@pytest.mark.parametrize("policy", [None, "random", LeastRequest(), P2C()])
def test_below_the_limit_nothing_leaves(policy: object) -> None:
    """Two at home and four abroad, 20 in flight: all calls stay."""
    fleet = Fleet(ZoneAware(zone="a", policy=policy, in_flight=30), zoned("aabbcc"), takes({})).run(2000, 20)  # type: ignore[arg-type]
    assert by_zone(fleet) == {"a": 20, "b": 0, "c": 0}
    assert {name[0] for name in fleet.count} == {"a"}


@pytest.mark.parametrize("load", [30, 60, 100])
def test_the_excess_leaves_and_home_stays_full(load: int) -> None:
    """Two endpoints full at ten each: 20 stay, what is beyond leaves, evenly by the inner policy."""
    fleet = Fleet(ZoneAware(zone="a", policy=RoundRobin(), in_flight=10), zoned("aabbcccc"), takes({})).run(3000, load)
    assert abs(by_zone(fleet)["a"] - max(20, load / 4)) <= 4
    away = [server.in_flight for server in fleet.servers if server.endpoint.zone != "a"]
    assert max(away) - min(away) <= 6


def test_when_all_are_full_all_are_loaded_alike() -> None:
    """300 in flight over six that are full at ten: 50 each, within a tenth."""
    fleet = Fleet(ZoneAware(zone="a", policy=LeastRequest(), in_flight=10), zoned("aabbcc"), takes({})).run(3000, 300)
    assert all(abs(server.in_flight - 50) <= 5 for server in fleet.servers)


def test_fullness_goes_by_weight() -> None:
    """Home has weights 1 and 3, all average 2: full at 5 and 15 of ten. 16 stay; of 60 the ratio stays."""
    servers = zoned("aabb", [1, 3, 2, 2])
    fleet = Fleet(ZoneAware(zone="a", in_flight=10), servers, takes({})).run(3000, 16)
    assert by_zone(fleet)["b"] <= 2
    light, heavy = fleet.run(3000, 60).servers[:2]
    assert abs(heavy.in_flight / light.in_flight - 3) < 1


def test_a_zone_that_loses_endpoints_leaves_the_more_to_others() -> None:
    """One of three at home goes: the two are full, and the rest leaves."""
    servers = zoned("aaabbb")
    fleet = Fleet(ZoneAware(zone="a", in_flight=10), servers, takes({})).run(1000, 30)
    assert by_zone(fleet)["b"] <= 3
    fleet.change(servers[1:])
    fleet.run(1000, 30)
    assert abs(by_zone(fleet)["b"] - 10) <= 3


@pytest.mark.parametrize(("zones", "zone"), [("bbcc", "a"), ("aaaa", "a"), ("", "x")])
def test_one_side_may_be_missing(zones: str, zone: str) -> None:
    """Without endpoints at home all others are used; without others home takes everything."""
    servers = zoned(zones or "ab")
    picker, rng = ZoneAware(zone=zone, policy=RoundRobin(), in_flight=1).picker(servers, None), Random(1)
    for server in servers:
        server.in_flight = 100
    assert Counter(ids([picker.pick(None, 0.0, rng) for _ in range(4 * len(servers))])) == dict.fromkeys(
        ids(servers), 4
    )


def test_each_side_goes_on_where_it_was() -> None:
    """A change abroad does not disturb the turn at home."""
    servers = zoned("aaaab")
    policy, rng = ZoneAware(zone="a", policy=RoundRobin()), Random(1)
    first = policy.picker(servers, None)
    done = ids([first.pick(None, 0.0, rng) for _ in range(2)])
    second = policy.picker(servers[:4], first)
    assert sorted(done + ids([second.pick(None, 0.0, rng) for _ in range(2)])) == ids(servers[:4])


def test_hooks_are_those_of_the_policy_inside() -> None:
    """P2C measures through it; round robin has none, and so has it."""
    server = zoned("a")[0]
    ZoneAware(zone="a", policy=P2C()).ended(server, OK, 0.5, 1.0)
    assert server.stats.latency_s == 0.5
    assert not hasattr(ZoneAware(zone="a", policy=RoundRobin()), "ended")
    assert ZoneAware(zone="a", policy=RingHash(key="user")).needs_metadata
    assert ZoneAware(zone="a", policy="p2c").name == "zone_aware(p2c)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zone": ""}, "ZoneAware.zone is ''; expected a string that is not empty"),
        ({"zone": "a", "in_flight": 0}, "ZoneAware.in_flight is 0; expected a whole number >= 1"),
        ({"zone": "a", "policy": "best"}, "policy is 'best'; expected one of"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, object], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        ZoneAware(**arguments)  # type: ignore[arg-type]
