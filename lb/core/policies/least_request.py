"""Least request: of a few drawn at random the one with the fewest calls in flight.

Two random choices are nearly as good as looking at all (M. Mitzenmacher, "The power of two choices
in randomized load balancing", 2001), cost O(1), and do not send every client to the same idle
endpoint at once.

**Weights.** Candidates are drawn by weight, so that idle endpoints get their shares. Another one
drawn takes the call when, with this call on top, it would be loaded no more than the first is now:
``(in_flight + 1) / weight <= in_flight of the first / its weight``. With equal weights that is the
usual rule, fewer in flight wins and of equals the first drawn. Under load the calls in flight stand
as the weights do. (Envoy takes a weighted round robin over ``weight / (in_flight + 1)`` instead,
O(log n). Comparing ``(in_flight + 1) / weight`` of uniform draws would give light endpoints nothing
while all are idle.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.weighted_random import WeightedRandomPicker

BLIND = 16
"""Fewer picks than that go by chance when the turn is moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRequest:
    """Of ``choices`` drawn at random (2 by default) the least loaded, by calls in flight and weight.

    Draws are distinct while there are as many candidates. (With unequal weights one that comes up again is
    replaced by one drawn regardless of weight, and compared with itself should it come up a third time.)

    Raises:
        ValueError: ``choices`` is no whole number from 2 on.
    """

    name: ClassVar[str] = "least_request"
    spreads: ClassVar[bool] = True
    choices: int = 2

    def __post_init__(self) -> None:
        checks.whole("LeastRequest.choices", self.choices, least=2)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> LeastRequestPicker:
        """A picker over ``candidates``; what it goes by stands in them."""
        if len({candidate.weight for candidate in candidates}) == 1:
            return LeastRequestPicker(candidates, self.choices)
        return WeightedLeastRequestPicker(candidates, self.choices)


class LeastRequestPicker:
    """For equal weights: a list to draw from."""

    __slots__ = ("_blind", "_candidates", "_choices", "_size")
    repeatable: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate], choices: int) -> None:
        """Over ``candidates``, at least one; ``choices`` >= 2."""
        self._candidates = tuple(candidates)
        self._size = len(candidates)
        self._choices = min(choices, self._size)
        self._blind = 0
        """So many picks go by chance alone, by a single choice."""

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The least loaded of distinct draws; of equals the first drawn. O(choices)."""
        candidates, size = self._candidates, self._size
        if self._choices == 2:
            # Both from one draw: `random` has 53 bits, and 2^26 endpoints are not to be expected.
            drawn = rng.random() * size
            at = int(drawn)
            other = at + 1 + int((drawn - at) * (size - 1))
            first, second = candidates[at], candidates[other if other < size else other - size]
            return second if second.in_flight < first.in_flight else first
        if self._blind:
            self._see_again()
        if size == 1:
            return candidates[0]
        return min(rng.sample(candidates, self._choices), key=_in_flight)

    def _see_again(self) -> None:
        self._blind -= 1
        if not self._blind:
            self._choices = 2

    def _go_blind(self, rng: Random) -> None:
        self._blind = rng.randrange(1, BLIND)
        self._choices = 1

    @property
    def turn(self) -> Callable[[Random], None] | None:
        """Go by chance for some picks. Of two endpoints only, where a call always avoids the last one's."""
        return self._go_blind if self._size == 2 else None

    def explain(self) -> str:
        """The rule in words."""
        return f"fewest in flight of {self._choices} drawn from {self._size}"


class WeightedLeastRequestPicker(LeastRequestPicker):
    """For unequal weights: draws by weight."""

    __slots__ = ("_draw",)

    def __init__(self, candidates: Sequence[Candidate], choices: int) -> None:
        """Over ``candidates``, at least one; ``choices`` >= 2."""
        super().__init__(candidates, choices)
        self._draw = WeightedRandomPicker(candidates).pick

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The least loaded of the draws, by weight. O(choices)."""
        draw = self._draw
        best = draw(call, now, rng)
        if self._blind:
            self._see_again()
            return best
        for _ in range(1, self._choices):
            other = draw(call, now, rng)
            if other is best:
                other = self._candidates[int(rng.random() * self._size)]
            if (other.in_flight + 1) * best.weight <= best.in_flight * other.weight:
                best = other
        return best

    def explain(self) -> str:
        """The rule in words."""
        return f"fewest in flight for its weight of {self._choices} drawn by weight from {self._size}"


def _in_flight(candidate: Candidate) -> int:
    return candidate.in_flight
