"""Which endpoints may be picked: the rule, line by line, through a balancer."""

from __future__ import annotations

from collections import Counter
from math import inf

from lb.core.policies import (
    WeightedRoundRobin,
)
from tests.core.rig import (
    CONNECTING,
    FAILING,
    IDLE,
    INTERNAL,
    Rig,
)

# ---- which endpoints are admitted ----


def test_only_ready_endpoints_are_picked() -> None:
    """Idle, connecting and failing ones get nothing while one is READY."""
    rig = Rig("abcd")
    rig.connect("a", IDLE)
    rig.connect("b", CONNECTING)
    rig.connect("c", FAILING)
    assert set(rig.picked(20)) == {"d"}


def test_an_open_breaker_keeps_its_endpoint_out() -> None:
    """Others take its calls."""
    rig = Rig("abc")
    rig.trip("b")
    assert set(rig.picked(30)) == {"a", "c"}


def test_when_every_breaker_is_open_all_are_used() -> None:
    """The last endpoint is never refused: panic. It ends when one is admitted."""
    rig = Rig("abc")
    for name in "abc":
        rig.trip(name)
    assert set(rig.picked(9)) == {"a", "b", "c"}
    assert rig.panic
    rig.clock.advance(1.0)
    assert rig.picked(1)
    assert not rig.panic


def test_one_endpoint_alone_is_always_used() -> None:
    """However often it fails."""
    rig = Rig("a")
    assert rig.picked(50, INTERNAL) == ["a"] * 50


def test_endpoints_that_are_not_ready_do_not_count_for_panic() -> None:
    """All *READY* ones refused is enough."""
    rig = Rig("ab")
    rig.connect("b", CONNECTING)
    rig.trip("a")
    assert rig.picked(3) == ["a"] * 3
    assert rig.panic


def test_endpoints_that_were_never_connected_are_not_part_of_the_pool() -> None:
    """A name of 6 hosts, whose 6 AAAA records lead nowhere: one host that fails is left out all the same."""
    rig = Rig("abcdefABCDEF")
    rig.update("")
    rig.update("abcdefABCDEF")
    for name in "abcdef":
        rig.connect(name)
    for name in "ABCDEF":
        rig.connect(name, FAILING, "no route to host")
    rig.trip("a")
    assert not rig.panic
    assert set(rig.picked(20)) == set("bcdef")


def test_endpoints_that_were_connected_once_are_part_of_the_pool() -> None:
    """Half of 12 are lost, and one of the others fails: 5 would bear the load of 12, so all 6 are used."""
    rig = Rig("abcdefABCDEF")
    for name in "ABCDEF":
        rig.connect(name, FAILING, "connection refused")
    rig.trip("a")
    assert set(rig.picked(20)) == set("abcdef")
    assert rig.balancer.admission(rig.now).panic == (
        "only 5 of 12 could be used (6 lost, 1 open breakers), all 6 connected ones are used"
    )


def test_it_knows_until_when_an_admission_holds() -> None:
    """The instant of the first open breaker, or never; asking changes nothing."""
    rig = Rig("abc")
    assert rig.balancer.admission(rig.now).recheck_at == inf
    rig.trip("a")
    rig.clock.advance(0.5)
    rig.trip("b")
    admission = rig.balancer.admission(rig.now)
    assert [c.endpoint.id for c in admission.pool] == ["c"]
    assert admission.recheck_at == rig.candidate("a").breaker.retry_at
    assert rig.balancer.admission(admission.recheck_at).pool == [rig.candidate("a"), rig.candidate("c")]


def test_nothing_admitted_is_said_and_nothing_kept() -> None:
    """With no endpoint left, none is admitted; those that left are not held on to."""
    rig = Rig("ab")
    rig.picked(1)
    rig.update("")
    assert not rig.unpicked().wait
    assert repr(rig.balancer) == "<Balancer static:///shop round_robin 0 of 0 admitted>"


# ---- weights ----


def test_weight_0_means_no_traffic_while_others_are_there() -> None:
    """Not one call; but all when only such endpoints are left, in equal shares."""
    rig = Rig("abc", weights=[1, 0, 0])
    assert set(rig.picked(10)) == {"a"}
    rig.connect("a", FAILING)
    assert Counter(rig.picked(10)) == {"b": 5, "c": 5}


def test_weight_0_is_used_when_the_others_are_refused() -> None:
    """A breaker that is open counts as not there; panic does not come before it."""
    rig = Rig("ab", weights=[1, 0])
    rig.trip("a")
    assert set(rig.picked(5)) == {"b"}
    assert not rig.panic


def test_in_panic_weight_0_still_means_no_traffic() -> None:
    """The order of the rules: breakers first, weights then."""
    rig = Rig("ab", weights=[1, 1])
    rig.trip("a")
    rig.trip("b")
    rig.update("ab", [1, 0])
    assert set(rig.picked(5)) == {"a"}
    assert rig.panic


def test_a_new_weight_acts_at_the_next_pick() -> None:
    """Shares follow, the connection and the counts stay."""
    rig = Rig("ab", weights=[1, 1], policy=WeightedRoundRobin())
    assert Counter(rig.picked(10)) == {"a": 5, "b": 5}
    before = rig.candidate("a")
    rig.update("ab", [4, 1])
    assert Counter(rig.picked(10)) == {"a": 8, "b": 2}
    assert rig.candidate("a") is before
    rig.update("ab", [0, 1])
    assert set(rig.picked(5)) == {"b"}
