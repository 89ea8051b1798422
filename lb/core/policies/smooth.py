"""nginx's smooth weighted round robin (``ngx_http_upstream_round_robin.c``).

Each candidate has a *credit*: the picks that are due to it minus those it got. Every pick adds its weight to each
credit, the highest is picked, the first of equals, and pays the sum of weights. Weights 5, 1, 1 give
``a a b a c a a``. A pick is O(n), but the sequence repeats after as many picks as the weights' sum, so a short cycle
is recorded while it is walked and then replayed in O(1).

Where a sequence begins is left to chance: with weights 5, 1, 1 a client's first pick is the first of them five times
in seven, and so is its second. Clients that start together, or make one call each, do not all begin with the same
endpoint. From there on the shares are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from random import Random
from typing import TypeAlias

from lb.core.policies.base import CallInfo, Candidate

CYCLE_LIMIT = 1024
"""Up to this sum of (reduced) weights the sequence is recorded: at most 8 KB a channel. A longer one begins at one
of its first 1024 picks: walking there costs a millisecond or two, once."""
PASSED_OVER = 16
"""Moving the turn leaves out fewer picks than that: any number of a round, and of a long round enough for callers that
were in step with it."""

Credits: TypeAlias = Mapping[Candidate, float]
"""How many picks are due to each candidate."""


def carried(candidates: Sequence[Candidate], total: int, credits: Credits) -> list[int]:
    """The old credits for a new set, in 1/``total`` of a pick.

    What the departed take with them is shared equally among the survivors: that keeps the
    distances between them, which is what decides the order.
    """
    known = [credits.get(candidate) for candidate in candidates]
    survivors = [credit for credit in known if credit is not None]
    mean = sum(survivors) / len(survivors) if survivors else 0.0
    return [0 if credit is None else round((credit - mean) * total) for credit in known]


class SmoothPicker:
    """nginx's smooth weighted round robin; its credits are nginx's current_weight."""

    __slots__ = (
        "_at",
        "_begun",
        "_candidates",
        "_credits",
        "_cycle",
        "_length",
        "_replaying",
        "_start",
        "_weights",
        "total",
    )

    def __init__(
        self, candidates: Sequence[Candidate], weights: list[int], credits: list[int] | None, length: int
    ) -> None:
        """Use ``WeightedRoundRobin.picker``. ``length`` is the number of picks after which the sequence repeats.

        ``credits`` are in 1/sum of a pick; without any it begins anywhere in the sequence.
        """
        self.total = sum(weights)
        self._candidates = tuple(candidates)
        self._weights = weights
        self._begun = credits is not None
        self._credits = [0] * len(weights) if credits is None else credits
        self._start = self._credits  # where the recorded cycle begins
        self._cycle: list[int] = []
        self._length = length
        self._replaying = False
        self._at = 0

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the sequence. O(1) once a short cycle was walked, else O(n)."""
        if self._replaying:
            at = self._at
            self._at = at + 1 if at + 1 < self._length else 0
            return self._candidates[self._cycle[at]]
        if not self._begun:
            self._begun = True
            for _ in range(rng.randrange(min(self._length, CYCLE_LIMIT))):
                self._walk()
        return self._candidates[self._walk()]

    def _walk(self) -> int:
        """A step of nginx's: the index of the next."""
        credits = list(map(add, self._credits, self._weights))
        best = credits.index(max(credits))
        credits[best] -= self.total
        self._credits = credits
        if self._length <= CYCLE_LIMIT:
            self._record(best)
        return best

    def _record(self, best: int) -> None:
        self._cycle.append(best)
        if len(self._cycle) == self._length:
            # After a change of weights the first rounds may differ: replay only what has closed.
            if self._credits == self._start:
                self._replaying = True
            else:
                self._cycle = []
                self._start = self._credits

    @property
    def size(self) -> int:
        """How many there are to pick from."""
        return len(self._candidates)

    @property
    def recorded(self) -> int:
        """How many picks of the cycle are recorded; all of them when it is replayed."""
        return len(self._cycle)

    def turn(self, rng: Random) -> None:
        """Go on from a random place."""
        for _ in range(rng.randrange(min(self._length, PASSED_OVER))):
            self.pick(None, 0.0, rng)

    def credits(self) -> dict[Candidate, float]:
        """How many picks are due to each."""
        credits = list(self._credits)
        if self._replaying:
            credits = [credit + self._at * weight for credit, weight in zip(credits, self._weights, strict=True)]
            for picked in self._cycle[: self._at]:
                credits[picked] -= self.total
        total = self.total
        return {candidate: credit / total for candidate, credit in zip(self._candidates, credits, strict=True)}

    def explain(self) -> str:
        """The rule in words."""
        number = len(self._weights)
        return f"in turn by weight (nginx's smooth sequence), {number} endpoint{'s' * (number != 1)}"
