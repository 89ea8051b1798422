"""The power of two choices: a few candidates drawn at random, of which the picker takes the best.

Two are nearly as good as looking at all (M. Mitzenmacher, "The power of two choices in randomized load balancing",
2001), cost O(1), and do not send every client to the same idle endpoint at once. What *best* means is for the picker
to say: `lb.core.policies.least_request` and `lb.core.policies.p2c` differ in that alone.

Where there are only a few candidates, most picks are decided by their loads and not by the draws. Then a caller may be
in step with them: it always avoids the endpoint of its last call. So such pickers can go *blind* for some picks
(``turn``): the first candidate drawn is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import ClassVar

from lb.core.policies.base import CallInfo, Candidate

BLIND = 16
"""Fewer picks than that are blind when the turn is moved."""

Draw = Callable[[CallInfo | None, float, Random], Candidate]


def two_of(candidates: Sequence[Candidate], size: int, rng: Random) -> tuple[Candidate, Candidate]:
    """Two distinct ones of ``size`` candidates (the same one twice, where there is but one), in any order.

    Both are made of one random number: it has 53 bits, and 2^26 endpoints are not to be expected.
    """
    drawn = rng.random() * size
    one = int(drawn)
    other = one + 1 + int((drawn - one) * (size - 1))
    return candidates[one], candidates[other if other < size else other - size]


class PowerOfTwo:
    """What such pickers have in common."""

    __slots__ = ("_blind", "_candidates", "_draw", "_size")
    repeatable: ClassVar[bool] = True
    few: ClassVar[int]
    """In sets of up to this size loads decide most picks."""

    def __init__(self, candidates: Sequence[Candidate], draw: Draw) -> None:
        """Over ``candidates``, at least one. ``draw`` is how a single one is drawn."""
        self._candidates = tuple(candidates)
        self._size = len(candidates)
        self._draw = draw
        self._blind = 0
        """How many of the next picks are blind."""

    def _pick_blindly(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        self._blind -= 1
        return self._draw(call, now, rng)

    def _go_blind(self, rng: Random) -> None:
        self._blind = rng.randrange(1, BLIND)

    @property
    def turn(self) -> Callable[[Random], None] | None:
        """Go blind for some picks. None in larger sets, where it would change nothing."""
        return self._go_blind if 1 < self._size <= self.few else None
