"""Weighted random: any, with chances by weight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import ClassVar

from lb.core.policies.base import CallInfo, Candidate, Picker


@dataclass(frozen=True, slots=True)
class WeightedRandom:
    """Any candidate; its chance is its share of the sum of weights."""

    name: ClassVar[str] = "weighted_random"

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> WeightedRandomPicker:
        """A picker over ``candidates``; it has no memory."""
        return WeightedRandomPicker(candidates)


class WeightedRandomPicker:
    """Cumulated weights to search in."""

    __slots__ = ("_candidates", "_sums", "_total")

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Over ``candidates``, at least one; their weights are read now."""
        self._candidates = tuple(candidates)
        # Floats: comparing a float with a float is what bisect does fastest.
        self._sums = [float(total) for total in accumulate(candidate.weight for candidate in candidates)]
        self._total = self._sums[-1]

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """Any of them, by weight. O(log n); ``random() * total`` rounds below ``total``."""
        return self._candidates[bisect_right(self._sums, rng.random() * self._total)]

    def explain(self) -> str:
        """The rule in words."""
        return f"any of {len(self._sums)}, with chances by weight"
