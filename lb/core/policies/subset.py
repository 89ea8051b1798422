"""Subset: each client uses only some of the endpoints; all clients together use them evenly.

With many clients and many endpoints it is enough that a client uses twenty of them: fewer connections are busy,
each carries more calls, and there are more measurements of each endpoint (*Site Reliability Engineering*, ch. 20).

The endpoints form a circle, in the order of a hash of their ids that all clients share. A client takes
``size`` in a row, beginning at its own place. The places of numbered clients follow the van der Corput sequence (0,
1/2, 1/4, 3/4, 1/8, ...), which is even after any number of clients, as in Google's *Rocksteadier* subsetting
(P. Ward et al., "Reinventing backend subsetting at Google", 2022). A client with a name has the
place of its hash. When an endpoint comes or goes, a subset changes by two at most.

The subset is taken from the endpoints that are admitted, so a client always has ``size`` that work, if
there are as many. The channel still connects to all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from lb.core import checks
from lb.core.policies.base import Candidate, Picker, Policy
from lb.core.policies.wrapper import Wrapper, WrapperPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset(Wrapper):
    """Some of the endpoints, always the same ones for this client. Among them, ``policy`` picks.

    All clients together use all endpoints evenly, as in Google's *Rocksteadier* subsetting (Ward et al., 2022). When an
    endpoint comes or goes, at most two change in each subset. The channel still connects to all endpoints.

    Args:
        size: how many endpoints, >= 1. All, if there are no more.
        policy: an object or a name. None: the default policy.
        client: which client this is: its number, from 0 (such as a task's index), which spreads clients evenly, or a
            string such as its host name, which spreads them by chance.
        seed: clients with the same seed agree on the order of the endpoints.

    Raises:
        ValueError: a field is out of its range, or ``policy`` is a name that is not known.
        TypeError: a field has a wrong type.
    """

    size: int
    policy: Policy | str | None = None
    client: int | str
    seed: str = ""
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.whole("Subset.size", self.size, least=1)
        accepted = "a whole number >= 0, or a string that is not empty"
        if isinstance(self.client, str):
            checks.string("Subset.client", self.client, accepted)
        else:
            checks.whole("Subset.client", self.client, accepted)
        checks.string("Subset.seed", self.seed, empty=True)
        self._settle("subset")

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> SubsetPicker:
        """The inner policy's picker over this client's part of ``candidates``."""
        return SubsetPicker(self, candidates, previous if isinstance(previous, SubsetPicker) else None)

    def place(self) -> float:
        """Where on the circle this client begins, 0 to below 1."""
        if isinstance(self.client, str):
            return _hash(self.seed, self.client) / 2**64
        return int(f"{self.client:b}"[::-1], 2) / (1 << self.client.bit_length())


class SubsetPicker(WrapperPicker):
    """The circle, and the inner policy's picker over a part of it."""

    __slots__ = ("_circle", "_owners", "inner", "part", "pick")

    def __init__(self, settings: Subset, candidates: Sequence[Candidate], previous: SubsetPicker | None) -> None:
        """Use ``Subset.picker``. It takes over the circle of ``previous`` and changes what changed."""
        assert not isinstance(settings.policy, str)
        assert settings.policy is not None
        self._circle: list[int] = [] if previous is None else previous._circle
        self._owners: list[Candidate] = [] if previous is None else previous._owners
        now, before = set(candidates), set(self._owners)
        leaving, coming = before - now, now - before
        if len(leaving) + len(coming) > len(before) / 8:
            circle = sorted(((_hash(settings.seed, *c.endpoint.key), at) for at, c in enumerate(candidates)))
            self._circle = [place for place, _ in circle]
            self._owners = [candidates[at] for _, at in circle]
        else:
            for candidate in leaving:
                at = self._owners.index(candidate)
                del self._circle[at], self._owners[at]
            for candidate in coming:
                place = _hash(settings.seed, *candidate.endpoint.key)
                at = bisect_left(self._circle, place)
                self._circle.insert(at, place)
                self._owners.insert(at, candidate)
        count = len(self._owners)
        start = int(settings.place() * count)
        self.part = [self._owners[(start + step) % count] for step in range(min(settings.size, count))]
        """Whom it picks from."""
        inside = None if previous is None else previous.inner
        self.inner: Picker = settings.policy.picker(self.part, inside)
        self.pick = self.inner.pick

    @property
    def prefers(self) -> Sequence[Candidate]:
        """Its part, or what the picker inside prefers of that."""
        prefers: Sequence[Candidate] = getattr(self.inner, "prefers", self.part)
        return prefers

    def explain(self) -> str:
        """The rule in words."""
        return self._explained(f"this client uses {len(self.part)} of {len(self._owners)} endpoints")


def _hash(*parts: str) -> int:
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")
