"""Pick first: one endpoint takes all calls, until it is out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.policies.base import CallInfo, Candidate, Picker


@dataclass(frozen=True, slots=True, kw_only=True)
class PickFirst:
    """One endpoint for all calls: the first one in the resolver's order while it is usable, then another one.

    The choice is made at the first call, among those that are connected then. It stays with an endpoint even if an
    earlier one comes back. gRPC's ``pick_first`` connects to one endpoint at a time; this one connects to all, so that
    a change costs no connecting.

    Args:
        shuffle: begin with a random endpoint, so that not all clients use the same one (gRFC A62's
            ``shuffleAddressList``).

    Raises:
        TypeError: ``shuffle`` is neither True nor False.
    """

    name: ClassVar[str] = "pick_first"
    shuffle: bool = False

    @property
    def in_order(self) -> bool:
        """Whether new endpoints are connected in the resolver's order."""
        return not self.shuffle

    def __post_init__(self) -> None:
        checks.flag("PickFirst.shuffle", self.shuffle)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> PickFirstPicker:
        """A picker that stays with the endpoint of ``previous``."""
        if isinstance(previous, PickFirstPicker) and previous.chosen is not None:
            key = previous.chosen.endpoint.key
            for candidate in candidates:
                if candidate.endpoint.key == key:
                    return PickFirstPicker(candidates, candidate)
        return PickFirstPicker(candidates, None if self.shuffle else candidates[0])


class PickFirstPicker:
    """The chosen one."""

    __slots__ = ("_candidates", "chosen")

    def __init__(self, candidates: Sequence[Candidate], chosen: Candidate | None) -> None:
        """``chosen`` is None when chance shall choose at the first pick."""
        self._candidates = tuple(candidates)
        self.chosen = chosen

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """Always the same. O(1)."""
        if self.chosen is None:
            self.chosen = rng.choice(self._candidates)
        return self.chosen

    def explain(self) -> str:
        """The rule in words."""
        return f"one of {len(self._candidates)} takes all calls while it is admitted"
