"""Weighted round robin, smooth: shares by weight, spread evenly in time.

Two schedules with one kind of state. Each candidate has a *credit*: the picks that are due to
it minus those it got, in units of 1/total of a pick (``total`` is the sum of weights). Every
pick adds its weight to each credit and takes ``total`` from the one picked.

Up to 64 candidates: **nginx's sequence** (``ngx_http_upstream_round_robin.c``): pick the
highest credit, the first of equals. Weights 5, 1, 1 give ``a a b a c a a``. It is O(n), but it
repeats after ``total`` picks, so a short cycle is recorded while it is walked and then
replayed in O(1).

Beyond: **earliest eligible deadline first**, O(log n). A candidate is eligible when its credit,
with the weight of this pick, is above 0; of those the one is picked whose credit would first
reach a whole pick. Nobody is then ever a whole pick ahead of or behind its share (R. Tijdeman,
"The chairman assignment problem", 1980; WF2Q, Bennett and Zhang 1996; Pfair, Baruah et al. 1996).
Envoy's earliest-deadline heap has no eligibility: of the weights 5, 1, 1, 1, ... it picks the
first five times in a row. gRPC's static stride needs O(n) steps where one weight towers.

When the set or a weight changes, survivors keep their credit as a fraction of a pick and
newcomers begin with none due: the sequence does not restart, nobody waits longer than its
share says, nobody gets a burst. Who left and comes back is a newcomer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import gcd
from operator import add
from random import Random
from typing import ClassVar

from lb.core.policies.base import CallInfo, Candidate, Picker

SMOOTH_LIMIT = 64
"""Up to so many candidates the sequence is nginx's."""
CYCLE_LIMIT = 1024
"""Up to this sum of (reduced) weights nginx's sequence is recorded: at most 8 KB a channel."""
PRECISION = 1 << 20
"""Weights are multiplied until they sum to this: a change rounds credits to a millionth of a pick."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class WeightedRoundRobin:
    """Shares by weight, spread evenly: nginx's smooth sequence. The default policy."""

    name: ClassVar[str] = "weighted_round_robin"

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> SmoothPicker | DeadlinePicker:
        """A picker in which survivors of ``previous`` keep their place."""
        weights = [candidate.weight for candidate in candidates]
        cycle = sum(weights) // gcd(*weights)
        factor = PRECISION // sum(weights) + 1
        weights = [weight * factor for weight in weights]
        credits = [0] * len(weights)
        turn = -1
        if isinstance(previous, (SmoothPicker, DeadlinePicker)):
            credits = _carried(candidates, sum(weights), previous.credits(), previous.total)
            if isinstance(previous, DeadlinePicker):
                turn = previous.turn
        if len(candidates) <= SMOOTH_LIMIT:
            return SmoothPicker(candidates, weights, credits, cycle)
        return DeadlinePicker(candidates, weights, credits, turn)


def _carried(candidates: Sequence[Candidate], total: int, credits: Mapping[Key, int], before: int) -> list[int]:
    """The old credits (in 1/``before`` of a pick) for a new set, in 1/``total`` of a pick.

    What the departed take with them is shared equally among the survivors: that keeps the
    distances between them, which is what decides the order. Equal credits stay equal. Rounding
    leaves a sum above ``-total``, so that there is always somebody eligible.
    """
    known = [credits.get(candidate.endpoint.key) for candidate in candidates]
    survivors = [credit for credit in known if credit is not None]
    if not survivors:
        return [0] * len(known)
    excess, count = sum(survivors), len(survivors)
    scale = 2 * before * count
    return [
        0 if credit is None else (2 * (credit * count - excess) * total + before * count) // scale for credit in known
    ]


class SmoothPicker:
    """nginx's smooth weighted round robin; ``credits`` are its current_weight."""

    __slots__ = ("_at", "_candidates", "_credits", "_cycle", "_length", "_replaying", "_start", "_weights", "total")

    def __init__(self, candidates: Sequence[Candidate], weights: list[int], credits: list[int], length: int) -> None:
        """Use ``WeightedRoundRobin.picker``. ``length`` is the number of picks after which the sequence repeats."""
        self.total = sum(weights)
        self._candidates = tuple(candidates)
        self._weights = weights
        self._credits = credits
        self._start = credits  # where the recorded cycle begins
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
        credits = list(map(add, self._credits, self._weights))
        best = credits.index(max(credits))
        credits[best] -= self.total
        self._credits = credits
        if self._length <= CYCLE_LIMIT:
            self._record(best)
        return self._candidates[best]

    def _record(self, best: int) -> None:
        self._cycle.append(best)
        if len(self._cycle) == self._length:
            # After a change of weights the first rounds may differ: replay only what has closed.
            if self._credits == self._start:
                self._replaying = True
            else:
                self._cycle = []
                self._start = self._credits

    def credits(self) -> dict[Key, int]:
        """What is due to each, in 1/``total`` of a pick, by the endpoint's key."""
        credits = list(self._credits)
        if self._replaying:
            credits = [credit + self._at * weight for credit, weight in zip(credits, self._weights, strict=True)]
            for picked in self._cycle[: self._at]:
                credits[picked] -= self.total
        return {candidate.endpoint.key: credit for candidate, credit in zip(self._candidates, credits, strict=True)}

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by weight, smooth (nginx), {len(self._weights)} candidates"


class DeadlinePicker:
    """Earliest eligible deadline first. Slot ``t`` is the ``t``-th pick of this picker.

    ``used[i]`` is the picks of ``i`` times ``total`` (minus the credit it came with), so its credit
    in slot ``t`` is ``t * weight - used``; it is eligible from slot ``used // weight`` on and due
    before slot ``ceil((used + total) / weight)``.

    The waiting are kept by the slot from which they are eligible, each slot's as a heap by due
    slot; ``ready`` is a heap of such heaps. So a slot in which thousands become eligible at
    once costs O(log n) as well.
    """

    __slots__ = ("_candidates", "_ready", "_slot", "_used", "_waiting", "_weights", "total", "turn")

    def __init__(self, candidates: Sequence[Candidate], weights: list[int], credits: list[int], turn: int) -> None:
        """Use ``WeightedRoundRobin.picker``. ``turn`` is the index that comes first of equals, -1 for a random one."""
        self.total = sum(weights)
        self.turn = turn
        self._candidates = tuple(candidates)
        self._weights = weights
        self._used = [-credit for credit in credits]
        self._slot = 0
        self._ready: list[tuple[int, int, list[tuple[int, int]]]] = []
        self._waiting: dict[int, list[tuple[int, int]]] = {}
        if turn >= 0:
            self._begin(turn)

    def _begin(self, turn: int) -> None:
        """Make the heaps. Index ``turn`` comes first of equals, so that many clients do not begin alike."""
        size = len(self._candidates)
        self.turn = turn = turn % size
        self._candidates = self._candidates[turn:] + self._candidates[:turn]
        self._weights = self._weights[turn:] + self._weights[:turn]
        self._used = self._used[turn:] + self._used[:turn]
        for at, (used, weight) in enumerate(zip(self._used, self._weights, strict=True)):
            due = -(-(used + self.total) // weight)
            self._waiting.setdefault(max(used // weight, 0), []).append((due, at))
        for heap in self._waiting.values():
            heapify(heap)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the schedule. O(log n)."""
        if self.turn < 0:
            self._begin(rng.randrange(len(self._candidates)))
        ready, slot = self._ready, self._slot
        self._slot = slot + 1
        heap = self._waiting.pop(slot, None)
        if heap is not None:
            heappush(ready, (*heap[0], heap))
        heap = ready[0][2]
        at = heappop(heap)[1]
        if heap:
            heapreplace(ready, (*heap[0], heap))
        else:
            heappop(ready)
        total, weight = self.total, self._weights[at]
        self._used[at] = used = self._used[at] + total
        eligible = max(used // weight, slot + 1)
        entry = (-(-(used + total) // weight), at)
        later = self._waiting.get(eligible)
        if later is None:
            self._waiting[eligible] = [entry]
        else:
            heappush(later, entry)
        return self._candidates[at]

    def credits(self) -> dict[Key, int]:
        """What is due to each, in 1/``total`` of a pick, by the endpoint's key."""
        slot = self._slot
        rows = zip(self._candidates, self._weights, self._used, strict=True)
        return {candidate.endpoint.key: slot * weight - used for candidate, weight, used in rows}

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by weight, earliest deadline first, {len(self._weights)} candidates"
