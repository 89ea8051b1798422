"""Hedging: a second attempt elsewhere while the first has not answered; the first answer wins.

It cuts the tail latency that one slow endpoint causes: with a delay at the method's 95th percentile it
costs at most 5 % more attempts (Dean and Barroso, *The Tail at Scale*, 2013). Hedges are paid from the
retry budget, are never made for a method that is not idempotent, and always go to another endpoint
(gRFC A6 lets two attempts go to one).

Of the four kinds of call, those with one request and one response are hedged.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from grpc import StatusCode

from lb.core import checks
from lb.core.checks import shown
from lb.core.outcome import Origin, Outcome, Retryable
from lb.core.quantile import Quantile

MOST_ATTEMPTS = 5
"""No call has more attempts in flight (gRFC A6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """When a call that has no answer yet is sent to another endpoint as well. The first answer wins.

    Hedges are for calls with one request and one response, of methods that may run twice. Each one is paid from the
    retry budget. With a delay at the 95th percentile they add at most 5 % to the calls (Dean and Barroso, *The Tail at
    Scale*, 2013).

    Args:
        delay_s: seconds from the latest attempt to the next one, >= 0 (0: all at once). None: the 95th percentile of
            the method's own latencies in the last minutes, once there are 100 of them.
        max_attempts: attempts in all, the first one included, from 2 to 5.
        non_fatal: status codes with which an attempt may end without ending the call, besides those that the table of
            verdicts would retry (gRFC A6's ``nonFatalStatusCodes``).
        least_delay_s: the shortest delay that the 95th percentile may give, in seconds, > 0.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    delay_s: float | None = None
    max_attempts: int = 2
    non_fatal: Collection[StatusCode] = ()
    least_delay_s: float = 0.001

    def __post_init__(self) -> None:
        if self.delay_s is not None:
            checks.number("Hedging.delay_s", self.delay_s, "seconds >= 0, or None for the p95")
        attempts = f"a whole number from 2 to {MOST_ATTEMPTS}"
        checks.whole("Hedging.max_attempts", self.max_attempts, attempts, least=2, most=MOST_ATTEMPTS)
        checks.number("Hedging.least_delay_s", self.least_delay_s, above=True)
        if isinstance(self.non_fatal, (str, bytes, type)) or not isinstance(self.non_fatal, Collection):
            raise TypeError(f"Hedging.non_fatal is {shown(self.non_fatal)}; expected a collection of grpc.StatusCode")
        for code in self.non_fatal:
            if not isinstance(code, StatusCode) or code is StatusCode.OK:
                wrong = ValueError if isinstance(code, StatusCode) else TypeError
                raise wrong(f"Hedging.non_fatal has {shown(code)}; expected grpc.StatusCode other than OK")


def next_delay_s(hedging: Hedging | None, latency: Quantile | None) -> float | None:
    """Seconds from an attempt to the next one beside it; None: no hedges (now)."""
    if hedging is None:
        return None
    if hedging.delay_s is not None:
        return hedging.delay_s
    if latency is None or latency.value_s is None:
        return None
    return max(latency.value_s, hedging.least_delay_s)


def goes_on(hedging: Hedging | None, outcome: Outcome, *, idempotent: bool) -> bool:
    """Whether a hedged call goes on with its other attempts when one ends so (gRFC A6)."""
    if outcome.origin is Origin.CALLER:
        return False
    return (
        outcome.retryable is Retryable.ALWAYS
        or outcome.code is StatusCode.UNAVAILABLE  # even if push-back says "do not retry": that ends further hedges
        or (outcome.retryable is Retryable.IF_IDEMPOTENT and idempotent)
        or (hedging is not None and outcome.code in hedging.non_fatal)
    )
