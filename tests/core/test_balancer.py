"""The set of endpoints and the choice among them: each rule by example, then random histories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker, State
from lb.core.candidate import Candidate, Connectivity
from lb.core.concurrency import ConcurrencyLimit
from lb.core.endpoint import Endpoint, Resolution
from lb.core.outcome import LATE, LOST, OK, Origin, Outcome, classify
from lb.core.policies import (
    P2C,
    CallInfo,
    LeastRequest,
    Orca,
    Picker,
    PickFirst,
    Policy,
    RingHash,
    RoundRobin,
    SlowStart,
    Subset,
    WeightedRandom,
    WeightedRoundRobin,
    ZoneAware,
)
from lb.core.policies import Random as Uniform
from lb.core.snapshot import snapshot
from lb.core.unpicked import RESOLVER_GRACE_S, Unpicked
from lb.testing.clock import FakeClock
from tests.core.rig import (
    CANCELLED,
    CONNECTING,
    FAILING,
    IDLE,
    INTERNAL,
    READY,
    REFUSED,
    STEADY,
    UNAVAILABLE,
    UNSENT,
    Rig,
    endpoint,
)

# ---- which endpoints are admitted ----


def test_only_ready_endpoints_are_picked() -> None:
    """Idle, connecting and failing ones get nothing while one is READY."""
    rig = Rig("abcd")
    rig.connect("a", IDLE)
    rig.connect("b", CONNECTING)
    rig.connect("c", FAILING)
    assert set(rig.picked(20)) == {"d"}


def test_an_endpoint_is_picked_as_soon_as_it_is_ready() -> None:
    """And not any more as soon as it is not."""
    rig = Rig("ab")
    rig.connect("b", CONNECTING)
    assert set(rig.picked(4)) == {"a"}
    rig.connect("b", READY)
    assert set(rig.picked(4)) == {"a", "b"}
    rig.connect("a", IDLE)
    assert set(rig.picked(4)) == {"b"}


def test_an_open_breaker_keeps_its_endpoint_out() -> None:
    """Others take its calls."""
    rig = Rig("abc")
    rig.trip("b")
    assert set(rig.picked(30)) == {"a", "c"}


def test_an_endpoint_is_looked_at_again_when_its_open_time_is_up() -> None:
    """Time alone brings it back: no update, no change of a connection is needed."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(0.999)
    assert set(rig.picked(10)) == {"b"}
    rig.clock.advance(0.001)
    assert set(rig.picked(2)) == {"a", "b"}
    assert rig.candidate("a").breaker.state is State.CLOSED


def test_one_probe_at_a_time() -> None:
    """While the probe is out its endpoint gets nothing else; its failure keeps it out, for twice as long."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    attempts = [rig.pick() for _ in range(10)]
    probes = [attempt for attempt in attempts if attempt.endpoint_id == "a"]
    assert len(probes) == 1
    assert probes[0].breaker_state is State.HALF_OPEN
    rig.end(probes[0], INTERNAL)
    rig.clock.advance(1.999)
    assert set(rig.picked(10)) == {"b"}
    rig.clock.advance(0.001)
    assert "a" in rig.picked(2)


def test_an_ignored_probe_gives_its_place_back() -> None:
    """Cancelled by its caller, it says nothing: the next pick may probe."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    probe = next(attempt for attempt in (rig.pick(), rig.pick()) if attempt.endpoint_id == "a")
    assert set(rig.picked(6)) == {"b"}
    rig.end(probe, CANCELLED)
    assert "a" in rig.picked(2)


def test_a_probe_that_never_comes_back_is_given_up() -> None:
    """After ``probe_s`` the endpoint is probed again, though nothing was heard."""
    rig = Rig("ab", breaker=Breaker(jitter=0.0, probe_s=5.0))
    rig.trip("a")
    rig.clock.advance(1.0)
    assert {rig.pick().endpoint_id, rig.pick().endpoint_id} == {"a", "b"}
    rig.clock.advance(4.999)
    assert set(rig.picked(6)) == {"b"}
    rig.clock.advance(0.001)
    assert "a" in rig.picked(2)


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


def test_the_outcome_of_a_forced_attempt_decides_nothing() -> None:
    """In panic the breakers stay as they are until their time is up."""
    rig = Rig("a")
    rig.trip("a")
    attempt = rig.pick()
    assert attempt.breaker_state is State.OPEN
    before = rig.candidate("a").breaker.retry_at
    rig.end(attempt, OK)
    assert rig.candidate("a").breaker.state is State.OPEN
    assert rig.candidate("a").breaker.retry_at == before


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


# ---- nothing to pick ----


def test_before_the_first_resolution_calls_wait() -> None:
    """And say why it takes so long, when the resolver has said it."""
    rig = Rig()
    assert rig.unpicked() == Unpicked("static:///shop is not resolved yet", wait=True)
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: connection refused", rig.now)
    assert rig.unpicked().message == "static:///shop is not resolved yet: consul 127.0.0.1:8500: connection refused"
    rig.update("a")
    assert rig.balancer.resolver_error == ""


def test_a_source_that_stays_away_is_waited_for_a_moment_only() -> None:
    """Without a first answer calls wait while the resolver may just be late, then fail and say why."""
    rig = Rig()
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: connection refused", rig.now)
    rig.clock.advance(RESOLVER_GRACE_S / 2)
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: no answer within 2 s", rig.now)
    assert rig.unpicked().wait
    rig.clock.advance(RESOLVER_GRACE_S / 2)
    assert rig.unpicked() == Unpicked(
        "static:///shop is not resolved yet: consul 127.0.0.1:8500: no answer within 2 s", wait=False
    )
    rig.update("a")
    assert rig.unpicked().wait


def test_an_empty_set_fails_fast() -> None:
    """With the resolver's note, or in plain words."""
    rig = Rig("")
    assert rig.unpicked() == Unpicked("static:///shop has no endpoint: the resolver knows none", wait=False)
    rig.update("", note="consul: no service 'x'")
    assert rig.unpicked() == Unpicked("static:///shop has no endpoint: consul: no service 'x'", wait=False)


def test_while_one_may_still_connect_calls_wait() -> None:
    """Idle or connecting for the first time: that may pass by itself, whatever the others do."""
    rig = Rig("")
    rig.update("abc")
    assert rig.unpicked() == Unpicked("static:///shop: connecting to 3 endpoint(s)", wait=True)
    rig.connect("a", FAILING)
    rig.connect("b", FAILING)
    rig.connect("c", CONNECTING)
    assert rig.unpicked().wait
    rig.connect("c", FAILING)
    assert not rig.unpicked().wait


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


def test_a_reason_that_several_share_is_told_once() -> None:
    """With the names of those it holds for; the address beside an id only where they differ; both in bounds."""
    rig = Rig()
    addresses = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    rig.balancer.update(Resolution(tuple(Endpoint(a) for a in addresses)))
    for candidate in rig.balancer.candidates:
        rig.balancer.set_connectivity(candidate, FAILING, rig.now, "connection refused")
    said = "static:///shop: no endpoint can be reached: "
    assert rig.unpicked().message == said + "10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80: connection refused"
    rig.balancer.set_connectivity(rig.balancer.candidates[1], FAILING, rig.now, "timed out")
    assert rig.unpicked().message == said + "10.0.0.1:80, 10.0.0.3:80: connection refused; 10.0.0.2:80: timed out"
    rig = Rig("")
    rig.update("abcdefgh")
    for name in "abcdefgh":
        rig.connect(name, FAILING, "down")
    assert rig.unpicked().message == said + "a (a:1), b (b:1), c (c:1), d (d:1), e (e:1) and 3 more: down"
    for at, name in enumerate("abcdefgh"):
        rig.connect(name, FAILING, f"down {at}")
    assert rig.unpicked().message.endswith("; e (e:1): down 4; and 3 more")


def test_the_reason_of_a_failure_is_the_latest() -> None:
    """Refused at first, no route since: that is what is said."""
    rig = Rig("a")
    rig.connect("a", FAILING, "connection refused")
    rig.clock.advance(60.0)
    rig.connect("a", FAILING, "no route to host")
    assert rig.unpicked().message.endswith("a (a:1): no route to host")


def test_new_endpoints_are_connected_in_an_order_that_chance_makes() -> None:
    """Calls that wait go to whoever is connected first: with many clients that is not always the same one."""
    orders = {"".join(c.endpoint.id for c in Rig(seed=seed).update("abc").added) for seed in range(100)}
    assert len(orders) == 6
    orders = {"".join(c.endpoint.id for c in Rig(seed=s, policy=PickFirst()).update("abc").added) for s in range(20)}
    assert orders == {"abc"}
    shuffled = PickFirst(shuffle=True)
    assert len({Rig(seed=s, policy=shuffled).update("abc").added[0].endpoint.id for s in range(50)}) == 3


def test_an_endpoint_that_fails_counts_as_failing_until_it_is_ready() -> None:
    """Trying anew is no news: through CONNECTING and IDLE it stays a failure (sticky TRANSIENT_FAILURE)."""
    rig = Rig("a")
    rig.connect("a", FAILING, "connection refused")
    since = rig.candidate("a").failing_since
    rig.clock.advance(1.0)
    for state in (CONNECTING, FAILING, IDLE, CONNECTING):
        rig.connect("a", state)
        assert rig.unpicked() == Unpicked(
            "static:///shop: no endpoint can be reached: a (a:1): connection refused", wait=False
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


def test_many_failures_are_named_up_to_five() -> None:
    """The first five with their causes, then how many more."""
    rig = Rig("abcdefg")
    for name in "abcdefg":
        rig.connect(name, FAILING, f"{name} is down")
    assert rig.unpicked().message == (
        "static:///shop: no endpoint can be reached: a (a:1): a is down; b (b:1): b is down; c (c:1): c is down;"
        " d (d:1): d is down; e (e:1): e is down; and 2 more"
    )


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


# ---- what outcomes change ----


def test_an_attempt_records_its_end() -> None:
    """Outcome, duration and last error; only a success counts as latency, and it leaves the last error."""
    rig = Rig("a")
    attempt = rig.pick()
    assert (attempt.duration_s, attempt.endpoint, attempt.address) == (None, endpoint("a"), "a:1")
    rig.clock.advance(0.5)
    rig.end(attempt, UNAVAILABLE)
    assert (attempt.outcome, attempt.duration_s) == (UNAVAILABLE, 0.5)
    a = rig.candidate("a")
    assert (a.last_error, a.load.samples, a.in_flight) == ("UNAVAILABLE: Socket closed", 0, 0)
    assert repr(attempt) == "<Attempt 1 on a (a:1): UNAVAILABLE: Socket closed>"
    attempt = rig.pick()
    rig.clock.advance(0.25)
    rig.end(attempt)
    assert (a.last_error, a.load.latency_s, a.load.samples) == ("UNAVAILABLE: Socket closed", 0.25, 1)


@pytest.mark.parametrize("outcome", [CANCELLED, REFUSED, classify(StatusCode.UNIMPLEMENTED)])
def test_an_ignored_outcome_says_nothing_of_the_endpoint(outcome: Outcome) -> None:
    """No sample of latency, no last error, no step towards an open breaker."""
    rig = Rig("ab")
    rig.picked(50, outcome)
    for candidate in rig.balancer.candidates:
        assert candidate.breaker.state is State.CLOSED
        assert (candidate.load.samples, candidate.last_error, candidate.in_flight) == (0, "", 0)


# ---- slow, unanswered, late ----

HASTY = Breaker(consecutive_failures=1, failure_ratio=None, jitter=0.0, slow_call_s=0.5, unanswered_s=1.0)
EXPIRED = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER)
NOT_FOUND = classify(StatusCode.NOT_FOUND)


@pytest.mark.parametrize("outcome", [OK, NOT_FOUND, CANCELLED, EXPIRED, LOST, LATE, REFUSED])
@pytest.mark.parametrize(("took_s", "state"), [(0.49, State.CLOSED), (0.5, State.OPEN)])
def test_what_takes_too_long_is_a_failure_whatever_came_of_it(outcome: Outcome, took_s: float, state: State) -> None:
    """Also what lost a race after that long; the endpoint's record says so. (A late one counts by itself.)"""
    rig = Rig("ab", breaker=HASTY)
    attempt = rig.pick()
    rig.clock.advance(took_s)
    rig.end(attempt, outcome)
    if outcome is LATE:
        state = State.OPEN
    assert attempt.candidate.breaker.state is state
    if state is State.OPEN and outcome is not LATE:
        assert attempt.candidate.last_error == "slower than 0.5 s"


def test_a_slow_loser_counts_into_the_share_too() -> None:
    """Late alone counts in a row only; late and slower than allowed is a failure like any other."""
    breaker = Breaker(consecutive_failures=None, failure_ratio=0.5, minimum_calls=2, jitter=0.0, slow_call_s=0.5)
    for took_s, state in ((0.4, State.CLOSED), (0.6, State.OPEN)):
        rig = Rig("a", breaker=breaker)
        for _ in range(2):
            attempt = rig.pick()
            rig.clock.advance(took_s)
            rig.end(attempt, LATE)
        assert rig.candidate("a").breaker.state is state


def test_of_a_stream_the_time_to_its_first_response_counts() -> None:
    """It ran for an hour, and is no slow call; its latency is that of the first response."""
    rig = Rig("ab", breaker=HASTY)
    attempt = rig.pick()
    rig.clock.advance(0.25)
    attempt.answered_at = rig.now
    rig.clock.advance(3600)
    rig.end(attempt, OK)
    assert attempt.candidate.breaker.state is State.CLOSED
    assert attempt.candidate.load.latency_s == 0.25


def test_a_streams_first_response_ends_a_probe() -> None:
    """It may run for hours, and so may all others: the endpoint has its share again at once, whatever it ends with."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    rig.picked(1)
    probe = next(attempt for attempt in iter(rig.pick, None) if attempt.endpoint_id == "a")
    rig.balancer.answered(probe, rig.now)
    assert rig.candidate("a").breaker.state is State.CLOSED
    streams = [rig.pick() for _ in range(10)]
    assert Counter(attempt.endpoint_id for attempt in streams) == {"a": 5, "b": 5}
    rig.clock.advance(3600)
    for attempt in (probe, *streams):
        rig.end(attempt, UNAVAILABLE if attempt is probe else OK)
    assert rig.candidate("a").breaker.state is State.CLOSED
    assert probe.candidate.in_flight == 0


def test_a_first_response_that_was_too_slow_fails_the_probe() -> None:
    """By ``slow_call_s``, as at the end of a call."""
    rig = Rig("ab", breaker=HASTY)
    rig.trip("a")
    rig.clock.advance(1.0)
    probe = next(attempt for attempt in iter(rig.pick, None) if attempt.endpoint_id == "a")
    rig.clock.advance(0.5)
    rig.balancer.answered(probe, rig.now)
    assert rig.candidate("a").breaker.state is State.OPEN


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
        assert another is not None
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


# ---- who refuses everything ----


def refuse(rig: Rig, seconds: float, every_s: float = 0.01, outcome: Outcome = REFUSED) -> None:
    """Endpoint a refuses every call for so long; the others answer."""
    for _ in range(round(seconds / every_s)):
        rig.clock.advance(every_s)
        attempt = rig.pick()
        rig.end(attempt, outcome if attempt.endpoint_id == "a" else OK)


@pytest.mark.parametrize("outcome", [REFUSED, classify(StatusCode.RESOURCE_EXHAUSTED, pushback="-1")])
def test_who_refuses_everything_is_left_out(outcome: Outcome) -> None:
    """Refusals are quick, so it looks like the least loaded of all, and retries would use up the budget."""
    rig = Rig("ab")
    refuse(rig, 0.5, outcome=outcome)
    assert rig.candidate("a").breaker.state is State.CLOSED
    refuse(rig, 0.05, outcome=outcome)
    a = rig.candidate("a")
    assert a.breaker.last is not None
    assert (a.breaker.state, a.breaker.last.reason) == (State.OPEN, "it refuses all calls")
    assert a.last_error == outcome.reason()


def test_a_refused_probe_has_failed() -> None:
    """Open again and for longer: its place is not given to one call after the other."""
    rig = Rig("ab")
    refuse(rig, 0.6)
    opened = rig.candidate("a").breaker.last
    refuse(rig, 1.2)
    again = rig.candidate("a").breaker.last
    assert opened is not None
    assert again is not None
    assert (again.after, again.open_s, opened.open_s) == (State.OPEN, 2.0, 1.0)


def test_who_answers_some_is_full_and_stays() -> None:
    """One answer in thirty is enough, and so is one that will come: it takes a second, and the rest is refused."""
    rig = Rig("a")
    for number in range(3000):
        rig.clock.advance(0.01)
        rig.end(rig.pick(), OK if number % 30 == 0 else REFUSED)
    assert rig.candidate("a").breaker.state is State.CLOSED
    rig = Rig("a")
    for _ in range(20):
        slow = rig.pick()
        rig.clock.advance(0.3)
        refuse(rig, 0.7 if rig.candidate("a").load.samples else 0.1)
        rig.end(slow, OK)
    assert rig.candidate("a").breaker.state is State.CLOSED


@pytest.mark.parametrize("breaker", [replace(STEADY, refused_s=None), replace(STEADY, consecutive_failures=None)])
def test_refusals_may_count_for_nothing_at_all(breaker: Breaker) -> None:
    """``refused_s=None``, or a breaker that does not open by what comes in a row."""
    rig = Rig("ab", breaker=breaker)
    refuse(rig, 5.0)
    assert rig.candidate("a").breaker.state is State.CLOSED


def test_a_few_refusals_are_none_however_long_they_take() -> None:
    """Four in a minute; the fifth opens it."""
    rig = Rig("a")
    refuse(rig, 60.0, every_s=15.0)
    assert rig.candidate("a").breaker.state is State.CLOSED
    refuse(rig, 15.0, every_s=15.0)
    assert rig.candidate("a").breaker.state is State.OPEN


@pytest.mark.parametrize(
    ("took_s", "outcome", "answered", "state"),
    [
        (0.9, EXPIRED, False, State.CLOSED),
        (1.0, EXPIRED, False, State.OPEN),
        (1.0, EXPIRED, True, State.CLOSED),
        (1.0, CANCELLED, False, State.CLOSED),
        (1.0, LOST, False, State.CLOSED),
    ],
)
def test_a_callers_deadline_without_an_answer_counts_after_a_second(
    took_s: float, outcome: Outcome, answered: bool, state: State
) -> None:
    """A hung endpoint shows in nothing else; a cancellation, a lost race or a begun stream says nothing."""
    rig = Rig("ab", breaker=replace(HASTY, slow_call_s=None))
    attempt = rig.pick()
    rig.clock.advance(took_s)
    if answered:
        attempt.answered_at = rig.now
    rig.end(attempt, outcome)
    assert attempt.candidate.breaker.state is state


# ---- a policy's hooks ----


class Hooked(RoundRobin):
    """Keeps what it is told; raises when asked to."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "told", [])
        object.__setattr__(self, "broken", False)

    def ended(self, candidate: Any, outcome: Outcome, duration_s: float, now: float) -> None:
        """The hook."""
        self.told.append((candidate.endpoint.id, outcome, duration_s, now, candidate.in_flight))  # type: ignore[attr-defined]
        if self.broken:  # type: ignore[attr-defined]
            raise ZeroDivisionError("a bug")


def test_the_ended_hook_is_told_each_end_once() -> None:
    """Endpoint, outcome, seconds and instant; the attempt is no longer in flight by then."""
    policy = Hooked()
    rig = Rig("a", policy=policy)
    attempt = rig.pick()
    rig.clock.advance(0.25)
    rig.end(attempt, UNAVAILABLE)
    assert policy.told == [("a", UNAVAILABLE, 0.25, rig.now, 0)]  # type: ignore[attr-defined]


def test_a_hook_that_raises_loses_nothing() -> None:
    """In flight, latency, breaker and a probe's place are accounted for before it is called."""
    policy = Hooked()
    object.__setattr__(policy, "broken", True)
    rig = Rig("a", policy=policy, breaker=HASTY)
    with pytest.raises(ZeroDivisionError):
        rig.end(rig.pick(), INTERNAL)
    a = rig.candidate("a")
    assert (a.in_flight, a.breaker.state, a.last_error) == (0, State.OPEN, "INTERNAL: bug")
    rig.clock.advance(1.0)
    with pytest.raises(ZeroDivisionError):
        rig.end(rig.pick(), OK)
    assert (a.in_flight, a.breaker.state, a.load.samples) == (0, State.CLOSED, 1)
    attempt = rig.pick()
    rig.update("")
    with pytest.raises(ZeroDivisionError):
        rig.end(attempt, OK)
    assert a.closable


def test_a_change_of_policy_takes_the_hooks_and_the_records_along() -> None:
    """The old policy is told nothing more, and its stats are gone; attempts that run end under the new one."""
    old, new = Hooked(), Hooked()
    rig = Rig("a", policy=old)
    attempt = rig.pick()
    rig.candidate("a").stats = "the old policy's"
    rig.balancer.change_policy(new)
    rig.end(attempt)
    assert rig.candidate("a").stats is None
    assert (len(old.told), len(new.told)) == (0, 1)  # type: ignore[attr-defined]


def test_a_change_of_policy_reaches_those_who_are_leaving() -> None:
    """A departed endpoint's calls still run: the new policy's hook does not meet the old one's record."""
    rig = Rig("ab", policy=P2C())
    rig.picked(10)
    attempts = [rig.pick() for _ in range(10)]
    rig.update("b")
    rig.balancer.change_policy(RingHash(key="user"))
    for attempt in attempts:
        rig.end(attempt)
    rig.balancer.change_policy(P2C())
    assert all(attempt.candidate.stats is None for attempt in attempts)
    assert not rig.balancer.leaving


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


def test_a_straggler_does_not_decide_a_probe() -> None:
    """An attempt from before the breaker opened ends well while the probe is out: still half-open."""
    rig = Rig("a")
    straggler = rig.pick()
    rig.trip("a")
    rig.clock.advance(1.0)
    probe = rig.pick()
    rig.end(straggler, OK)
    breaker = rig.candidate("a").breaker
    assert breaker.state is State.HALF_OPEN
    rig.end(probe, OK)
    assert breaker.state is not State.HALF_OPEN


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


# ---- policies ----


class Recorder:
    """A policy that notes each picker it makes."""

    name = "recorder"

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self.previous: list[Picker | None] = []

    def picker(self, candidates: Sequence[object], previous: Picker | None) -> Picker:
        """Round robin, noted."""
        self.made.append([c.endpoint.id for c in candidates])  # type: ignore[attr-defined]  # the rig's own
        self.previous.append(previous)
        return RoundRobin().picker(candidates, None)  # type: ignore[arg-type]  # the rig's own


def test_a_burst_of_changes_costs_one_picker() -> None:
    """It is made at the next pick, from what holds then, and gets the previous one."""
    policy = Recorder()
    rig = Rig("abc", policy=policy)
    assert policy.made == []
    rig.picked(3)
    assert policy.made == [["a", "b", "c"]]
    for _ in range(5):
        rig.connect("a", IDLE)
        rig.connect("b", CONNECTING)
        rig.update("abc", [2, 2, 2])
    rig.picked(3)
    assert policy.made == [["a", "b", "c"], ["c"]]
    assert policy.previous[0] is None
    assert policy.previous[1] is not None


def test_no_picker_is_made_for_the_same_set() -> None:
    """Changes that leave the admitted and their weights as they are cost no picker."""
    policy = Recorder()
    rig = Rig("ab", policy=policy)
    rig.picked(1)
    rig.update("ab")
    rig.connect("a", READY)
    rig.picked(1)
    rig.connect("a", IDLE)
    rig.connect("a", READY)
    rig.picked(1)
    assert policy.made == [["a", "b"]]


def test_another_policy_acts_at_the_next_pick() -> None:
    """It starts without the previous policy's picker; running attempts and statistics stay."""
    rig = Rig("ab", weights=[9, 1])
    running = rig.pick()
    policy = Recorder()
    rig.balancer.change_policy(policy)
    rig.picked(1)
    assert policy.made == [["a", "b"]]
    assert policy.previous == [None]
    rig.balancer.change_policy(WeightedRoundRobin())
    assert Counter(rig.picked(10)) == {"a": 9, "b": 1}
    rig.end(running)
    assert running.candidate.in_flight == 0
    assert repr(rig.balancer) == "<Balancer static:///shop weighted_round_robin 2 of 2 admitted>"


def test_a_policy_can_be_changed_while_nothing_is_there() -> None:
    """The new one is used when something is."""
    rig = Rig()
    rig.balancer.change_policy(WeightedRandom())
    rig.update("a")
    rig.connect("a")
    assert rig.picked(2) == ["a", "a"]


class LeastBusy:
    """A user's own policy that reads the number in flight."""

    name = "least_busy"

    def __init__(self, candidates: Sequence[object] = ()) -> None:
        self.candidates = candidates

    def picker(self, candidates: Sequence[object], previous: Picker | None) -> Picker:
        """Over these."""
        return LeastBusy(candidates)  # type: ignore[return-value]  # a test's own

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> object:
        """The first of the least busy."""
        return min(self.candidates, key=lambda c: c.in_flight)  # type: ignore[attr-defined]  # the rig's own


def test_a_policy_sees_what_is_in_flight() -> None:
    """The count is there at pick time and given back at the end."""
    rig = Rig("abc", policy=LeastBusy())
    attempts = [rig.pick() for _ in range(6)]
    assert [attempt.endpoint_id for attempt in attempts] == [*"abcabc"]
    rig.end(attempts[1])
    rig.end(attempts[4])
    assert [rig.pick().endpoint_id for _ in range(2)] == ["b", "b"]


# ---- random histories ----

OUTCOMES = [OK, OK, INTERNAL, UNAVAILABLE, UNSENT, REFUSED, REFUSED, CANCELLED, EXPIRED, LOST, LATE]
POLICIES: list[Policy] = [
    RoundRobin(),
    Uniform(),
    WeightedRoundRobin(),
    WeightedRandom(),
    LeastRequest(),
    P2C(),
    PickFirst(),
    RingHash(key="user"),
    Orca(),
    SlowStart(policy="p2c", window_s=5.0),
    Subset(size=2, policy="least_request", client=1),
    ZoneAware(zone="a", policy=RingHash(key="user"), in_flight=2),
]
NAMES = "abcde"


class Histories(RuleBasedStateMachine):
    """Random updates, connections, picks and ends, and what must hold of each and after each."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        breaker = Breaker(
            consecutive_failures=2,
            failure_ratio=0.5,
            minimum_calls=4,
            window_s=10.0,
            open_s=2.0,
            max_open_s=8.0,
            jitter=0.5,
            probe_s=6.0,
        )
        self.balancer = Balancer("static:///shop", RoundRobin(), breaker, Random(1))
        self.running: list[Attempt] = []
        self.seen: list[Candidate] = []  # every candidate there ever was
        self.closed: list[Candidate] = []  # handed back, in this order

    def live(self) -> list[Candidate]:
        """Those of the set."""
        return list(self.balancer.candidates)

    def count(self, candidate: Candidate) -> int:
        """Attempts on it that have not ended."""
        return sum(attempt.candidate is candidate for attempt in self.running)

    @initialize()
    def some(self) -> None:
        """Most histories begin with three that are READY."""
        self.update([("a", 1, 1), ("b", 2, 1), ("c", 1, 1)])
        for candidate in self.live():
            self.balancer.set_connectivity(candidate, READY, self.clock())

    @rule(
        rows=st.lists(
            st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.integers(1, 2)),
            max_size=5,
            unique_by=lambda row: (row[0], row[2]),
        )
    )
    def update(self, rows: list[tuple[str, int, int]]) -> None:
        """New ones are told, survivors are the same objects, the departed are handed back if idle."""
        before = {c.endpoint.key: c for c in self.live()}
        leaving = {c.endpoint.key: c for c in self.seen if c.retired and self.count(c)}
        endpoints = tuple(
            Endpoint(f"{name}:{port}", id=name, weight=weight, zone="a" if name < "c" else "b")
            for name, weight, port in rows
        )
        changes = self.balancer.update(Resolution(endpoints))
        after = {c.endpoint.key: c for c in self.live()}
        assert [c.endpoint for c in self.live()] == list(endpoints)
        assert {id(c) for c in changes.added} == {
            id(c) for key, c in after.items() if key not in before and key not in leaving
        }
        assert all(after[key] is before[key] for key in before.keys() & after.keys())
        assert all(after[key] is leaving[key] for key in leaving.keys() & after.keys())
        assert not any(c.retired for c in after.values())
        gone = [c for key, c in before.items() if key not in after]
        assert all(c.retired for c in gone)
        assert list(changes.closable) == [c for c in gone if not self.count(c)]
        self.seen.extend(changes.added)
        self.closed.extend(changes.closable)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), state=st.sampled_from([READY, READY, READY, IDLE, CONNECTING, FAILING]))
    def connection(self, data: st.DataObject, state: Connectivity) -> None:
        """Of any endpoint, also of one that has retired (its watcher may be late)."""
        candidate = data.draw(st.sampled_from((self.live() or self.seen) + self.seen[-2:]))
        self.balancer.set_connectivity(candidate, state, self.clock(), "down" if state is FAILING else "")

    @rule(quarters=st.integers(1, 20))
    def time_passes(self, quarters: int) -> None:
        """By quarters of a second, so that instants are hit exactly."""
        self.clock.advance(quarters / 4)

    @rule()
    def breaker_comes_due(self) -> None:
        """Go to the instant at which the next open breaker admits."""
        due = [c.breaker.retry_at for c in self.live() if c.breaker.retry_at is not None]
        if due and min(due) > self.clock():
            self.clock.advance_to(min(due))

    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: Policy) -> None:
        """At any time."""
        self.balancer.change_policy(policy)

    def fewest(self, ready: list[Candidate]) -> list[Candidate]:
        """Those whose breaker opened the fewest times in a row: who is used in panic."""
        least = min((c.breaker.openings for c in ready), default=0)
        return [c for c in ready if c.breaker.openings == least]

    @rule()
    def sleep(self) -> None:
        """Only when nothing runs; then nobody is READY, and nobody is known to fail."""
        busy = any(self.count(c) for c in self.live())
        before = [c.connectivity for c in self.live()]
        assert self.balancer.sleep(self.clock()) is not busy
        after = [c.connectivity for c in self.live()]
        assert after == (before if busy else [IDLE] * len(before))
        assert busy or all(c.failing_since is None for c in self.live())

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A stream's first response: a probe has no more to say."""
        attempt = data.draw(st.sampled_from(self.running))
        probe = attempt.generation == attempt.candidate.breaker.generation
        self.balancer.answered(attempt, self.clock())
        if probe and attempt.breaker_state is State.HALF_OPEN:
            assert attempt.candidate.breaker.state is State.CLOSED

    @rule(data=st.data(), times=st.integers(1, 4))
    def pick(self, data: st.DataObject, times: int) -> None:
        """Always found while one is READY; never one that is retired, not READY, refused or of weight 0 in vain."""
        for _ in range(times):
            now = self.clock()
            tried = data.draw(st.lists(st.sampled_from(self.seen), max_size=2)) if self.seen else []
            ready = [c for c in self.live() if c.connectivity is READY]
            admitted = [c for c in ready if c.breaker.admits(now)]
            pool = admitted or self.fewest(ready)
            pool = [c for c in pool if c.endpoint.weight > 0] or pool
            admission = self.balancer.admission(now)
            panic = bool(admission.panic)
            assert (admission.pool, panic) == (pool, bool(ready) and not admitted)
            assert admission.recheck_at > now
            picked = self.balancer.pick(None, now, tried=tried)
            if not ready:
                assert isinstance(picked, Unpicked)
                self.check_unpicked(picked)
                continue
            assert isinstance(picked, Attempt)
            self.running.append(picked)
            assert not picked.candidate.retired
            assert picked.candidate in pool
            assert panic is (not admitted)
            assert (picked.generation > 0) is bool(admitted)
            if any(c not in tried for c in pool):
                assert picked.candidate not in tried

    def check_unpicked(self, unpicked: Unpicked) -> None:
        """It waits exactly when something may still change by itself."""
        live = self.live()
        assert unpicked.wait is any(c.failing_since is None for c in live)
        assert unpicked.wait or unpicked.message.count(": down") == bool(live)
        assert unpicked.wait or all(str(c.endpoint) in unpicked.message for c in live[:5])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        """A retired candidate is handed back with its last attempt, and only then."""
        attempt = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.finish(attempt, outcome)

    def finish(self, attempt: Attempt, outcome: Outcome) -> None:
        """End it, and check what is handed back."""
        candidate = attempt.candidate
        closable = self.balancer.ended(attempt, outcome, self.clock())
        last = candidate.retired and not self.count(candidate)
        assert closable is (candidate if last else None)
        if closable is not None:
            self.closed.append(closable)

    @rule()
    def look(self) -> None:
        """A snapshot agrees with the rules at any time."""
        now = self.clock()
        ready = [c for c in self.live() if c.connectivity is READY]
        admitted = [c for c in ready if c.breaker.admits(now)]
        pool = admitted or self.fewest(ready)
        pool = [c for c in pool if c.endpoint.weight > 0] or pool
        seen = snapshot(self.balancer, 0.0, now)
        assert [e.picked for e in seen.endpoints] == [c in pool for c in self.live()]
        assert all(bool(e.why) for e in seen.endpoints)
        assert str(seen)

    @invariant()
    def counts(self) -> None:
        """In flight is what runs; nobody is handed back twice, or while in the set or in use."""
        for candidate in self.seen:
            assert candidate.running == self.count(candidate)
        assert len({id(c) for c in self.closed}) == len(self.closed)
        assert all(c.retired and not self.count(c) for c in self.closed)
        idle = {id(c) for c in self.seen if c.retired and not self.count(c)}
        assert idle == {id(c) for c in self.closed}

    @invariant()
    def one_probe(self) -> None:
        """Never two attempts that may decide the same half-open breaker."""
        for candidate in self.seen:
            if candidate.breaker.state is State.HALF_OPEN:
                deciding = [
                    a for a in self.running if a.candidate is candidate and a.generation == candidate.breaker.generation
                ]
                assert len(deciding) <= 1

    @invariant()
    def whole(self) -> None:
        """The set's state by gRPC's rule."""
        live, state = self.live(), self.balancer.state()
        hopeful = {c.connectivity for c in live if c.failing_since is None}
        if self.balancer.resolution is None:
            expected = CONNECTING
        else:
            expected = next((s for s in (READY, CONNECTING, IDLE) if s in hopeful), FAILING)
        assert state is expected

    def teardown(self) -> None:
        """At the end everything is given back: each candidate there ever was, exactly once."""
        while self.running:
            self.finish(self.running.pop(), OK)
        self.closed.extend(self.balancer.update(Resolution(())).closable)
        assert sorted(map(id, self.closed)) == sorted(map(id, self.seen))


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
