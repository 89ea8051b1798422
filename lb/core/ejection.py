"""How many endpoints may be ejected at once, whatever their breakers say.

A breaker knows its own endpoint only. Left alone, breakers could empty the pool when all
endpoints fail for one reason (a bad request, a database that all share). So:

- The last endpoint is never ejected. When every breaker refuses, the endpoints whose breaker opened the fewest
  times in a row are used (*panic*). After a stall of the client all breakers are open for the first time, while
  that of an endpoint that is really gone has failed a probe or two before. In a larger pool these endpoints
  must be ``panic_share`` of it, or all are used, so that a single one does not bear the load of a hundred.
- In a pool of at most ``small`` endpoints all but one may be ejected. With 2 to 5 replicas a share would
  round down to none, or keep a broken one in use.
- In a larger pool at most ``max_share`` of it is ejected, but at least one endpoint may be (unless the share is 0). If
  more breakers are open, the endpoints that may be probed soonest stay in use.
- When less than ``panic_share`` of a larger pool can be used at all (connected and
  admitted), all that are connected are used: the few that are left would break under the
  load of all (Envoy's panic threshold). An endpoint that was never connected is not part of the pool: an
  address without a route (a name's AAAA records where there is no IPv6) has never borne any load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lb.core import checks
from lb.core.candidate import Candidate

_ROUNDING = 1e-9
"""0.29 of 100 is 29, whatever floating point says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """How many endpoints may be ejected at once because their breakers are open.

    ``panic_share`` is Envoy's default. ``max_share`` is larger than Envoy's (0.1), because a breaker that opens has
    evidence against its own endpoint.

    Args:
        max_share: the largest share of the connected endpoints that may be ejected, from 0 to 1. It is rounded down,
            but one may always be ejected, as with Envoy and grpc-go. 0: none, in pools larger than ``small``.
        panic_share: from 0 to 1. If a smaller share of the endpoints that were ever connected can be used, all
            connected ones are used (*panic*). 0: never.
        small: in pools of at most this size, >= 0, all endpoints but one may be ejected, and ``panic_share`` does not
            count.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    max_share: float = 0.5
    panic_share: float = 0.5
    small: int = 5

    def __post_init__(self) -> None:
        for name in ("max_share", "panic_share"):
            checks.number(f"Ejection.{name}", getattr(self, name), "a number from 0 to 1", most=1)
        checks.whole("Ejection.small", self.small)

    def pool(
        self, ready: Sequence[Candidate], refusing: Sequence[Candidate], known: int
    ) -> tuple[Sequence[Candidate], str]:
        """The candidates that may be picked, in the order of ``ready``; and why this is panic, empty if it is not.

        ``ready`` are the connected candidates, ``refusing`` those of them whose breaker refuses,
        ``known`` is the number of all that are or ever were connected.
        """
        if not refusing:
            return ready, ""
        size, out = len(ready), len(refusing)
        if out == size:
            least = min(c.breaker.openings for c in ready)
            fewest = [c for c in ready if c.breaker.openings == least]
            enough = size <= self.small or len(fewest) >= self.panic_share * size
            if enough and len(fewest) < size:
                return fewest, f"every breaker is open, the {len(fewest)} of {size} that failed least are used"
            return ready, "every breaker is open, all are used"
        if size > self.small:
            most = max(1, int(size * self.max_share + _ROUNDING)) if self.max_share else 0
            if out > most:
                refusing = sorted(refusing, key=_retry_at)[out - most :]
                out = most
            if size - out < self.panic_share * known:
                return ready, (
                    f"only {size - out} of {known} could be used ({known - size} lost, {out} open breakers),"
                    f" all {size} connected ones are used"
                )
        left_out = set(refusing)
        return [c for c in ready if c not in left_out], ""


def _retry_at(candidate: Candidate) -> float:
    retry_at = candidate.breaker.retry_at
    return 0.0 if retry_at is None else retry_at
