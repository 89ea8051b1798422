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
    """The first endpoint in the resolver's order, for as long as it is admitted; then the first of the others.

    At the start it is the first of those that are connected when the first call is made; connecting begins in the
    resolver's order, all at once. It does not go back by itself when the former one returns. So all clients of
    one set use the same endpoint; ``shuffle`` begins with a random one, so that they do not (``shuffleAddressList``,
    gRFC A62). Unlike gRPC's ``pick_first`` the connections to the others stand, too: a failover costs no connecting.
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
