"""What a channel counts, whether or not anybody wants it yet: plain integers."""

from __future__ import annotations

from collections import Counter

from lb.core.balancer import Balancer
from lb.core.breaker import State
from lb.core.call import Tally

STARTED = "grpc.client.attempt.started"
TRANSITIONS = "lb.client.breaker.transitions"
REFUSED = "lb.client.limit.refused"
RESOLVER_ERRORS = "lb.client.resolver.errors"

Key = tuple[str, str, str]
"""An instrument, an attribute and its value."""


class Counts:
    """What one channel has counted. Kept when the channel is gone, so it knows nothing of the channel itself."""

    def __init__(self, balancer: Balancer) -> None:
        self.tallies: dict[str, Tally] = {}
        self.moves: Counter[State] = Counter()
        self.resolver_errors = 0
        """How often the resolver could not read its source."""
        self._line = balancer.line

    def all(self) -> dict[Key, int]:
        """Every count, under its instrument, and an attribute with its value."""
        found = {(STARTED, "grpc.method", label): tally.attempts for label, tally in self.tallies.copy().items()}
        for state, number in self.moves.copy().items():
            found[TRANSITIONS, "lb.state", state.value] = number
        if self._line.limited:
            found[REFUSED, "", ""] = self._line.refused
        found[RESOLVER_ERRORS, "", ""] = self.resolver_errors
        return found
