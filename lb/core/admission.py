"""Which endpoints may be picked: the one rule that combines what is known, in this order.

1. Those that the resolver names (Consul's health has already left out the critical ones).
2. Of these the READY ones: a call is only sent where a connection stands, so that "never found a connection" is
   known and not guessed. With ``health=`` an endpoint that says NOT_SERVING on gRPC's health watch is not READY
   (gRFC A17). Those that do not know the watched service are used only while no other one is READY: then the
   service's name is probably wrong.
3. Of these the ones whose breaker admits, as far as the pool can do without the others (`lb.core.ejection`):
   the last endpoint is never refused (*panic*).
4. Of these the ones with a weight above 0. When there are none, weights do not count.

What is left is the *pool*, in which the policy chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from lb.core.breaker import State
from lb.core.candidate import Candidate, Connectivity
from lb.core.ejection import Ejection

_READY = Connectivity.READY


@dataclass(frozen=True, slots=True)
class Admission:
    """Which endpoints may be picked at one moment.

    ``panic``: breakers do not count as they should, for too few could be used; why, in words, and empty when they do.
    ``recheck_at`` is the instant from which an open breaker may admit again, ``inf`` when there is none.
    """

    pool: Sequence[Candidate]
    panic: str
    recheck_at: float

    def refusal(self, candidate: Candidate, now: float) -> str:
        """Why a candidate is not picked; empty when it is."""
        if candidate.connectivity is not _READY:
            state = candidate.connectivity.value
            return f"not connected ({state}{f': {candidate.trouble}' if candidate.trouble else ''})"
        if candidate in self.pool:
            return ""
        if candidate.unserved:
            return "its health service does not know the name given in health="
        if not candidate.breaker.admits(now):
            if candidate.breaker.state is State.HALF_OPEN:
                return "breaker half-open, a test call is running"
            left = (candidate.breaker.retry_at or now) - now
            why = "; ".join(filter(None, (candidate.breaker.blamed, candidate.last_error))) or "failures"
            return f"breaker open for {left:.1f} s more ({why})"
        return "weight 0"


def admit(candidates: Collection[Candidate], ejection: Ejection, now: float) -> Admission:
    """Apply the rule at the top of this file. Changes nothing."""
    ready = [c for c in candidates if c.connectivity is _READY and not c.unserved]
    if not ready:
        ready = [c for c in candidates if c.connectivity is _READY]
    refusing = [c for c in ready if c.breaker.state is not State.CLOSED and not c.breaker.admits(now)]
    instants = (c.breaker.retry_at for c in refusing)
    recheck_at = min((inf if at is None else at for at in instants), default=inf)
    ever_ready = sum(c.was_ready for c in candidates) if refusing else 0
    pool, panic = ejection.pool(ready, refusing, ever_ready)
    pool = [c for c in pool if c.endpoint.weight > 0] or pool
    return Admission(pool, panic, recheck_at)
