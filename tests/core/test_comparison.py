"""Who answers far worse than the others: the test, the rule by example, and fleets in virtual time.

``python -m tests.core.test_comparison`` prints how soon each policy leaves a bad endpoint, over many seeds.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from math import comb
from random import Random
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker, State
from lb.core.comparison import LEVEL, Comparison, chance
from lb.core.concurrency import ConcurrencyLimit
from lb.core.endpoint import Resolution
from lb.core.outcome import OK, Origin, Outcome, classify
from lb.core.policies import (
    P2C,
    CallInfo,
    LeastRequest,
    Orca,
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
from lb.testing.clock import FakeClock
from tests.core.rig import INTERNAL, READY, REFUSED, STEADY, Rig, endpoint

NOT_FOUND = classify(StatusCode.NOT_FOUND, details="no such thing")
QUOTA = classify(StatusCode.RESOURCE_EXHAUSTED, details="quota")
COMPARED: list[StatusCode] = [code for code in StatusCode if code not in (StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED)]
SPREADING: list[Policy] = [
    WeightedRoundRobin(),
    RoundRobin(),
    WeightedRandom(),
    Uniform(),
    LeastRequest(),
    P2C(),
    Orca(),
]
SEVERAL: list[Policy] = [WeightedRoundRobin(), LeastRequest(), P2C()]
BAD = "0"


# ---- the test ----


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 40), st.integers(0, 40))
def test_the_chance_is_fishers(good: int, bad: int, others_good: int, others_bad: int) -> None:
    """The tail of the hypergeometric distribution, as counting all cases gives it."""
    own, others, all_good = good + bad, others_good + others_bad, good + others_good
    ways = sum(comb(all_good, k) * comb(bad + others_bad, own - k) for k in range(good + 1) if own - k >= 0)
    expected = ways / comb(own + others, own) if own and others else 1.0
    assert chance(good, bad, others_good, others_bad) == pytest.approx(expected, rel=1e-6)


def test_large_counts_cost_little_and_stay_exact() -> None:
    """A million answers elsewhere: of 20 here, none good where half should be."""
    assert chance(0, 20, 500_000, 500_000) == pytest.approx(0.5**20, rel=1e-3)
    assert chance(400_000, 600_000, 500_000, 500_000) == 0.0


# ---- the rule, by example ----


def answer(rig: Rig, outcomes: Callable[[str], Outcome], calls: int, rate: float = 50.0) -> None:
    """So many calls, ended at once, spread over time."""
    for _ in range(calls):
        attempt = rig.pick()
        rig.end(attempt, outcomes(attempt.endpoint_id))
        rig.clock.advance(1 / rate)


def of_a(bad: Outcome) -> Callable[[str], Outcome]:
    """The endpoint ``a`` answers so, the others well."""
    return lambda name: bad if name == "a" else OK


def test_it_is_left_out_and_says_why() -> None:
    """The move, the snapshot and the breaker's state have the counts in words, and what it answered."""
    rig = Rig("abc")
    answer(rig, of_a(NOT_FOUND), 60)
    breaker = rig.candidate("a").breaker
    assert breaker.state is State.OPEN
    assert breaker.last is not None
    words = breaker.blamed
    assert words == breaker.last.reason
    assert words.startswith("0 of ")
    assert "calls were answered well here, " in words
    assert words.endswith(" elsewhere")
    assert rig.candidate("a").last_error == "NOT_FOUND: no such thing"
    seen = snapshot(rig.balancer, 0.0, rig.now).endpoints[0]
    assert seen.why.startswith("breaker open for ")
    assert f"({words}; NOT_FOUND: no such thing)" in seen.why
    assert {c.breaker.state for c in rig.balancer.candidates if c.endpoint.id != "a"} == {State.CLOSED}


def blamed(bad: Outcome = NOT_FOUND) -> Rig:
    """Two endpoints of which ``a`` is out for its bad answers, for one second."""
    rig = Rig("ab", policy=LeastRequest())
    while rig.candidate("a").breaker.state is State.CLOSED:
        answer(rig, of_a(bad), 1)
    return rig


def probe(rig: Rig) -> Attempt:
    """The next attempt on ``a``, as soon as it is let through."""
    retry_at = rig.candidate("a").breaker.retry_at
    assert retry_at is not None
    rig.clock.advance(retry_at - rig.now)
    attempt = rig.pick()
    while attempt.endpoint_id != "a":
        rig.end(attempt)
        attempt = rig.pick()
    assert rig.candidate("a").breaker.state is State.HALF_OPEN
    return attempt


@pytest.mark.parametrize("code", [StatusCode.UNIMPLEMENTED, StatusCode.CANCELLED], ids=lambda code: code.name)
def test_one_that_failed_and_now_answers_badly_is_left_out_soon(code: StatusCode) -> None:
    """Its probe says nothing by itself; that must not make one probe follow the other for ever."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    before = rig.candidate("a").picks
    answer(rig, of_a(classify(code)), 1000)
    assert rig.candidate("a").picks - before < 20
    assert rig.candidate("a").breaker.blamed


def test_only_a_good_answer_closes_it() -> None:
    """Its probe answered NOT_FOUND, which closes a breaker that failures opened: here it is the fault itself."""
    rig = blamed()
    rig.end(probe(rig), NOT_FOUND)
    assert rig.candidate("a").breaker.state is State.OPEN
    rig.end(probe(rig), OK)
    assert rig.candidate("a").breaker.state is State.CLOSED


def test_any_answer_closes_one_that_failures_opened() -> None:
    """As ever: who failed and now says NOT_FOUND works."""
    rig = Rig("ab", policy=LeastRequest())
    rig.trip("a")
    rig.end(probe(rig), NOT_FOUND)
    assert rig.candidate("a").breaker.state is State.CLOSED


def test_what_says_nothing_of_a_probe_gives_its_place_back() -> None:
    """A caller that cancels, a quota: the next one probes."""
    rig = blamed()
    rig.end(probe(rig), QUOTA)
    assert rig.candidate("a").breaker.state is State.HALF_OPEN
    assert rig.candidate("a").breaker.admits(rig.now)


def test_a_stream_that_ends_badly_after_its_first_message_opens_it_again() -> None:
    """The first message closes the breaker, as its end may be hours away; an end soon after takes that back."""
    rig = blamed()
    attempt = probe(rig)
    rig.balancer.answered(attempt, rig.now)
    assert rig.candidate("a").breaker.state is State.CLOSED
    rig.clock.advance(0.1)
    rig.end(attempt, NOT_FOUND)
    breaker = rig.candidate("a").breaker
    assert breaker.state is State.OPEN
    assert breaker.last is not None
    assert breaker.last.open_s == 2.0


def test_the_end_of_a_stream_much_later_is_an_end_like_others() -> None:
    """It was well for a minute: one bad answer opens nothing."""
    rig = blamed()
    attempt = probe(rig)
    rig.balancer.answered(attempt, rig.now)
    rig.clock.advance(60.0)
    rig.end(attempt, NOT_FOUND)
    assert rig.candidate("a").breaker.state is State.CLOSED


@pytest.mark.parametrize(
    "setting",
    [Breaker(good_ratio=None), Breaker(consecutive_failures=None, failure_ratio=None)],
    ids=["by its own", "with all"],
)
def test_it_can_be_turned_off(setting: Breaker) -> None:
    """By ``good_ratio=None``, or with the breaker as a whole."""
    rig = Rig("ab", breaker=setting)
    answer(rig, of_a(NOT_FOUND), 1000)
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "half", True])
def test_a_bad_ratio_is_said(value: Any) -> None:
    """With what is accepted."""
    with pytest.raises((TypeError, ValueError)) as error:
        Breaker(good_ratio=value)
    assert str(error.value) == f"Breaker.good_ratio is {value!r}; expected a number > 0 and < 1, or None"


@pytest.mark.parametrize(
    "outcome",
    [
        QUOTA,
        REFUSED,
        classify(StatusCode.UNAVAILABLE, origin=Origin.UNPROCESSED),
        classify(StatusCode.CANCELLED, origin=Origin.CALLER),
        classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER),
    ],
    ids=lambda outcome: outcome.reason(),
)
def test_rows_of_their_own_are_not_compared(outcome: Outcome) -> None:
    """Quota, push-back, what was given back unprocessed, and the caller's own ends say nothing by comparison."""
    assert not outcome.bad
    rig = Rig("ab", breaker=Breaker(refused_s=None))
    answer(rig, of_a(outcome), 500)
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


@pytest.mark.parametrize("code", COMPARED, ids=lambda code: code.name)
def test_every_other_code_of_a_server_is_a_bad_answer(code: StatusCode) -> None:
    """Whatever its verdict."""
    assert classify(code).bad
    assert not OK.bad


def test_a_fifth_less_is_not_far_below() -> None:
    """A new build that lacks one method of five: 80 % against 100 %. It stays, however long."""
    rig, rng = Rig("ab"), Random(4)
    answer(rig, lambda name: NOT_FOUND if name == "a" and rng.random() < 0.2 else OK, 20_000)
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


def test_a_small_weight_needs_its_own_calls() -> None:
    """One call in a hundred: it is out after a handful of its own, which takes ten seconds and more at 50 a second."""
    rig = Rig("ab", weights=[1, 99], policy=WeightedRandom())
    start = rig.now
    while rig.candidate("a").breaker.state is State.CLOSED:
        answer(rig, of_a(NOT_FOUND), 1)
    assert 5 <= rig.candidate("a").evidence.bad <= 6
    assert 2.0 < rig.now - start < 60.0


# ---- who is not at fault ----


class Asked:
    """A call with a key."""

    method = "/shop.Shop/Get"

    def __init__(self, key: str) -> None:
        self.metadata: Sequence[tuple[str, str | bytes]] = (("key", key),)


def callers(rig: Rig, keys: Sequence[str], missing: str, rounds: int) -> None:
    """One caller asks for these in turn, and waits for each; what is ``missing`` is NOT_FOUND everywhere."""
    rng = Random(5)
    for _ in range(rounds):
        for key in keys:
            call: CallInfo = Asked(key)
            attempt = rig.balancer.pick(call, rig.now)
            assert isinstance(attempt, Attempt)
            rig.clock.advance(rng.uniform(0.015, 0.025))
            rig.end(attempt, NOT_FOUND if key in missing else OK)


@pytest.mark.parametrize("policy", SPREADING, ids=lambda policy: policy.name)
@pytest.mark.parametrize(("names", "keys", "missing"), [("ab", "xy", "y"), ("abc", "xyz", "z"), ("abcd", "xy", "x")])
def test_a_caller_in_step_with_the_turn_blames_nobody(policy: Policy, names: str, keys: str, missing: str) -> None:
    """Every other call is for a missing key, and each goes to the same endpoint: the calls are at fault."""
    rig = Rig(names, policy=policy)
    callers(rig, keys, missing, 10_000 // len(keys))
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


@pytest.mark.parametrize("policy", SEVERAL, ids=lambda policy: policy.name)
def test_a_caller_that_asks_twice_at_once_blames_nobody(policy: Policy) -> None:
    """One of two calls at once is for a missing key: it goes to whoever is second."""
    rig, rng = Rig("abc", policy=policy), Random(5)
    for _ in range(3000):
        calls = [(rig.pick(), outcome) for outcome in (OK, NOT_FOUND)]
        rig.clock.advance(rng.uniform(0.010, 0.020))
        for attempt, outcome in calls:
            rig.end(attempt, outcome)
            rig.clock.advance(rng.uniform(0.0, 0.002))
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


@pytest.mark.parametrize(
    "policy",
    [
        RingHash(key="key"),
        PickFirst(),
        Subset(size=2, policy=RingHash(key="key"), client=0),
        SlowStart(policy=PickFirst()),
    ],
    ids=lambda policy: policy.name,
)
def test_where_calls_stick_to_an_endpoint_nobody_is_compared(policy: Policy) -> None:
    """A missing key belongs to one endpoint, which is the only one to be asked for it: that is no fault of its."""
    rig = Rig("abc", policy=policy)
    callers(rig, "xyz", "x", 2000)
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


@pytest.mark.parametrize(
    "policy", [SlowStart(), Subset(size=3, policy="p2c", client=0), ZoneAware(zone="here", policy="least_request")]
)
def test_policies_around_others_compare_as_these_do(policy: Policy) -> None:
    """A wrapper passes on what the policy inside says."""
    rig = Rig("abc", policy=policy)
    answer(rig, of_a(NOT_FOUND), 120)
    assert rig.candidate("a").breaker.state is not State.CLOSED


def test_a_policy_of_a_users_own_says_whether_it_spreads() -> None:
    """Without that word nobody is compared: it may go by what a call asks."""

    class Own:
        name = "own"
        picker = RoundRobin().picker

    class Spreading(Own):
        spreads = True

    for policy, state in ((Own(), State.CLOSED), (Spreading(), State.OPEN)):
        rig = Rig("ab", policy=policy)
        answer(rig, of_a(NOT_FOUND), 60)
        assert rig.candidate("a").breaker.state is state


def test_when_all_begin_to_answer_badly_nobody_is_blamed() -> None:
    """After long good times, within one call: what is compared has the same beginning for all."""
    rig = Rig("abc")
    answer(rig, lambda _: OK, 10_000)
    answer(rig, lambda _: NOT_FOUND, 10_000)
    assert all(c.breaker.last is None for c in rig.balancer.candidates)


# ---- errors improve nobody's standing ----


@pytest.mark.parametrize(
    "policy", [LeastRequest(), P2C(), ZoneAware(zone="here", policy="p2c")], ids=lambda policy: policy.name
)
@pytest.mark.parametrize("outcome", [NOT_FOUND, QUOTA, REFUSED, INTERNAL], ids=lambda outcome: outcome.code.name)
def test_quick_errors_attract_no_calls(policy: Policy, outcome: Outcome) -> None:
    """It answers in half a millisecond where good ones take twenty: it gets its share at most, with breakers off."""
    calls: list[str] = []
    for seed in range(6):  # P2C keeps the latency that it had by chance when the errors began
        off = Breaker(consecutive_failures=None, failure_ratio=None)
        fleet = Fleet(3, policy, outcome, seed=seed, rate=400.0, breaker=off).run(lasts=4.0, after=0.0)
        calls += [name for at, name, _ in fleet.answers if at >= fleet.begins + 1]
    assert calls.count(BAD) / len(calls) < 0.37


def test_an_errors_place_is_free_when_a_good_answer_would_have_come() -> None:
    """It counts as in flight until then for policies; it never runs, so it holds up neither limit nor closing."""
    rig = Rig("a")
    attempt = rig.pick()
    rig.clock.advance(0.02)
    rig.end(attempt)
    rig.end(rig.pick(), NOT_FOUND)
    a = rig.candidate("a")
    assert (a.in_flight, a.running) == (1, 0)
    assert rig.update("").closable == [a]
    rig.update("a")
    rig.connect("a")
    rig.clock.advance(0.0201)
    rig.end(rig.pick())
    assert (a.in_flight, a.running) == (0, 0)


def test_an_adaptive_limit_does_not_grow_by_quick_errors() -> None:
    """Good answers take 20 ms, errors none: these are no sign that the server could take more."""

    def burst(rig: Rig, outcome: Outcome, took_s: float) -> None:
        running = [rig.pick() for _ in range(10)]
        rig.clock.advance(took_s)
        for attempt in running:
            rig.end(attempt, outcome)

    rig = Rig("a", limit=ConcurrencyLimit(limit=10, adaptive=True))
    limit = rig.candidate("a").limit
    assert limit is not None
    before = limit.limit
    for _ in range(20):
        burst(rig, NOT_FOUND, 0.0001)
    assert limit.limit == before
    for _ in range(20):
        burst(rig, OK, 0.02)
    assert limit.limit > before


def test_latency_is_that_of_good_answers() -> None:
    """What the snapshot shows does not fall with quick errors."""
    rig = Rig("a")
    attempt = rig.pick()
    rig.clock.advance(0.02)
    rig.end(attempt)
    for _ in range(20):
        attempt = rig.pick()
        rig.clock.advance(0.001)
        rig.end(attempt, NOT_FOUND)
    assert snapshot(rig.balancer, 0.0, rig.now).endpoints[0].latency_ms == pytest.approx(20.0)


def test_p2c_forgives_failures_within_ten_seconds() -> None:
    """One that failed, from the start or later, is asked again by then, and its first good answer ends the penalty."""
    for answers_first in (True, False):
        rig = Rig("ab", policy=P2C(), breaker=Breaker(consecutive_failures=None, failure_ratio=None))
        start, asked = rig.now, [rig.now]
        while rig.now < start + 60:
            attempt = rig.pick()
            rig.clock.advance(0.02)
            failing = attempt.endpoint_id == "a" and (rig.now > start + 1 or not answers_first) and rig.now < start + 30
            rig.end(attempt, INTERNAL if failing else OK)
            if attempt.endpoint_id == "a":
                asked.append(rig.now)
        assert max(later - earlier for earlier, later in itertools.pairwise(asked)) <= 10
        last = [at for at in asked if at > start + 50]
        assert len(last) > 100


# ---- fleets in virtual time ----


class Fleet:
    """Calls at a steady rate. From ``begins`` on endpoint ``0`` answers a part ``own`` well, all others ``others``."""

    begins = 2.0
    good_s, bad_s = 0.02, 0.0005

    def __init__(
        self,
        size: int,
        policy: Policy,
        outcome: Outcome,
        *,
        seed: int = 1,
        rate: float = 50.0,
        own: float = 0.0,
        others: float = 1.0,
        streams: bool = False,
        breaker: Breaker | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.rng = Random(seed)
        self.balancer = Balancer("static:///shop", policy, breaker or Breaker(), Random(seed + 1))
        self.balancer.update(Resolution(tuple(endpoint(str(at)) for at in range(size))))
        for candidate in self.balancer.candidates:
            self.balancer.set_connectivity(candidate, READY, self.clock())
        self.start = self.clock()
        self.outcome, self.rate, self.own, self.others, self.streams = outcome, rate, own, others, streams
        self.ends = self.closes = self.begins
        self.answers: list[tuple[float, str, bool]] = []
        self.opened: list[tuple[float, str]] = []
        self.panic = False

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    def run(self, *, lasts: float = 22.0, after: float = 10.0) -> Fleet:
        """The fault lasts so long; then all is well for so long."""
        self.ends = self.begins + lasts
        self.closes = self.ends + after
        self.clock.call_later(0.0, self.call)
        self.clock.run()
        return self

    def call(self) -> None:
        """One call, and the next one a moment later."""
        attempt = self.balancer.pick(None, self.clock())
        assert isinstance(attempt, Attempt)
        faulty = attempt.endpoint_id == BAD and self.begins <= self.now < self.ends
        good = self.rng.random() < (self.own if faulty else self.others)
        took = (self.good_s if good else self.bad_s) * self.rng.uniform(0.75, 1.25)
        if self.streams:
            self.clock.call_later(took / 2, lambda: self.balancer.answered(attempt, self.clock()))
        self.clock.call_later(took, self.end, attempt, OK if good else self.outcome)
        if self.now < self.closes:
            self.clock.call_later(self.rng.expovariate(self.rate), self.call)

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """It is over."""
        now = self.clock()
        self.balancer.ended(attempt, outcome, now)
        self.answers.append((self.now, attempt.endpoint_id, outcome is OK))
        last = attempt.candidate.breaker.last
        if last is not None and last.at == now and last.after is State.OPEN:
            self.opened.append((self.now, attempt.endpoint_id))
            self.panic = self.panic or bool(self.balancer.admission(now).panic)

    @property
    def out_s(self) -> float:
        """How long after its first bad answer the bad one's breaker opened; endless when it did not."""
        return min((at - self.begins for at, name in self.opened if name == BAD), default=float("inf"))

    @property
    def failed(self) -> float:
        """The part of calls that failed in the 20 s that begin 2 s after the fault did."""
        seen = [good for at, _, good in self.answers if self.begins + 2 <= at < self.begins + 22]
        return 1 - sum(seen) / len(seen)

    @property
    def back_s(self) -> float:
        """How long after its end the former bad one is closed and answers well."""
        return min(
            (
                at - self.ends
                for at, name, good in self.answers
                if name == BAD and good and at > self.ends + self.good_s
            ),
            default=float("inf"),
        )

    @property
    def blamed(self) -> set[str]:
        """Whose breaker opened."""
        return {name for _, name in self.opened}


def _cases(policies: Sequence[Policy], sizes: Sequence[int]) -> list[Any]:
    return [pytest.param(policy, size, id=f"{policy.name}-{size}") for policy in policies for size in sizes]


@pytest.mark.parametrize(("policy", "size"), [*_cases(SPREADING, [3]), *_cases(SEVERAL, [2, 10])])
@pytest.mark.parametrize("code", COMPARED, ids=lambda code: code.name)
def test_who_answers_each_call_badly_is_left_out(code: StatusCode, policy: Policy, size: int) -> None:
    """Out within two seconds, next to no failed calls in the next twenty, and back within ten of being well."""
    seed = COMPARED.index(code) + 100 * size
    fleet = Fleet(size, policy, classify(code), seed=seed).run()
    assert fleet.failed <= 0.02
    assert fleet.back_s <= 10
    # P2C gives it few calls in any case, so that the breaker may hear of it later.
    assert fleet.out_s <= 2 or isinstance(policy, P2C)
    assert fleet.blamed <= {BAD}


@pytest.mark.parametrize("code", COMPARED, ids=lambda code: code.name)
@pytest.mark.parametrize(("policy", "size"), _cases([RoundRobin(), LeastRequest()], [3]))
def test_the_same_for_streams_that_send_something_first(code: StatusCode, policy: Policy, size: int) -> None:
    """Their first message closes a probe's breaker, their end counts all the same."""
    fleet = Fleet(size, policy, classify(code), seed=COMPARED.index(code), streams=True).run()
    assert fleet.out_s <= 2
    assert fleet.failed <= 0.02
    assert fleet.back_s <= 10
    assert fleet.blamed == {BAD}


@pytest.mark.parametrize(("policy", "size"), _cases(SEVERAL, [2, 3]))
def test_who_answers_a_fifth_well_is_left_out(policy: Policy, size: int) -> None:
    """Now and then a probe succeeds by chance: soon it is out again, and for longer."""
    fleets = [Fleet(size, policy, NOT_FOUND, seed=seed, own=0.2).run(after=1.0) for seed in range(4)]
    assert all(fleet.out_s <= 3 for fleet in fleets)
    assert sum(fleet.failed for fleet in fleets) / len(fleets) <= 0.035  # by its share a fourth to two fifths would


@pytest.mark.parametrize(("policy", "size"), _cases(SEVERAL, [2, 3]))
def test_it_is_found_among_many_bad_answers_and_comes_back(policy: Policy, size: int) -> None:
    """A third of all calls is NOT_FOUND, of one endpoint all: it is out in a little more time, and back as soon."""
    fleets = [Fleet(size, policy, NOT_FOUND, seed=seed, others=0.7).run(after=20.0) for seed in range(4)]
    assert all(fleet.out_s <= 4 for fleet in fleets)
    assert all(fleet.back_s <= 10 for fleet in fleets)
    assert all(fleet.blamed == {BAD} for fleet in fleets)


@pytest.mark.parametrize(("policy", "size"), _cases(SPREADING, [2, 3, 10]))
def test_when_all_answer_most_calls_badly_nobody_is_blamed(policy: Policy, size: int) -> None:
    """Four of five are NOT_FOUND, everywhere: every breaker stays CLOSED, and there is no panic."""
    fleet = Fleet(size, policy, NOT_FOUND, seed=size, own=0.2, others=0.2).run(lasts=30.0, after=30.0)
    assert fleet.opened == []
    assert not fleet.panic
    assert {name for _, name, _ in fleet.answers} == {str(at) for at in range(size)}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("size", [2, 3, 10])
def test_chance_blames_nobody(size: int, share: float) -> None:
    """The comparison alone over 60,000 calls a case: by its level one in a million may be wrong, and far fewer are."""
    rig, rng = Rig("abcdefghij"[:size], policy=Uniform(), breaker=STEADY), Random(size)
    comparison, candidates, now = Comparison(0.5), rig.balancer.candidates, 0.0
    wrong = 0
    for _ in range(60_000):
        now += 0.02
        candidate = candidates[int(rng.random() * size)]
        if rng.random() < share:
            wrong += bool(comparison.answered_badly(candidate, now, in_turn=False))
        else:
            comparison.good += 1
            candidate.load.observe(0.01, now)
    assert wrong <= 60_000 * LEVEL


def _table() -> None:
    """``python -m tests.core.test_comparison [CODE [OWN [OTHERS [SEEDS]]]]``."""
    code, own, others, seeds = [*sys.argv[1:], *("UNIMPLEMENTED", "0", "1", "20")[len(sys.argv) - 1 :]]
    print("endpoints policy                 out s: median, last   failed: mean, most   back s: median, last   blamed")
    for size in (2, 3, 10):
        for policy in SPREADING:
            fleets = [
                Fleet(size, policy, classify(StatusCode[code]), seed=seed, own=float(own), others=float(others)).run()
                for seed in range(int(seeds))
            ]
            out, back = sorted(f.out_s for f in fleets), sorted(f.back_s for f in fleets)
            failed = [f.failed for f in fleets]
            wrong = sum(bool(f.blamed - {BAD}) for f in fleets)
            print(
                f"{size:9} {policy.name:22} {out[len(out) // 2]:12.2f} {out[-1]:6.2f}"
                f" {sum(failed) / len(failed):15.2%} {max(failed):7.2%} {back[len(back) // 2]:15.1f} {back[-1]:6.1f}"
                f" {wrong:10}"
            )


if __name__ == "__main__":
    _table()
