"""Least request: of a few drawn at random the one with the fewest calls in flight.

The draws are `lb.core.policies.power_of_two`'s.

**Weights.** Candidates are drawn by weight, so that idle endpoints get their shares. Another one
drawn takes the call when, with this call on top, it would be loaded no more than the first is now:
``(in_flight + 1) / weight <= in_flight of the first / its weight``. With equal weights that is the
usual rule, fewer in flight wins and of equals the first drawn. Under load the calls in flight stand
as the weights do. (Envoy takes a weighted round robin over ``weight / (in_flight + 1)`` instead,
O(log n). Comparing ``(in_flight + 1) / weight`` of uniform draws would give light endpoints nothing
while all are idle.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.power_of_two import PowerOfTwo, two_of
from lb.core.policies.random import RandomPicker
from lb.core.policies.weighted_random import WeightedRandomPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRequest:
    """Of a few endpoints that are drawn at random by weight, the one with the fewest calls in flight for its weight.

    Two random choices are nearly as good as looking at all (Mitzenmacher, *The Power of Two Choices in Randomized Load
    Balancing*, 2001).

    Args:
        choices: how many are drawn, >= 2. They are different ones if there are as many.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    name: ClassVar[str] = "least_request"
    spreads: ClassVar[bool] = True
    choices: int = 2

    def __post_init__(self) -> None:
        checks.whole("LeastRequest.choices", self.choices, least=2)

    def picker(
        self, candidates: Sequence[Candidate], previous: Picker | None
    ) -> LeastRequestPicker | WeightedLeastRequestPicker:
        """A picker over ``candidates``; what it goes by is in them."""
        if len({candidate.weight for candidate in candidates}) == 1:
            return LeastRequestPicker(candidates, self.choices)
        return WeightedLeastRequestPicker(candidates, self.choices)


class LeastRequestPicker(PowerOfTwo):
    """For equal weights."""

    __slots__ = ("_choices",)
    few: ClassVar[int] = 2

    def __init__(self, candidates: Sequence[Candidate], choices: int) -> None:
        """Over ``candidates``, at least one; ``choices`` >= 2."""
        super().__init__(candidates, RandomPicker(candidates).pick)
        self._choices = min(choices, self._size)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The least loaded of distinct draws; of equals the first drawn. O(choices)."""
        if self._blind:
            return self._pick_blindly(call, now, rng)
        if self._choices <= 2:
            first, second = two_of(self._candidates, self._size, rng)
            return second if second.in_flight < first.in_flight else first
        return min(rng.sample(self._candidates, self._choices), key=attrgetter("in_flight"))

    def explain(self) -> str:
        """The rule in words."""
        return f"fewest in flight of {self._choices} drawn from {self._size}"


class WeightedLeastRequestPicker(PowerOfTwo):
    """For unequal weights: draws by weight."""

    __slots__ = ("_choices",)
    few: ClassVar[int] = 2

    def __init__(self, candidates: Sequence[Candidate], choices: int) -> None:
        """Over ``candidates``, at least one; ``choices`` >= 2."""
        super().__init__(candidates, WeightedRandomPicker(candidates).pick)
        self._choices = min(choices, self._size)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The least loaded of the draws, by weight. O(choices)."""
        if self._blind:
            return self._pick_blindly(call, now, rng)
        best = self._draw(call, now, rng)
        for _ in range(1, self._choices):
            other = self._draw(call, now, rng)
            if other is best:
                other = self._candidates[int(rng.random() * self._size)]
            if (other.in_flight + 1) * best.weight <= best.in_flight * other.weight:
                best = other
        return best

    def explain(self) -> str:
        """The rule in words."""
        return f"fewest in flight for its weight of {self._choices} drawn by weight from {self._size}"
