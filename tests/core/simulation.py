"""Calls in virtual time, through the real core, from the first attempt to the last."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from random import Random

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker
from lb.core.call import Action, Call, Failed, Pause, Queued
from lb.core.endpoint import Resolution
from lb.core.outcome import OK, Outcome
from lb.core.policies import Policy, RoundRobin
from lb.core.retry import Retry
from lb.core.shared import Rules, Shared
from lb.testing.clock import FakeClock
from tests.core.rig import READY, endpoint

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
