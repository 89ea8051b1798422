"""Places that quick errors keep.

An endpoint that fails at once would look like the least loaded one of all, and policies that go by load would prefer
it. So the place of a call that a server ended with an error counts as taken for as long as a good answer takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

from lb.core.candidate import Candidate

_LONGEST_S = 1.0
"""No place is kept for longer than this after its call began."""
_OTHERS = 8
"""The latency of an endpoint without good answers is taken from this many others at most."""


class Held:
    """The places that are kept now, of all endpoints of one channel."""

    __slots__ = ("_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Candidate]] = []
        """By the instant until when."""
        self._serial = count()

    @property
    def next_at(self) -> float:
        """When the next place becomes free; ``inf`` when none is kept."""
        return self._heap[0][0] if self._heap else inf

    def keep(self, candidate: Candidate, started_at: float, now: float, pool: Sequence[Candidate]) -> None:
        """Keep the place of a call that began at ``started_at`` and ended just now.

        ``pool``: the endpoints that may be picked; they tell the usual latency where this one has none of its own.
        """
        known = [candidate] if candidate.load.samples else pool[:_OTHERS]
        usual_s = max((c.load.latency_s for c in known), default=0.0)
        until = started_at + min(usual_s, _LONGEST_S)
        if until > now:
            candidate.in_flight += 1
            candidate.held += 1
            heappush(self._heap, (until, next(self._serial), candidate))

    def free(self, now: float) -> None:
        """Free the places whose time is over."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            candidate = heappop(heap)[2]
            candidate.in_flight -= 1
            candidate.held -= 1

    def __repr__(self) -> str:
        return f"<Held {len(self._heap)}>"
