"""The choice among the endpoints of a channel: probes, hooks and policies, then random histories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from grpc import StatusCode
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker, State
from lb.core.call import Failed
from lb.core.candidate import Candidate, Connectivity
from lb.core.endpoint import Endpoint, Resolution
from lb.core.outcome import LATE, LOST, OK, Outcome
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
from lb.core.unpicked import Unpicked
from lb.testing.clock import FakeClock
from tests.core.rig import (
    CANCELLED,
    CONNECTING,
    EXPIRED,
    FAILING,
    IDLE,
    INTERNAL,
    READY,
    REFUSED,
    UNAVAILABLE,
    UNSENT,
    Rig,
)


def test_an_endpoint_is_picked_as_soon_as_it_is_ready() -> None:
    """And not any more as soon as it is not."""
    rig = Rig("ab")
    rig.connect("b", CONNECTING)
    assert set(rig.picked(4)) == {"a"}
    rig.connect("b", READY)
    assert set(rig.picked(4)) == {"a", "b"}
    rig.connect("a", IDLE)
    assert set(rig.picked(4)) == {"b"}


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


def test_new_endpoints_are_connected_in_an_order_that_chance_makes() -> None:
    """Calls that wait go to whoever is connected first: with many clients that is not always the same one."""
    orders = {"".join(c.endpoint.id for c in Rig(seed=seed).update("abc").added) for seed in range(100)}
    assert len(orders) == 6
    orders = {"".join(c.endpoint.id for c in Rig(seed=s, policy=PickFirst()).update("abc").added) for s in range(20)}
    assert orders == {"abc"}
    shuffled = PickFirst(shuffle=True)
    assert len({Rig(seed=s, policy=shuffled).update("abc").added[0].endpoint.id for s in range(50)}) == 3


def test_what_a_policy_raises_is_the_answer_to_a_pick() -> None:
    """Of the first attempt and of one beside it; the call fails with these words. Nothing is in flight."""

    class Broken(RoundRobin):
        def picker(self, candidates: Any, previous: Picker | None) -> Any:
            """Raises."""
            raise ZeroDivisionError("a bug")

    rig = Rig("ab", policy=Broken())
    for picked in (rig.balancer.pick(None, rig.now), rig.balancer.pick_another(None, rig.now, 2, "", [])):
        assert isinstance(picked, Unpicked)
        assert isinstance(picked.raised, ZeroDivisionError)
        assert picked.message == "the policy round_robin failed: ZeroDivisionError('a bug')"
    failed = rig.call(wait_for_ready=True).begin(rig.now)
    assert isinstance(failed, Failed)
    assert failed.code is StatusCode.INTERNAL
    assert isinstance(failed.raised, ZeroDivisionError)
    assert rig.in_flight == 0


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
    """In flight, latency, breaker and a probe's place are accounted for all the same; the driver is told of it."""
    policy = Hooked()
    object.__setattr__(policy, "broken", True)
    rig = Rig("a", policy=policy, breaker=Breaker(consecutive_failures=1, failure_ratio=None, jitter=0.0))

    def end(attempt: Attempt, outcome: Outcome) -> None:
        upkeep = rig.balancer.ended(attempt, outcome, rig.now)
        assert upkeep is not None
        assert isinstance(upkeep.raised, ZeroDivisionError)

    end(rig.pick(), INTERNAL)
    a = rig.candidate("a")
    assert (a.in_flight, a.breaker.state, a.last_error) == (0, State.OPEN, "INTERNAL: bug")
    rig.clock.advance(1.0)
    end(rig.pick(), OK)
    assert (a.in_flight, a.breaker.state, a.load.samples) == (0, State.CLOSED, 1)
    attempt = rig.pick()
    rig.update("")
    end(attempt, OK)
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
        upkeep = self.balancer.ended(attempt, outcome, self.clock())
        closable = upkeep.candidate if upkeep is not None and upkeep.closable else None
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
