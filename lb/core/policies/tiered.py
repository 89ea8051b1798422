"""Weighted round robin over a large set, in O(1) a pick on average: tiers of like weights, and which comes next.

Candidates with weights from 2^k up to 2^(k+1) are one tier (`lb.core.policies.tier`). Which tier comes next is laid out
for 256 picks at once, each tier's picks evenly spread; what is left of a pick is carried into the next 256. Within a
tier they come in turn. So with 16 tiers for weights up to 65,535 nobody is ever three picks off its share.

An earliest-deadline heap (gRFC A58, Envoy) costs O(log n) for each pick, a static stride O(n) where one weight towers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import chain
from random import Random

from lb.core.policies.base import CallInfo, Candidate
from lb.core.policies.smooth import PASSED_OVER, SmoothPicker
from lb.core.policies.tier import Tier

STRETCH = 256
"""This many picks of the tiers are laid out at once: a row."""
LAYOUTS = 256
"""This many different rows are kept, to be used again."""


class TieredPicker:
    """A row of picks of tiers, and in each tier its candidates in turn."""

    __slots__ = ("_accounts", "_at", "_begun", "_layouts", "_opening", "_row", "_sums", "_tiers", "_turns", "_weights")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        weights: Sequence[int],
        previous: SmoothPicker | TieredPicker | None,
    ) -> None:
        """Use ``WeightedRoundRobin.picker``. It takes over the tiers of ``previous`` and changes what changed."""
        self._weights = dict(zip(candidates, weights, strict=True))
        due = self._change_tiers(candidates, previous)
        self._turns: list[Iterator[Candidate]] = [tier.turns for tier in self._tiers.values()]
        self._sums = [sum(tier.weights) for tier in self._tiers.values()]
        mean = sum(due.values()) / len(due) if due else 0.0
        self._opening = [due[bits] - mean if bits in due else 0.0 for bits in self._tiers]
        """Picks due to each tier where the present row began."""
        self._accounts = [round(credit * sum(self._sums)) for credit in self._opening]
        """Picks due to each tier where it ends, in 1/sum of a pick."""
        self._begun = previous is not None
        self._row: list[int] = []
        """Which tier each pick of the row is of, by its place in ``_tiers``."""
        self._at = 0
        """How many picks of the row were made."""
        self._layouts: dict[tuple[int, ...], list[int]] = {}
        """Rows by how many picks of each tier they have."""

    def _change_tiers(
        self, candidates: Sequence[Candidate], previous: SmoothPicker | TieredPicker | None
    ) -> dict[int, float]:
        """Take over the tiers, and change those whose candidates changed. What was due to each tier, by its number."""
        before: dict[Candidate, int] = {}
        self._tiers: dict[int, Tier] = {}
        due: dict[int, float] = {}
        coming: Iterable[Candidate] = candidates
        if isinstance(previous, TieredPicker):
            before, self._tiers, due = previous._weights, previous._tiers, previous.due()
            coming = [candidate for candidate, weight in self._weights.items() if before.get(candidate) != weight]
        elif previous is not None:
            credits = previous.credits()
            coming = sorted(candidates, key=lambda candidate: -credits.get(candidate, 0.0))
        leaving = {candidate for candidate, weight in before.items() if self._weights.get(candidate) != weight}
        changes: dict[int, list[tuple[Candidate, int]]] = {before[c].bit_length(): [] for c in leaving}
        for candidate in coming:
            weight = self._weights[candidate]
            changes.setdefault(weight.bit_length(), []).append((candidate, weight))
        for bits, new in changes.items():
            self._tiers.setdefault(bits, Tier(bits)).change(leaving, new)
        self._tiers = {bits: tier for bits, tier in sorted(self._tiers.items()) if tier.weights}
        return due

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the schedule. O(1) on average."""
        if self._at == len(self._row):
            self._begin_row(rng)
        at = self._at
        self._at = at + 1
        return next(self._turns[self._row[at]])

    def _begin_row(self, rng: Random) -> None:
        """Lay out the next picks of the tiers. The very first one begins anywhere, and so does each tier."""
        if self._row:
            total = sum(self._sums)
            self._opening = [account / total for account in self._accounts]
            counts = self._share_out()
            row = self._layouts.get(counts)
            if row is None:
                # What is due at the start (less than a pick) is left out: it would make each row another one.
                row = self._spread(counts, [0.0] * len(counts))
                if len(self._layouts) >= LAYOUTS:
                    self._layouts.clear()
                self._layouts[counts] = row
            self._row, self._at = row, 0
            return
        # Here it counts: it matters where every pick follows a change of the set.
        self._row = self._spread(self._share_out(), self._opening)
        if not self._begun:
            for tier in self._tiers.values():
                tier.begin_anywhere(rng)
            self._turns = [tier.turns for tier in self._tiers.values()]
            for place in self._row[: rng.randrange(len(self._row))]:
                next(self._turns[place])
                self._at += 1

    def _share_out(self) -> tuple[int, ...]:
        """How many of the next picks each tier gets. What is left of a pick stays in its account."""
        total = sum(self._sums)
        counts = []
        for at, weight in enumerate(self._sums):
            due = self._accounts[at] + STRETCH * weight
            counts.append(max(due // total, 0))
            self._accounts[at] = due - counts[at] * total
        # What rounding left over goes to the tiers that are nearest to their next pick.
        for at in nlargest(STRETCH - sum(counts), range(len(counts)), key=self._accounts.__getitem__):
            counts[at] += 1
            self._accounts[at] -= total
        return tuple(counts)

    def _spread(self, counts: Sequence[int], credits: Sequence[float]) -> list[int]:
        """These picks in order: the j-th of a tier comes when its credit passes j + 1/2."""
        places = [
            ((j + 0.5 - credit) / weight, at)
            for at, (weight, credit) in enumerate(zip(self._sums, credits, strict=True))
            for j in range(counts[at])
        ]
        return [at for _, at in sorted(places)]

    @property
    def size(self) -> int:
        """How many there are to pick from."""
        return len(self._weights)

    def turn(self, rng: Random) -> None:
        """Go on from a random place."""
        for _ in range(rng.randrange(min(len(self._weights), PASSED_OVER))):
            self.pick(None, 0.0, rng)

    def due(self) -> dict[int, float]:
        """How many picks are due to each tier, by its number."""
        got = Counter(self._row[: self._at])
        total = sum(self._sums)
        return {
            bits: credit + self._at * weight / total - got[place]
            for place, (bits, weight, credit) in enumerate(zip(self._tiers, self._sums, self._opening, strict=True))
        }

    def credits(self) -> dict[Candidate, float]:
        """How many picks are due to each, within its tier. The picker picks no more."""
        return dict(chain.from_iterable(tier.credits() for tier in self._tiers.values()))

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by weight, {len(self._weights)} endpoints in {len(self._tiers)} tiers"
