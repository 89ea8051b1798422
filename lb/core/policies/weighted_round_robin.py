"""Weighted round robin, smooth: shares by weight, spread evenly in time.

Up to 64 candidates the sequence is nginx's (`lb.core.policies.smooth`), which costs O(n) where it is not recorded.
Beyond, the candidates are arranged in tiers of like weights (`lb.core.policies.tiered`).

Where a sequence begins is left to chance, so that clients that start together do not all begin with the same
endpoint. When the set or a weight changes, candidates that stay keep their credit, and new ones begin with an
average one: the sequence does not restart, no candidate waits longer than its share says, and none gets
a burst. An endpoint that left and comes back is a new one. The sequence after a set of a single candidate begins
anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import ClassVar, TypeAlias

from lb.core.policies.base import Candidate, Picker
from lb.core.policies.smooth import SmoothPicker, carried
from lb.core.policies.tiered import TieredPicker

SMOOTH_LIMIT = 64
"""Up to this many candidates the sequence is nginx's."""
PRECISION = 1 << 20
"""Weights are multiplied until they sum to this: a change rounds credits to a millionth of a pick."""

Schedule: TypeAlias = SmoothPicker | TieredPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedRoundRobin:
    """Each endpoint gets its share by weight, evenly spread. This is the default policy.

    Up to 64 endpoints the sequence is nginx's smooth weighted round robin: weights 5, 1, 1 give ``a a b a c a a``. It
    begins at a random place, so that many clients do not begin with the same endpoint.
    """

    name: ClassVar[str] = "weighted_round_robin"
    spreads: ClassVar[bool] = True

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Schedule:
        """A picker in which survivors of ``previous`` keep their place."""
        return by_weights(candidates, [candidate.weight for candidate in candidates], previous)


def by_weights(candidates: Sequence[Candidate], weights: Sequence[int], previous: Picker | None) -> Schedule:
    """A picker with these weights, each >= 1, in place of the candidates' own."""
    known = previous if isinstance(previous, (SmoothPicker, TieredPicker)) and previous.size > 1 else None
    if len(candidates) > SMOOTH_LIMIT:
        return TieredPicker(candidates, weights, known)
    reduced = sum(weights) // gcd(*weights)
    factor = PRECISION // sum(weights) + 1
    weights = [weight * factor for weight in weights]
    credits = None if known is None else carried(candidates, sum(weights), known.credits())
    return SmoothPicker(candidates, weights, credits, reduced)
