"""Limits on what runs at once: the fixed one, the adaptive one, and the line of calls that wait for a place."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tenacity import wait_fixed, wait_none

from lb.core.attempt import Attempt
from lb.core.budget import Budget
from lb.core.call import DONE, Call, Failed, Pause, Queued
from lb.core.concurrency import ConcurrencyLimit, LimitState
from lb.core.elsewhere import with_room
from lb.core.outcome import OK, Origin, classify
from lb.core.policies import P2C, Policy, Random, RoundRobin
from lb.core.retry import Retry
from lb.core.unpicked import Unpicked
from tests.core.rig import CANCELLED, CONNECTING, FAILING, IDLE, INTERNAL, READY, REFUSED, TIMED_OUT, UNAVAILABLE, Rig


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": True}, "limit is True"),
        ({"min_limit": 0}, "min_limit is 0"),
        ({"max_limit": "9"}, "max_limit is '9'"),
        ({"queue": -1}, "queue is -1"),
        ({"queue_s": 0}, "queue_s is 0"),
        ({"queue_s": float("nan")}, "queue_s is nan"),
        ({"adaptive": 1}, "adaptive is 1"),
        ({"adaptive": True, "limit": 3}, "limit is 3"),
        ({"adaptive": True, "limit": 2000}, "limit is 2000"),
        ({"adaptive": True, "limit": 9, "min_limit": 10, "max_limit": 8}, "limit is 9"),
    ],
)
def test_a_bad_setting_is_named(fields: dict[str, Any], named: str) -> None:
    """An error with field and value."""
    with pytest.raises((ValueError, TypeError), match=f"ConcurrencyLimit.{named}"):
        ConcurrencyLimit(**fields)


# ---- the adaptive limit ----


def test_a_fixed_limit_stays() -> None:
    """Whatever it is told."""
    state = ConcurrencyLimit(limit=7).new_state()
    state.observe(5.0, 7, 0.0)
    state.overloaded()
    assert state.limit == 7
    assert repr(state) == "<LimitState 7>"


def test_it_grows_while_the_latency_stays_and_the_limit_is_what_bounds() -> None:
    """Half the way to its own square root above it, at each round, up to max_limit."""
    state = ConcurrencyLimit(limit=10, adaptive=True, max_limit=50).new_state()
    limits = []
    for number in range(3000):
        state.observe(0.01, state.limit // 2 + 1, now=number * 0.02)
        limits.append(state.limit)
    assert limits == sorted(limits)
    assert limits[0] == 10
    assert limits[-1] == 50


def test_it_learns_nothing_from_an_idle_endpoint() -> None:
    """Fewer than half the limit in flight: the limit bounds nothing, so it says nothing."""
    state = ConcurrencyLimit(limit=20, adaptive=True).new_state()
    for _ in range(100):
        state.observe(0.01, 9, 0.0)
    assert state.limit == 20


def test_it_shrinks_when_a_queue_builds_up() -> None:
    """The newest latency is far above the long-term one."""
    state = ConcurrencyLimit(limit=100, adaptive=True, min_limit=10).new_state()
    for at in range(600):
        state.observe(0.01, 1, at * 0.02)
    for at in range(400):
        state.observe(0.1, state.limit, 20 + at * 0.01)
    assert state.limit < 70


def test_refusals_and_timeouts_take_a_tenth_each_down_to_the_least() -> None:
    """10, 9, 8.1, ..., never below min_limit."""
    state = ConcurrencyLimit(limit=10, adaptive=True, min_limit=4).new_state()
    state.overloaded()
    assert state.limit == 9
    for _ in range(50):
        state.overloaded()
    assert state.limit == 4
    assert repr(state) == "<LimitState 4 adaptive>"


def test_it_settles_where_a_server_begins_to_refuse() -> None:
    """A server that takes 20 at once and refuses the rest: the limit ends about there, far from its start."""
    state = ConcurrencyLimit(limit=100, adaptive=True).new_state()
    history = []
    for turn in range(400):
        now = turn * 0.02
        in_flight = state.limit
        for at in range(in_flight):
            if at < 20:
                state.observe(0.01, in_flight, now)
            else:
                state.overloaded()
        history.append(state.limit)
    settled = history[-100:]
    assert min(settled) >= 5
    assert sum(settled) / len(settled) <= 40


def turn(state: LimitState, now: float, took_s: float) -> None:
    """As many calls as the limit lets run have begun together, and end together."""
    in_flight = state.limit
    for _ in range(in_flight):
        state.observe(took_s, in_flight, now)


def test_a_call_that_begins_in_the_instant_of_a_step_counts() -> None:
    """Calls that all begin when the ones before have ended are a round each: every turn the limit grows."""
    state = ConcurrencyLimit(limit=16, adaptive=True).new_state()
    limits = []
    for number in range(1, 6):
        turn(state, number * 0.25, 0.25)
        limits.append(state.limit)
    assert limits == [20, 24, 29, 34, 40]


def test_answers_of_calls_from_before_the_last_step_do_not_count() -> None:
    """They ran under another limit: however slow they were, the limit stays where the step left it."""
    state = ConcurrencyLimit(limit=16, adaptive=True).new_state()
    turn(state, 1.0, 0.25)
    for _ in range(200):
        state.observe(5.0, state.limit, 1.1)
    assert state.limit == 20


def test_a_clock_too_coarse_to_see_a_call_is_no_hindrance() -> None:
    """Calls that take 0 s are fast ones: the limit grows. When they take some time then, it finds its way as well."""
    state = ConcurrencyLimit(limit=16, adaptive=True, max_limit=100).new_state()
    for number in range(50):
        turn(state, float(number), 0.0)
    assert state.limit == 100
    limits = []
    for number in range(200):
        turn(state, 50.0 + number * 0.25, 0.25)
        limits.append(state.limit)
    assert min(limits) >= 2
    assert limits[-1] == 100


def test_a_time_below_zero_is_nobodys() -> None:
    """A clock that was set back says nothing."""
    state = ConcurrencyLimit(limit=16, adaptive=True).new_state()
    for number in range(50):
        turn(state, float(number), -1.0)
    assert state.limit == 16


def test_while_it_looks_the_limit_is_half() -> None:
    """After a second in which calls take longer than usual: for 20 calls that have begun since. They take as long with
    half as many beside them, so that is what is usual now, and there is nothing more to look for.
    """
    state = ConcurrencyLimit(limit=20, adaptive=True, min_limit=20, max_limit=20).new_state()
    turn(state, 0.0, 0.1)
    limits = []
    for number in range(1, 200):
        turn(state, number * 0.25, 0.25)
        limits.append(state.limit)
    assert limits == [20] * 4 + [10] * 2 + [20] * 193


def test_a_refusal_does_not_end_a_look() -> None:
    """Refusals and time-outs take a tenth off what it will be afterwards."""
    state = ConcurrencyLimit(limit=20, adaptive=True, min_limit=18, max_limit=20).new_state()
    turn(state, 0.0, 0.1)
    for number in range(1, 6):
        turn(state, number * 0.25, 0.25)
    half = state.limit
    assert half < 18
    state.overloaded()
    assert state.limit == half


def test_it_looks_ever_less_often() -> None:
    """A server that does one call after the other, always full: after 1, 2, 4 and 8 seconds, then every ten."""
    state = ConcurrencyLimit(limit=16, adaptive=True, min_limit=16, max_limit=16).new_state()
    turn(state, 0.0, 0.005)
    now, looked, limit = 0.0, [0.0], 16
    while now < 60.0:
        now += 0.005 * limit
        turn(state, now, 0.005 * limit)
        if state.limit < limit:
            looked.append(now)
        limit = state.limit
    pauses = [later - earlier for earlier, later in itertools.pairwise(looked)]
    assert pauses == pytest.approx([1.0, 2.0, 4.0, 8.0, *[10.0] * (len(pauses) - 4)], abs=0.8)
    assert len(pauses) >= 7


@pytest.mark.parametrize(("outcome", "limit"), [(REFUSED, 9), (TIMED_OUT, 9), (UNAVAILABLE, 10), (CANCELLED, 10)])
def test_which_outcomes_mean_overload(outcome: Any, limit: int) -> None:
    """A refusal by push-back and the attempt's own time-out do; a lost connection or a cancellation does not."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=10, adaptive=True))
    rig.end(rig.pick(), outcome)
    state = rig.candidate("a").limit
    assert state is not None
    assert state.limit == limit


# ---- picking below the limit ----


def test_an_endpoint_at_its_limit_is_passed_over() -> None:
    """Whatever the policy says, and for a retry too; when all are full there is no pick."""
    rig = Rig("abc", limit=ConcurrencyLimit(limit=2))
    attempts = [rig.pick() for _ in range(6)]
    assert all(candidate.in_flight == 2 for candidate in rig.balancer.candidates)
    full = rig.balancer.pick(None, rig.now)
    assert full == Unpicked("static:///shop: every endpoint is at its concurrency limit", wait=True, full=True)
    rig.end(attempts[0])
    for _ in range(20):
        again = rig.pick()
        assert again.candidate is attempts[0].candidate
        rig.end(again)


def test_a_place_at_an_endpoint_that_was_not_tried_is_preferred() -> None:
    """The one that was tried has room, too; only when no other has, it is asked again."""
    rig = Rig("abc", limit=ConcurrencyLimit(limit=1))
    held = {attempt.endpoint_id: attempt for attempt in (rig.pick() for _ in range(3))}
    rig.end(held["a"])
    rig.end(held["b"])
    for _ in range(30):
        attempt = rig.pick(tried=[rig.candidate("a")])
        assert attempt.endpoint_id == "b"
        rig.end(attempt)
    rig.pick(tried=[rig.candidate("a")])
    assert rig.pick(tried=[rig.candidate("a")]).endpoint_id == "a"


@pytest.mark.parametrize("policy", [RoundRobin(), Random(), P2C()], ids=lambda policy: policy.name)
def test_no_policy_leads_a_retry_or_a_hedge_to_a_full_endpoint(policy: Policy) -> None:
    """Whether it may be asked several times or not."""
    rig = Rig("abc", limit=ConcurrencyLimit(limit=1), policy=policy)
    held = {attempt.endpoint_id: attempt for attempt in (rig.pick() for _ in range(3))}
    a, b = rig.candidate("a"), rig.candidate("b")
    for _ in range(20):
        assert rig.balancer.pick_another(None, rig.now, 2, "", [a]) is None
    rig.end(held["b"])
    for _ in range(20):
        attempt = rig.balancer.pick_another(None, rig.now, 2, "", [a])
        assert isinstance(attempt, Attempt)
        assert attempt.candidate is b
        rig.end(attempt)


def test_passing_over_looks_at_no_more_than_it_must() -> None:
    """All others have room: one or two are looked at, not the whole pool."""
    rig = Rig("abcdefghijklmnopqrstuvwxyz", limit=ConcurrencyLimit(limit=1))
    rig.pick()
    looked: list[int] = []

    class Counted(list[Any]):
        def __getitem__(self, at: Any) -> Any:
            looked.append(at)
            return super().__getitem__(at)

    assert with_room(None, Counted(rig.balancer.candidates), (), random.Random(1)) is not None
    assert len(looked) <= 2


# ---- the line ----


def test_calls_beyond_the_limit_wait_in_line_and_those_beyond_the_line_are_refused() -> None:
    """In words that say why; UNAVAILABLE, at once."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1, queue=2, queue_s=0.5))
    calls = [rig.call() for _ in range(4)]
    actions = [call.begin(rig.now) for call in calls]
    assert isinstance(actions[0], Attempt)
    assert actions[1] == actions[2] == Queued("static:///shop: every endpoint is at its concurrency limit", 0.5)
    assert actions[3] == Failed(
        StatusCode.UNAVAILABLE,
        "static:///shop: every endpoint is at its concurrency limit, and the queue is full (2 waiting)",
    )
    assert rig.balancer.line.waiting == 2


def test_no_queue_means_refused_at_once() -> None:
    """queue=0."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1, queue=0))
    rig.call().begin(rig.now)
    assert isinstance(rig.call().begin(rig.now), Failed)
    assert rig.balancer.line.waiting == 0


def test_nobody_goes_past_the_line() -> None:
    """A place is free, and a call waits for it: the next call stands behind."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1))
    first, second, third = rig.call(), rig.call(), rig.call()
    first.begin(rig.now)
    second.begin(rig.now)
    rig.end(first.attempts[0])
    assert isinstance(third.begin(rig.now), Queued)
    assert isinstance(second.resume(rig.now), Attempt)
    assert rig.balancer.line.waiting == 1


def test_who_waited_too_long_is_refused() -> None:
    """UNAVAILABLE, and the place in line is free."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1))
    rig.call().begin(rig.now)
    call = rig.call()
    call.begin(rig.now)
    assert call.refused() == Failed(
        StatusCode.UNAVAILABLE,
        "static:///shop: the call waited 1 s (queue_s), and every endpoint was still at its concurrency limit",
    )
    assert rig.balancer.line.waiting == 0


def test_a_deadline_in_line_says_for_what_it_waited() -> None:
    """Not for a connection."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1))
    rig.call().begin(rig.now)
    call = rig.call(timeout=0.2)
    call.begin(rig.now)
    rig.clock.advance(0.2)
    assert call.expired(rig.now).details == (
        "Deadline Exceeded after 0.200 s: static:///shop: every endpoint is at its concurrency limit"
    )


def test_who_waits_for_a_connection_does_not_stand_in_line() -> None:
    """All connections were lost meanwhile: new calls wait with it, none is refused for a line that stands still."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1, queue=1))
    rig.call().begin(rig.now)
    call = rig.call()
    call.begin(rig.now)
    rig.connect("a", CONNECTING)
    assert call.resume(rig.now) == Queued("static:///shop: still connecting (1 endpoint)")
    assert rig.balancer.line.waiting == 0
    assert rig.call().begin(rig.now) == Queued("static:///shop: still connecting (1 endpoint)")


def test_a_retry_that_finds_all_full_stands_in_line_and_ends_with_its_own_failure_when_refused() -> None:
    """That says more than the refusal."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=1, queue=1), retry=Retry(wait=wait_fixed(1)))
    call = rig.call()
    call.begin(rig.now)
    assert isinstance(rig.fail(call, UNAVAILABLE), Pause)
    rig.call().begin(rig.now)
    assert isinstance(call.resume(rig.now + 1), Queued)
    assert call.refused() is DONE
    assert "and every endpoint was still at its concurrency limit" in call.gave_up


class Line(RuleBasedStateMachine):
    """Whatever happens in whatever order: nobody is lost, nothing is left, no limit is passed."""

    LIMIT = ConcurrencyLimit(limit=2, queue=3, queue_s=1.0)

    def __init__(self) -> None:
        super().__init__()
        retry = Retry(wait=wait_none(), jitter=0, budget=Budget(ratio=1, min_per_s=100))
        self.rig = Rig("abc", limit=self.LIMIT, retry=retry)
        self.alive: set[Call] = set()
        self.in_line: set[Call] = set()

    def follow(self, call: Call, action: Any) -> None:
        """File the call by what it must do next, as a driver would."""
        self.alive.discard(call)
        self.in_line.discard(call)
        if isinstance(action, Attempt | Pause | Queued):
            self.alive.add(call)
            if isinstance(action, Queued) and action.line_s is not None:
                self.in_line.add(call)
        else:
            call.settled()  # the driver settles

    def _one(self, of: Any, at: int) -> Call | None:
        calls = sorted((call for call in self.alive if of(call)), key=lambda call: call.number)  # type: ignore[attr-defined]
        return calls[at % len(calls)] if calls else None

    counter = itertools.count()

    @rule()
    def begin(self) -> None:
        """A new call."""
        call = self.rig.call()
        call.number = next(self.counter)  # type: ignore[attr-defined]
        self.follow(call, call.begin(self.rig.now))

    def _runs(self, call: Call) -> bool:
        return bool(call.attempts) and call.attempts[-1].outcome is None

    @rule(at=st.integers(0, 99), outcome=st.sampled_from([OK, UNAVAILABLE, REFUSED, INTERNAL, CANCELLED]))
    def end(self, at: int, outcome: Any) -> None:
        """An attempt ends."""
        call = self._one(self._runs, at)
        if call is None:
            return
        if outcome is OK:
            self.rig.end(call.attempts[-1], outcome)
            self.follow(call, DONE)
        else:
            self.follow(call, self.rig.fail(call, outcome))

    @rule(at=st.integers(0, 99))
    def resume(self, at: int) -> None:
        """Something changed, or a place is free: a call that waits is woken, in any order."""
        call = self._one(lambda call: not self._runs(call), at)
        if call is not None:
            self.follow(call, call.resume(self.rig.now))

    @rule(at=st.integers(0, 99), how=st.sampled_from(["refused", "expired", "cancelled"]))
    def give_up(self, at: int, how: str) -> None:
        """It waited too long, or its caller left."""
        call = self._one(lambda call: not self._runs(call), at)
        if call is None:
            return
        if how == "refused" and call in self.in_line:
            self.follow(call, call.refused())
        elif how == "expired":
            self.follow(call, call.expired(self.rig.now))
        else:
            self.follow(call, None)

    @rule(name=st.sampled_from("abc"), state=st.sampled_from([READY, READY, CONNECTING, FAILING]))
    def connectivity(self, name: str, state: Any) -> None:
        """Connections come and go."""
        if any(c.endpoint.id == name for c in self.rig.balancer.candidates):
            self.rig.connect(name, state)

    @rule(names=st.sampled_from(["abc", "ab", "c", ""]))
    def update(self, names: str) -> None:
        """Endpoints come and go."""
        self.rig.update(names)

    @invariant()
    def the_line_counts_right(self) -> None:
        """``waiting`` is the number of calls in line, at most ``queue``."""
        assert self.rig.balancer.line.waiting == len(self.in_line) <= self.LIMIT.queue

    @invariant()
    def limits_hold(self) -> None:
        """No endpoint has more than two, and what is in flight is what runs."""
        for candidate in self.rig.balancer.candidates:
            assert 0 <= candidate.in_flight <= 2
        gone = {a.candidate for call in self.alive for a in call.attempts if a.outcome is None and a.candidate.retired}
        assert self.rig.in_flight + sum(c.running for c in gone) == sum(map(self._runs, self.alive))

    def teardown(self) -> None:
        """All leave: nothing is in flight, nobody waits."""
        for call in list(self.alive):
            if self._runs(call):
                self.rig.end(call.attempts[-1], CANCELLED)
            self.follow(call, None)
        assert self.rig.in_flight == self.rig.balancer.line.waiting == 0


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_a_server_that_is_always_full_does_not_drive_it_up(slower: float) -> None:
    """Ten workers, as many calls as the limit lets in: it stays near what they can do, also when they grow slower."""
    limit = ConcurrencyLimit(adaptive=True, limit=20).new_state()
    free = [0.0] * 10
    running: list[tuple[float, float]] = []
    now, calls = 0.0, 20_000
    seen = []
    for done in range(calls):
        while len(running) < limit.limit:
            begins = max(now, heapq.heappop(free))
            ends = begins + 0.01 * (slower if done > calls / 2 else 1.0)
            heapq.heappush(free, ends)
            heapq.heappush(running, (ends, now))
        in_flight = len(running)
        now, started = heapq.heappop(running)
        limit.observe(now - started, in_flight, now)
        seen.append(limit.limit)
    assert max(seen[1000:]) <= 60
    assert min(seen[1000:]) >= 2  # half of min_limit, while it looks how long calls take without a queue


# ---- what a server's refusals tell of its stream limit ----

REFUSED_STREAM = classify(StatusCode.UNAVAILABLE, origin=Origin.REFUSED, details="error code 7")


def flood(rig: Rig, count: int) -> list[Attempt]:
    """So many attempts at once."""
    return [rig.pick() for _ in range(count)]


def test_a_stream_limit_is_learnt_from_refusals() -> None:
    """Of eight attempts three are refused: from then on five run, and the sixth waits, though no limit was set."""
    rig = Rig("a")
    attempts = flood(rig, 8)
    for attempt in attempts[5:]:
        rig.end(attempt, REFUSED_STREAM)
    assert rig.unpicked().full
    rig.end(attempts[0])
    rig.pick()
    assert rig.unpicked().full


def test_calls_wait_for_a_stream_without_bound() -> None:
    """As they do in core where a server says its limit: until their deadline, in order, any number of them."""
    rig = Rig("a")
    attempts = flood(rig, 2)
    rig.end(attempts[1], REFUSED_STREAM)
    calls = [rig.call() for _ in range(500)]
    for call in calls:
        waits = call.begin(rig.now)
        assert isinstance(waits, Queued)
        assert waits.line_s == math.inf
    rig.end(attempts[0])
    assert isinstance(calls[0].resume(rig.now), Attempt)
    assert isinstance(calls[1].resume(rig.now), Queued)


def test_a_full_endpoint_is_passed_over_for_another() -> None:
    """Its limit is its own."""
    rig = Rig("ab")
    attempts = flood(rig, 4)
    refused = [attempt for attempt in attempts if attempt.endpoint_id == "a"]
    rig.end(refused[1], REFUSED_STREAM)
    assert {rig.pick().endpoint_id for _ in range(6)} == {"b"}


def test_a_learnt_limit_goes_with_its_connection() -> None:
    """And what a call of the connection before says is not learnt."""
    rig = Rig("a")
    attempts = flood(rig, 4)
    rig.end(attempts[3], REFUSED_STREAM)
    assert rig.unpicked().full
    rig.connect("a", IDLE)
    rig.clock.advance(0.1)
    rig.connect("a")
    rig.pick()
    rig.end(attempts[2], REFUSED_STREAM)
    rig.pick()


def test_a_learnt_limit_probes_upward_ever_more_slowly() -> None:
    """One more after a second; each probe that is refused doubles the pause, up to a minute."""
    rig = Rig("a")
    attempts = flood(rig, 11)
    rig.end(attempts.pop(), REFUSED_STREAM)
    pauses = []
    for _ in range(9):
        waited = 0.0
        while not isinstance(picked := rig.balancer.pick(None, rig.now), Attempt):
            rig.clock.advance(0.5)
            waited += 0.5
        pauses.append(waited)
        assert rig.unpicked().full
        rig.end(picked, REFUSED_STREAM)
        assert rig.candidate("a").in_flight == 10
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_limit_that_was_raised_is_found_again() -> None:
    """While nothing is refused a full endpoint takes a twentieth more each second: ten times as many in a minute."""
    rig = Rig("a")
    attempts = flood(rig, 101)
    rig.end(attempts.pop(), REFUSED_STREAM)
    for _ in range(60):
        rig.clock.advance(1.0)
        while isinstance(rig.balancer.pick(None, rig.now), Attempt):
            pass
    assert rig.candidate("a").in_flight > 1000


def test_refusals_at_once_count_as_one() -> None:
    """The pause before the next probe does not grow with the size of a burst."""
    rig = Rig("a")
    attempts = flood(rig, 50)
    for attempt in attempts[10:]:
        rig.end(attempt, REFUSED_STREAM)
    rig.clock.advance(1.0)
    rig.pick()
    assert rig.unpicked().full


def test_the_smaller_of_both_limits_counts() -> None:
    """A limit that was set stands, with its line and its adaptation; what is learnt may be below it."""
    rig = Rig("a", limit=ConcurrencyLimit(limit=6, queue=2, queue_s=3.0))
    attempts = flood(rig, 6)
    assert rig.unpicked().full
    for attempt in attempts[4:]:
        rig.end(attempt, REFUSED_STREAM)
    assert rig.unpicked().full
    assert rig.candidate("a").in_flight == 4
    calls = [rig.call() for _ in range(3)]
    assert [type(call.begin(rig.now)) for call in calls] == [Queued, Queued, Failed]
    waits = calls[0].resume(rig.now)
    assert isinstance(waits, Queued)
    assert waits.line_s == 3.0
    rig.clock.advance(100.0)
    for _ in range(2):
        rig.pick()
        rig.clock.advance(100.0)
    assert rig.unpicked().full
