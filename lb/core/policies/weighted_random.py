"""Weighted random: any, with chances by weight.

The cumulated weights are searched with the help of a *guide table* (Chen and Asau 1974): cell
``i`` of ``n`` says between which candidates a draw of ``i/n`` to ``(i+1)/n`` lies. So a pick
searches a stretch of two candidates or so, and costs O(1) on average, O(log n) at worst.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from random import Random
from typing import ClassVar

from lb.core.policies.base import CallInfo, Candidate, Picker


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedRandom:
    """Any endpoint, with a chance by weight."""

    name: ClassVar[str] = "weighted_random"
    spreads: ClassVar[bool] = True

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> WeightedRandomPicker:
        """A picker over ``candidates``; it has no memory."""
        return WeightedRandomPicker(candidates)


class WeightedRandomPicker:
    """Cumulated weights to search in, in units of a cell of the guide table."""

    __slots__ = ("_candidates", "_guide", "_size", "_sums")
    repeatable: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Over ``candidates``, at least one; their weights are read now."""
        self._candidates = tuple(candidates)
        self._size = size = len(candidates)
        sums = list(accumulate([candidate.weight for candidate in candidates]))
        scale = size / sums[-1]
        # Floats: comparing a float with a float is what bisect does fastest. The last sum is endless,
        # so that rounding never leads past the end.
        self._sums = [total * scale for total in sums]
        self._sums[-1] = size + 1.0
        # How many sums end at or before cell 0, 1, ... size.
        ending = [0] * (size + 2)
        for total in self._sums:
            ending[ceil(total)] += 1
        self._guide = list(accumulate(ending))

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """Any of them, by weight."""
        drawn = rng.random() * self._size
        cell = int(drawn)
        guide = self._guide
        return self._candidates[bisect_right(self._sums, drawn, guide[cell], guide[cell + 1])]

    def explain(self) -> str:
        """The rule in words."""
        return f"any of {self._size}, with chances by weight"
