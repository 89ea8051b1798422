"""A server's admission of calls, as one object for both kinds of server: what is known, and what a refusal says."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from grpc import StatusCode

from lb.core.concurrency import Baseline
from lb.core.serving.deadlines import Typical
from lb.core.serving.demand import Demand
from lb.core.serving.intake import Intake
from lb.core.serving.rates import Rates
from lb.core.serving.settings import MOST_METHODS, Limits


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call is refused. Nothing was done for it."""

    code: StatusCode
    details: str
    pushback_ms: int | None = None
    """For how long the client shall not come back (gRFC A6); None: nothing is said, and it is not retried."""
    retry_s: float | None = None
    """When it may succeed here (``google.rpc.RetryInfo``); None: nothing is said."""


class Times:
    """What is known of one method."""

    __slots__ = ("baseline", "typical")

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.typical = Typical()


class Admission:
    """The admission of one server. Not thread-safe."""

    __slots__ = ("_methods", "_others", "_rates", "_rng", "demand", "intake", "limits")

    def __init__(self, limits: Limits, rng: Random) -> None:
        self.limits = limits
        self._rng = rng
        concurrency = limits.concurrency
        self.intake: Intake | None = None
        """None: any number of calls may run at once."""
        if concurrency is not None:
            self.intake = Intake(concurrency.new_state(), queue=concurrency.queue, queue_s=concurrency.queue_s)
        rates = Rates(limits.rate, limits.method_rates, limits.client_rate)
        self._rates = rates if rates.any else None
        self.demand = Demand()
        self._methods: dict[str, Times] = {}
        self._others = Baseline()

    @property
    def client_key(self) -> str | None:
        """The key of the metadata with the client's name; None: nobody asks for it."""
        return self.limits.client_key if self.limits.client_rate is not None else None

    def times(self, method: str) -> Times:
        """What is known of a method."""
        found = self._methods.get(method)
        if found is None:
            if len(self._methods) >= MOST_METHODS:  # the others count as one kind, and none of them is ever hopeless
                return Times(self._others)
            found = self._methods[method] = Times(Baseline())
        return found

    def over_rate(self, method: str, client: str, now: float) -> Refusal | None:
        """Count a call by its rates. Why it is refused, when it is one too many."""
        rates = self._rates
        if rates is None:
            return None
        wait_s = rates.take(method, client, now)
        if wait_s == 0.0:
            return None
        details = f"too many calls a second, {rates.bound}; try again in {max(0.001, wait_s):.3g} s"
        return Refusal(StatusCode.RESOURCE_EXHAUSTED, details, retry_s=wait_s)

    def left(self, client: str, now: float) -> float | None:
        """How many calls a client may make at once by its own rate; None if no client has one."""
        return None if self._rates is None else self._rates.left(client, now)

    def full(self, now: float) -> Refusal:
        """A call is refused because the server is full."""
        self.demand.refused(now)
        return Refusal(
            StatusCode.UNAVAILABLE,
            "the server is at its concurrency limit",
            pushback_ms=int(self.demand.pushback_s(now, self._rng) * 1000),
        )

    def hopeless(self, times: Times, left_s: float) -> Refusal | None:
        """Why a call with so many seconds left is refused, when it cannot be answered in time."""
        if not self.limits.hopeless or not times.typical.hopeless(left_s):
            return None
        median_s = times.typical.median_s or 0.0
        details = f"{left_s:.3g} s are left, and the method takes about {median_s:.3g} s; nothing was done"
        return Refusal(StatusCode.DEADLINE_EXCEEDED, details)

    def __repr__(self) -> str:
        return f"<Admission {self.intake!r} {self._rates!r}>"
