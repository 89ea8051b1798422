"""A balancer on a fake clock, and the words for what happens to it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from grpc import StatusCode

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker, State
from lb.core.call import Action, Call, Failed
from lb.core.candidate import Candidate, Connectivity
from lb.core.concurrency import ConcurrencyLimit
from lb.core.endpoint import Endpoint, Resolution
from lb.core.hedging import Hedging
from lb.core.members import Changes
from lb.core.outcome import OK, Origin, Outcome, classify
from lb.core.policies import Policy, RoundRobin
from lb.core.quantile import Quantile
from lb.core.retry import Retry
from lb.core.shared import Rules, Shared
from lb.core.throttle import Throttle
from lb.core.unpicked import Unpicked
from lb.testing.clock import FakeClock

READY = Connectivity.READY
IDLE = Connectivity.IDLE
CONNECTING = Connectivity.CONNECTING
FAILING = Connectivity.TRANSIENT_FAILURE

STEADY = Breaker(jitter=0.0)

UNAVAILABLE = classify(StatusCode.UNAVAILABLE, details="Socket closed")
UNSENT = classify(StatusCode.UNAVAILABLE, origin=Origin.UNSENT, details="connection refused")
REFUSED = classify(StatusCode.UNAVAILABLE, pushback="0", details="draining")
INTERNAL = classify(StatusCode.INTERNAL, details="bug")
TIMED_OUT = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.ATTEMPT_TIMEOUT)
CANCELLED = classify(StatusCode.CANCELLED, origin=Origin.CALLER)
EXPIRED = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER)


def endpoint(name: str, weight: int = 1) -> Endpoint:
    """An endpoint of that id, on the port 1 of a host of the same name."""
    return Endpoint(f"{name}:1", id=name, weight=weight)


class Rig:
    """One balancer, its clock, and the shortest words to drive it."""

    def __init__(
        self,
        names: str | None = None,
        *,
        policy: Policy | None = None,
        breaker: Breaker = STEADY,
        retry: Retry | None = None,
        seed: int = 1,
        weights: Sequence[int] = (),
        limit: ConcurrencyLimit | None = None,
        hedging: Hedging | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.retry = retry or Retry()
        self.hedging = hedging
        self.latency = Quantile()
        self.throttle = None if throttle is None else throttle.new_state()
        self.budget = self.throttle or self.retry.budget.new_state()
        self.balancer = Balancer(
            "static:///shop", policy or RoundRobin(), breaker, Random(seed), limit=limit, throttle=self.throttle
        )
        if names is not None:
            self.update(names, weights)
            for name in names:
                self.connect(name)

    @property
    def now(self) -> float:
        """What the clock shows."""
        return self.clock()

    @property
    def panic(self) -> bool:
        """Whether endpoints with open breakers are used, for want of others."""
        return bool(self.balancer.admission(self.now).panic)

    def update(self, names: str, weights: Sequence[int] = (), note: str = "") -> Changes:
        """A new set: one endpoint a letter."""
        weights = weights or [1] * len(names)
        endpoints = tuple(endpoint(name, weight) for name, weight in zip(names, weights, strict=True))
        return self.balancer.update(Resolution(endpoints, note))

    def candidate(self, name: str) -> Candidate:
        """The one of that id."""
        return next(c for c in self.balancer.candidates if c.endpoint.id == name)

    def connect(self, name: str, state: Connectivity = READY, trouble: str = "") -> None:
        """Its connection is now in that state."""
        self.balancer.set_connectivity(self.candidate(name), state, self.now, trouble)

    def pick(self, tried: Sequence[Candidate] = ()) -> Attempt:
        """A pick that must succeed."""
        picked = self.balancer.pick(None, self.now, tried=tried)
        assert isinstance(picked, Attempt), picked
        return picked

    def unpicked(self) -> Unpicked:
        """A pick that must not."""
        picked = self.balancer.pick(None, self.now)
        assert isinstance(picked, Unpicked), picked
        return picked

    def end(self, attempt: Attempt, outcome: Outcome = OK) -> Candidate | None:
        """The attempt is over. Its endpoint, when its connection is to be closed."""
        upkeep = self.balancer.ended(attempt, outcome, self.now)
        return upkeep.candidate if upkeep is not None and upkeep.closable else None

    def picked(self, count: int, outcome: Outcome = OK) -> list[str]:
        """The ids of the next ``count`` picks, each ended at once."""
        ids = []
        for _ in range(count):
            attempt = self.pick()
            ids.append(attempt.endpoint_id)
            self.end(attempt, outcome)
        return ids

    def trip(self, name: str) -> None:
        """Fail on it until its breaker opens."""
        breaker = self.candidate(name).breaker
        while breaker.state is not State.OPEN:
            attempt = self.pick()
            self.end(attempt, INTERNAL if attempt.endpoint_id == name else OK)

    def call(
        self, *, idempotent: bool = True, timeout: float | None = None, wait_for_ready: bool | None = None
    ) -> Call:
        """A call that has not begun."""
        rules = Rules(retry=self.retry, hedging=self.hedging, idempotent=idempotent)
        shared = Shared("/shop.Shop/Get", rules, self.balancer, self.budget, self.latency)
        return Call(shared, None if timeout is None else self.now + timeout, wait_for_ready, self.now)

    def fail(
        self, call: Call, outcome: Outcome, *, committed: bool = False, replayable: bool = True, at: int = -1
    ) -> Action:
        """One of the call's attempts (the latest) ends so; what follows."""
        attempt = call.attempts[at]
        running = sum(other.outcome is None for other in call.attempts if other is not attempt)
        ended = call.ended(attempt, outcome, self.now, committed=committed, replayable=replayable, running=running)
        if isinstance(ended.action, Failed) and ended.action.raised is not None:
            raise ended.action.raised
        return ended.action

    @property
    def in_flight(self) -> int:
        """Attempts that have not ended."""
        return sum(candidate.running for candidate in self.balancer.candidates)
