"""Round robin: each in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from lb.core.policies.base import CallInfo, Candidate, Picker


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Each endpoint in turn. Weights do not count. It begins at a random endpoint."""

    name: ClassVar[str] = "round_robin"
    spreads: ClassVar[bool] = True

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> RoundRobinPicker:
        """A picker that goes on where ``previous`` was."""
        start = previous.place_in(candidates) if isinstance(previous, RoundRobinPicker) else -1
        return RoundRobinPicker(candidates, start)


class RoundRobinPicker:
    """A position in a list."""

    __slots__ = ("_candidates", "_next")

    def __init__(self, candidates: Sequence[Candidate], start: int) -> None:
        """``start`` is the index to pick first, -1 for a random one."""
        self._candidates = tuple(candidates)
        self._next = start

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next in turn. O(1)."""
        candidates = self._candidates
        at = self._next
        if at < 0:
            at = rng.randrange(len(candidates))
        self._next = at + 1 if at + 1 < len(candidates) else 0
        return candidates[at]

    def turn(self, rng: Random) -> None:
        """Go on from anywhere."""
        self._next = rng.randrange(len(self._candidates))

    def place_in(self, candidates: Sequence[Candidate]) -> int:
        """The index in a new set to go on with: the next candidate that is still there; -1: begin anywhere.

        So the place only moves forward, and no candidate that stays waits longer than a round. A single candidate has
        no place: the next picker begins anywhere.
        """
        if self._next < 0 or len(self._candidates) == 1:
            return -1
        places = {candidate.endpoint.key: place for place, candidate in enumerate(candidates)}
        size = len(self._candidates)
        for ahead in range(size):
            place = places.get(self._candidates[(self._next + ahead) % size].endpoint.key)
            if place is not None:
                return place
        return -1

    def explain(self) -> str:
        """The rule in words."""
        return f"each of {len(self._candidates)} in turn"
