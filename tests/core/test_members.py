"""The set of endpoints: what an update, a connection and the user's weights change of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf

import pytest

from lb.core.breaker import State
from lb.core.candidate import Connectivity
from lb.core.concurrency import ConcurrencyLimit
from lb.core.endpoint import Resolution
from lb.core.policies import (
    WeightedRoundRobin,
)
from lb.core.unpicked import Unpicked
from tests.core.rig import (
    CONNECTING,
    FAILING,
    IDLE,
    READY,
    UNAVAILABLE,
    Rig,
    endpoint,
)


@pytest.mark.parametrize(
    ("states", "reasons"),
    [
        ([CONNECTING, READY], [False, False]),
        ([READY, IDLE], [False, True]),
        ([READY, FAILING, FAILING], [False, True, False]),
        ([READY, IDLE, CONNECTING, FAILING, CONNECTING, FAILING], [False, True, False, True, False, False]),
        ([CONNECTING, FAILING, READY, IDLE], [False, True, False, True]),
    ],
    ids=str,
)
def test_when_the_resolver_should_look_again(states: list[Connectivity], reasons: list[bool]) -> None:
    """A connection is lost, or making one begins to fail; not each time that it fails again."""
    rig = Rig("")
    rig.update("a")
    assert [rig.balancer.set_connectivity(rig.candidate("a"), state, rig.now) for state in states] == reasons


def test_the_reason_of_a_failure_is_the_latest() -> None:
    """Refused at first, no route since: that is what is said."""
    rig = Rig("a")
    rig.connect("a", FAILING, "connection refused")
    rig.clock.advance(60.0)
    rig.connect("a", FAILING, "no route to host")
    assert rig.unpicked().message.endswith("a (a:1): no route to host")


def test_an_endpoint_that_fails_counts_as_failing_until_it_is_ready() -> None:
    """Trying anew is no news: through CONNECTING and IDLE it stays a failure (sticky TRANSIENT_FAILURE)."""
    rig = Rig("a")
    rig.connect("a", FAILING, "connection refused")
    since = rig.candidate("a").failing_since
    rig.clock.advance(1.0)
    for state in (CONNECTING, FAILING, IDLE, CONNECTING):
        rig.connect("a", state)
        assert rig.unpicked() == Unpicked(
            "no endpoint of static:///shop can be reached: a (a:1): connection refused", wait=False
        )
        assert rig.candidate("a").failing_since == since
        assert rig.balancer.state() is FAILING
    rig.connect("a", READY)
    assert (rig.candidate("a").failing_since, rig.candidate("a").trouble) == (None, "")
    rig.connect("a", CONNECTING)
    assert rig.unpicked().wait


def test_who_sleeps_forgets_that_it_failed() -> None:
    """All could not be reached when the channel fell asleep. Who wakes it waits for what connecting brings now."""
    rig = Rig("ab")
    for name in "ab":
        rig.connect(name, FAILING, "connection refused")
    assert not rig.unpicked().wait
    assert rig.balancer.sleep(rig.now)
    assert rig.balancer.state() is IDLE
    rig.connect("a", CONNECTING)
    assert rig.unpicked().wait
    rig.connect("a", FAILING, "no route")
    rig.connect("b", FAILING, "no route")
    assert not rig.unpicked().wait


# ---- updates ----


def test_survivors_keep_breaker_load_and_connection() -> None:
    """Who stays is the same candidate, in the new order; who is new is told."""
    rig = Rig("abc")
    rig.trip("b")
    b = rig.candidate("b")
    handle = b.handle = object()
    samples, picks = b.load.samples, b.picks
    changes = rig.update("dcb", [1, 1, 7])
    assert [c.endpoint.id for c in changes.added] == ["d"]
    assert [c.endpoint.id for c in changes.closable] == ["a"]
    assert [c.endpoint.id for c in rig.balancer.candidates] == ["d", "c", "b"]
    assert rig.candidate("b") is b
    assert (b.handle, b.connectivity, b.breaker.state) == (handle, READY, State.OPEN)
    assert (b.load.samples, b.picks, b.weight, b.endpoint.weight) == (samples, picks, 7, 7)


def test_another_address_is_another_endpoint() -> None:
    """An instance that came back on another port starts anew, under the same id."""
    rig = Rig("a")
    old = rig.candidate("a")
    moved = replace(endpoint("a"), address="a:2")
    changes = rig.balancer.update(Resolution((moved,)))
    assert [c.endpoint for c in changes.added] == [moved]
    assert changes.closable == [old]
    assert old.retired


def test_an_update_that_changes_nothing_changes_nothing() -> None:
    """The sequence of the policy goes on, and nobody is told."""
    rig = Rig("abc", weights=[5, 1, 1], policy=WeightedRoundRobin())
    ids = rig.picked(4)
    changes = rig.update("abc", [5, 1, 1])
    assert (changes.added, changes.closable) == ([], [])
    undisturbed = Rig("abc", weights=[5, 1, 1], policy=WeightedRoundRobin())
    assert [*ids, *rig.picked(10)] == undisturbed.picked(14)


def test_a_retired_endpoint_is_closable_after_its_last_attempt() -> None:
    """Not while attempts run on it, not twice, and it is not picked any more."""
    rig = Rig("a")
    first, second = rig.pick(), rig.pick()
    old = rig.candidate("a")
    assert rig.update("b").closable == []
    rig.connect("b")
    assert set(rig.picked(5)) == {"b"}
    assert rig.end(first) is None
    assert rig.end(second, UNAVAILABLE) is old
    assert rig.update("b").closable == []
    assert "retired" in repr(old)


def test_an_endpoint_that_comes_back_is_a_new_one() -> None:
    """Its old connection is closed."""
    rig = Rig("a")
    rig.picked(3)
    old = rig.candidate("a")
    assert rig.update("").closable == [old]
    [new] = rig.update("a").added
    assert new is not old
    assert rig.unpicked().wait


def test_who_comes_back_while_its_calls_run_never_left() -> None:
    """The same process: a second record of it would let in as many calls again, and forget what its breaker knows."""
    rig = Rig("ab", limit=ConcurrencyLimit(limit=1))
    rig.trip("a")
    rig.clock.advance(1.0)
    attempts = [rig.pick(), rig.pick()]
    old = rig.candidate("a")
    for names in ("b", "", "b", "bc"):
        assert rig.update(names).closable == []
        assert not rig.update(names, note="again").closable
    changes = rig.update("ab")
    assert [c.endpoint.id for c in (*changes.added, *changes.closable)] == ["c"]
    assert rig.candidate("a") is old
    assert rig.unpicked().full
    assert (old.retired, old.in_flight, old.breaker.state) == (False, 1, State.HALF_OPEN)
    assert [rig.end(attempt) for attempt in attempts] == [None, None]
    assert {c.endpoint.id for c in rig.update("").closable} == {"a", "b"}
    assert not rig.balancer.leaving


def test_an_endpoint_that_is_named_twice_is_one() -> None:
    """Two nodes of Consul, or a resolver of a user's own, may name the same instance twice."""
    rig = Rig()
    changes = rig.balancer.update(Resolution((endpoint("a"), endpoint("b"), endpoint("a", 3))))
    assert {c.endpoint.id for c in changes.added} == {"a", "b"}
    assert len(changes.added) == 2
    closed = rig.update("").closable
    assert {id(c) for c in closed} == {id(c) for c in changes.added}


# ---- weights of a user's own ----


def test_changed_weights_hold_whatever_the_resolver_says() -> None:
    """From the next pick on and through updates; an empty mapping gives the resolver its word back."""
    rig = Rig("ab", policy=WeightedRoundRobin())
    rig.balancer.change_weights({"a": 3, "gone": 7})
    assert Counter(rig.picked(8)) == {"a": 6, "b": 2}
    rig.update("abc", (1, 1, 4))
    rig.connect("c")
    assert Counter(rig.picked(16)) == {"a": 6, "b": 2, "c": 8}
    rig.balancer.change_weights({"c": 0})
    assert Counter(rig.picked(8)) == {"a": 4, "b": 4}
    rig.balancer.change_weights({})
    assert Counter(rig.picked(12)) == {"a": 2, "b": 2, "c": 8}


def test_changing_weights_touches_nothing_else() -> None:
    """Connections, breakers, what runs, and what the resolver's trouble is; also before there is any endpoint."""
    rig = Rig()
    rig.balancer.change_weights({"a": 3})
    rig.update("ab")
    rig.connect("a")
    attempt = rig.pick()
    rig.balancer.resolver_failed("consul is away", rig.now)
    before = rig.candidate("a")
    rig.balancer.change_weights({"a": 5})
    assert rig.candidate("a") is before
    assert (before.in_flight, before.weight, before.retired) == (1, 5, False)
    assert rig.balancer.resolver_error == "consul is away"
    rig.end(attempt)


# ---- when a connection was lost ----


def test_the_loss_of_a_connection_is_kept() -> None:
    """Its instant, also when another one stands by now; a connection that never stood was not lost."""
    rig = Rig("ab")
    a = rig.candidate("a")
    rig.connect("b", CONNECTING)
    assert a.lost_at == -inf
    rig.clock.advance(1.0)
    lost_at = rig.now
    rig.connect("a", IDLE)
    rig.clock.advance(1.0)
    rig.connect("a", CONNECTING)
    rig.connect("a", READY)
    assert a.lost_at == lost_at


# ---- the whole set's state ----


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        ([READY, FAILING, CONNECTING], READY),
        ([FAILING, CONNECTING, IDLE], CONNECTING),
        ([FAILING, IDLE], IDLE),
        ([IDLE, CONNECTING], CONNECTING),
        ([FAILING, FAILING], FAILING),
    ],
)
def test_the_whole_sets_state(states: list[Connectivity], whole: Connectivity) -> None:
    """READY if any; else CONNECTING if any; else IDLE if any; else TRANSIENT_FAILURE (gRPC's rule), in any order."""
    for order in (states, states[::-1]):
        rig = Rig("")
        names = "abc"[: len(order)]
        rig.update(names)
        for name, state in zip(names, order, strict=True):
            rig.connect(name, state)
        assert rig.balancer.state() is whole


def test_the_state_without_endpoints() -> None:
    """Not resolved: CONNECTING. Resolved to nothing: TRANSIENT_FAILURE."""
    rig = Rig()
    assert rig.balancer.state() is CONNECTING
    rig.update("")
    assert rig.balancer.state() is FAILING
