"""Another endpoint for a retry or a hedge: among those that may be picked, and the policy's own first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.candidate import Candidate
from lb.core.concurrency import ConcurrencyLimit
from lb.core.endpoint import Endpoint, Resolution
from lb.core.outcome import OK
from lb.core.policies import (
    Policy,
    SlowStart,
    Subset,
    ZoneAware,
)
from tests.core.rig import (
    CONNECTING,
    READY,
    STEADY,
    Rig,
)

# ---- a retry goes elsewhere ----


def test_tried_endpoints_are_avoided_while_others_are_admitted() -> None:
    """Whatever the policy would say; when all were tried, any is taken."""
    rig = Rig("abc")
    a, b, c = (rig.candidate(name) for name in "abc")
    assert {rig.pick([a]).endpoint_id for _ in range(30)} == {"b", "c"}
    assert {rig.pick([a, c]).endpoint_id for _ in range(10)} == {"b"}
    assert {rig.pick([a, b, c]).endpoint_id for _ in range(30)} == {"a", "b", "c"}


def test_those_who_take_over_share_it() -> None:
    """The calls of one failing endpoint do not all go to the same other one."""
    rig = Rig("abcd")
    a = rig.candidate("a")
    shares = Counter(rig.pick([a]).endpoint_id for _ in range(600))
    assert set(shares) == {"b", "c", "d"}
    assert min(shares.values()) > 150


def test_elsewhere_means_among_the_admitted() -> None:
    """A retry goes neither to an open breaker nor to a weight of 0, rather to the same endpoint again."""
    rig = Rig("abcd", weights=[1, 1, 0, 1])
    rig.trip("b")
    rig.connect("d", CONNECTING)
    a = rig.candidate("a")
    assert {rig.pick([a]).endpoint_id for _ in range(10)} == {"a"}


# ---- another endpoint, where the policy has its own ----


@pytest.mark.parametrize("inside", ["round_robin", "p2c"])
@pytest.mark.parametrize(
    "policy",
    [
        lambda inside: ZoneAware(zone="home", policy=inside),
        lambda inside: SlowStart(policy=ZoneAware(zone="home", policy=inside)),
        lambda inside: Subset(size=3, policy=inside, client=0),
        lambda inside: ZoneAware(zone="home", policy=Subset(size=3, policy=inside, client=0)),
    ],
    ids=["zone", "slow start, zone", "subset", "zone, subset"],
)
def test_another_endpoint_is_one_of_the_policys_own_while_there_is_one(
    policy: Callable[[str], Policy], inside: str
) -> None:
    """Retries, hedges, and who finds its endpoint full: at home, or in the subset, then anywhere."""
    balancer = Balancer("x", policy(inside), STEADY, Random(1), limit=ConcurrencyLimit(limit=1))
    zones = ["home"] * 3 + ["away"] * 9
    balancer.update(Resolution(tuple(Endpoint(f"e{i}:1", zone=zone) for i, zone in enumerate(zones))))
    for candidate in balancer.candidates:
        balancer.set_connectivity(candidate, READY, 0.0)
    own: set[Candidate] = set()
    for _ in range(20):
        first = balancer.pick(None, 0.0)
        assert isinstance(first, Attempt)
        balancer.ended(first, OK, 0.0)
        own.add(first.candidate)
    assert len(own) == 3
    tried: list[Candidate] = []
    for number in range(12):
        another = balancer.pick_another(None, 0.0, 2, "", tried)
        assert isinstance(another, Attempt)
        balancer.ended(another, OK, 0.0)
        assert (another.candidate in own) is (number < 3)
        tried.append(another.candidate)
    held = []
    for number in range(12):
        full = balancer.pick(None, 0.0)
        assert isinstance(full, Attempt)
        assert (full.candidate in own) is (number < 3)
        held.append(full)
    assert len({attempt.candidate for attempt in held}) == 12
