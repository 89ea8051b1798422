"""Thousands of calls in virtual time through the real core: what failures are left, and what retries cost."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from random import Random

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker
from lb.core.budget import Budget
from lb.core.call import Action, Call, Failed, Pause, Queued
from lb.core.endpoint import Resolution
from lb.core.outcome import OK, Outcome
from lb.core.policies import Policy, RoundRobin, WeightedRoundRobin
from lb.core.retry import Retry
from lb.core.shared import Rules, Shared
from lb.testing.clock import FakeClock
from tests.core.rig import INTERNAL, READY, UNAVAILABLE, endpoint

NO_BREAKER = Breaker(consecutive_failures=None, failure_ratio=None)
Server = Callable[[str, float], Outcome]


class Simulation:
    """A client at a steady rate; every attempt takes 5 ms and ends as ``server(endpoint, now)`` says."""

    def __init__(
        self,
        server: Server,
        *,
        weights: dict[str, int],
        policy: Policy | None = None,
        breaker: Breaker | None = None,
        retry: Retry | None = None,
        timeout: float = 2.0,
    ) -> None:
        self.clock = FakeClock()
        self.server = server
        self.retry = retry or Retry()
        self.timeout = timeout
        self.balancer = Balancer("static:///shop", policy or RoundRobin(), breaker or Breaker(), Random(11))
        self.balancer.update(Resolution(tuple(endpoint(name, weight) for name, weight in weights.items())))
        for candidate in self.balancer.candidates:
            self.balancer.set_connectivity(candidate, READY, self.clock())
        self.budget = self.retry.budget.new_state()
        self.answers = Counter[str]()
        self.attempts: list[tuple[float, str, int]] = []
        self.gave_up = Counter[str]()
        self.open = 0

    def run(self, calls: int, rate: float) -> None:
        """So many calls, ``rate`` a second; returns when all have ended."""
        for number in range(calls):
            self.clock.call_later(number / rate, self.begin)
        self.clock.run()
        assert self.open == 0
        assert all(candidate.running == 0 for candidate in self.balancer.candidates)

    def begin(self) -> None:
        """One call."""
        now = self.clock()
        rules = Rules(retry=self.retry, idempotent=True)
        method = Shared("/shop.Shop/Get", rules, self.balancer, self.budget)
        call = Call(method, now + self.timeout, None, now)
        self.open += 1
        self.perform(call, call.begin(now))

    def perform(self, call: Call, action: Action) -> None:
        """Do what the core says."""
        if isinstance(action, Attempt):
            self.attempts.append((self.clock(), action.endpoint_id, action.number))
            took_s, outcome = self.answer(action.endpoint_id)
            self.clock.call_later(took_s, self.ended, call, action, outcome)
        elif isinstance(action, Pause):
            self.clock.call_later(action.delay_s, lambda: self.perform(call, call.resume(self.clock())))
        else:
            assert not isinstance(action, Queued), action
            self.close(call, "failed")
            if isinstance(action, Failed):
                self.gave_up[action.details] += 1

    def answer(self, name: str) -> tuple[float, Outcome]:
        """How long an attempt that begins now takes on this server, in seconds, and how it ends."""
        return 0.005, self.server(name, self.clock())

    def ended(self, call: Call, attempt: Attempt, outcome: Outcome) -> None:
        """The server has answered, or not."""
        now = self.clock()
        if outcome is OK:
            call.give_back(attempt, outcome, now)
            self.close(call, "ok")
        else:
            self.perform(call, call.ended(attempt, outcome, now, committed=False).action)

    def close(self, call: Call, answer: str) -> None:
        """The call is over, and within its deadline."""
        assert call.deadline is not None
        assert self.clock() <= call.deadline
        self.open -= 1
        self.answers[answer] += 1
        if answer == "failed":
            self.gave_up[call.gave_up] += 1

    @property
    def retries(self) -> list[float]:
        """When each retry was sent."""
        return [at for at, _, number in self.attempts if number > 1]

    def within_budget(self) -> bool:
        """Whether in every stretch of 10 s retries were at most 20 % of the calls, and 10 a second, of 20 s.

        The reserve of a stretch may be spent at once, and a deposit may be 10 s old.
        """
        first = sorted(at for at, _, number in self.attempts if number == 1)
        again = sorted(self.retries)
        settings = self.retry.budget
        for start in range(1000, int(self.clock()) + 1):
            sent = bisect_left(again, start + 10) - bisect_left(again, start)
            calls = bisect_left(first, start + 10) - bisect_left(first, start - 10)
            if sent > settings.ratio * calls + settings.min_per_s * 10 * 2:
                return False
        return True


def test_one_of_three_fails_and_no_call_does() -> None:
    """10,000 calls, one endpoint dead from the start: every call succeeds, and the breaker keeps retries few."""
    sim = Simulation(lambda name, _: UNAVAILABLE if name == "c" else OK, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=100)
    assert sim.answers == {"ok": 10_000}
    # Five failures open it; then probes after 1, 2, 4 s, and every 6 to 9 s from then on.
    assert 5 <= len(sim.retries) <= 20
    assert sim.within_budget()
    shares = Counter(name for _, name, _ in sim.attempts)
    assert abs(shares["a"] - shares["b"]) < 60
    assert shares["c"] == len(sim.retries)


def test_without_a_breaker_the_budget_bounds_the_retries() -> None:
    """A third of the calls would need a retry, the budget allows a fifth and 10 a second: the rest fails, at once."""
    sim = Simulation(
        lambda name, _: UNAVAILABLE if name == "c" else OK,
        weights=dict.fromkeys("abc", 1),
        breaker=NO_BREAKER,
    )
    sim.run(10_000, rate=1000)
    assert sim.answers.total() == 10_000
    # 3,333 needed. There to spend: 20 % of 10,000 calls, and the reserve of 100, some of which comes back
    # when the first retries are forgotten.
    assert 2_000 <= len(sim.retries) <= 2_120
    assert sim.within_budget()
    assert 0.11 <= sim.answers["failed"] / 10_000 <= 0.14
    assert set(sim.gave_up) == {"the retry budget is used up"}


def test_when_all_fail_retries_add_a_fifth() -> None:
    """A service that is down gets at most a fifth more traffic, and the reserve; not four times as much."""
    sim = Simulation(lambda *_: UNAVAILABLE, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=500)
    assert sim.answers == {"failed": 10_000}
    # 20 s: a fifth of the calls, and the reserve of 100 retries, which comes back once.
    assert len(sim.retries) <= 0.2 * 10_000 + 10 * 30
    assert len(sim.attempts) == 10_000 + len(sim.retries)
    assert sim.within_budget()


def test_a_budget_of_nothing_means_no_retries() -> None:
    """Ratio and floor at 0: each call has one attempt."""
    sim = Simulation(lambda *_: UNAVAILABLE, weights={"a": 1, "b": 1}, retry=Retry(budget=Budget(ratio=0, min_per_s=0)))
    sim.run(500, rate=100)
    assert (len(sim.attempts), sim.answers) == (500, {"failed": 500})


def test_an_endpoint_that_recovers_gets_its_share_back() -> None:
    """Down from 10 s to 20 s: no call fails; half a minute after it is back shares are by weight again, within 2 %."""

    def server(name: str, now: float) -> Outcome:
        return UNAVAILABLE if name == "c" and 1010 <= now < 1020 else OK

    sim = Simulation(server, weights={"a": 1, "b": 2, "c": 5}, policy=WeightedRoundRobin())
    sim.run(10_000, rate=100)
    assert sim.answers == {"ok": 10_000}
    for start, end, share_c in ((1000, 1010, 5 / 8), (1012, 1020, 0.0), (1040, 1100, 5 / 8)):
        stretch = Counter(name for at, name, _ in sim.attempts if start <= at < end)
        assert abs(stretch["c"] / stretch.total() - share_c) < 0.02, (start, end, stretch)
        assert abs(stretch["b"] / (stretch["a"] + stretch["b"]) - 2 / 3) < 0.02, (start, end, stretch)


def test_errors_that_are_not_retried_end_with_the_breaker() -> None:
    """INTERNAL is never retried: the failing endpoint costs what opens its breaker, and its probes, no more."""
    sim = Simulation(lambda name, _: INTERNAL if name == "c" else OK, weights=dict.fromkeys("abc", 1))
    sim.run(10_000, rate=100)
    assert 5 <= sim.answers["failed"] <= 20
    assert set(sim.gave_up) == {"INTERNAL is not retried"}
    assert sim.retries == []


def test_a_simulation_repeats() -> None:
    """The same seed gives the same attempts at the same instants."""

    def run() -> list[tuple[float, str, int]]:
        sim = Simulation(lambda name, _: UNAVAILABLE if name == "c" else OK, weights=dict.fromkeys("abc", 1))
        sim.run(1_000, rate=200)
        return sim.attempts

    assert run() == run()
