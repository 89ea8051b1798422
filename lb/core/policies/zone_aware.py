"""Zone aware: calls stay in their own zone until it is overloaded; then the excess goes to the others.

The policy inside picks within the zone, and a second picker of it picks among all others. An endpoint of the
zone takes calls until ``in_flight`` of this channel run on it (if it is of average weight). From then
on a call goes to the less loaded one of two: the one picked in the zone and the one picked outside. So the zone
stays just full, only the excess leaves it, and when all endpoints are full they are loaded alike, each by
its weight. A zone that loses endpoints is full sooner, and sends more calls to the others.

Envoy and gRPC decide by the shares of healthy hosts, which a control plane knows. A client knows its own calls in
flight, and needs no control plane for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from lb.core import checks
from lb.core.policies.base import CallInfo, Candidate, Picker, Policy
from lb.core.policies.wrapper import Wrapper, WrapperPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneAware(Wrapper):
    """Endpoints of this client's own zone, as long as they have room; then the others. Among each, ``policy`` picks.

    Args:
        zone: the zone of this client. It is compared with ``Endpoint.zone``.
        policy: an object or a name. None: the default policy.
        in_flight: how many calls of this channel fill an endpoint of average weight, >= 1.

    Raises:
        ValueError: a field is out of its range, or ``policy`` is a name that is not known.
        TypeError: a field has a wrong type.
    """

    zone: str
    policy: Policy | str | None = None
    in_flight: int = 32
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.string("ZoneAware.zone", self.zone)
        checks.whole("ZoneAware.in_flight", self.in_flight, least=1)
        self._settle("zone_aware")

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> ZonePicker:
        """A picker over ``candidates``; each side goes on where it was."""
        assert not isinstance(self.policy, str)
        assert self.policy is not None
        before = previous if isinstance(previous, ZonePicker) else None
        near = [candidate for candidate in candidates if candidate.endpoint.zone == self.zone]
        far = [candidate for candidate in candidates if candidate.endpoint.zone != self.zone]
        mean = sum(candidate.weight for candidate in candidates) / len(candidates)
        return ZonePicker(
            self.zone,
            self.policy.picker(near, None if before is None else before.near) if near else None,
            self.policy.picker(far, None if before is None else before.far) if far else None,
            self.in_flight / mean,
            near,
        )


class ZonePicker(WrapperPicker):
    """A picker for the own zone and one for the others, of which one may be missing."""

    __slots__ = ("_full", "_zone", "far", "inner", "near", "prefers")

    def __init__(
        self, zone: str, near: Picker | None, far: Picker | None, full: float, home: Sequence[Candidate]
    ) -> None:
        """``full``: calls in flight, per unit of weight, with which one of ``home``, the own zone, is full."""
        self._zone = zone
        self._full = full
        self.near = near
        self.far = far
        self.inner = far if near is None else near
        self.prefers: Sequence[Candidate] = getattr(near, "prefers", home)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """In its own zone while there is room. One pick of the policy inside, two when the zone is full."""
        near, far = self.near, self.far
        if near is None:
            assert far is not None
            return far.pick(call, now, rng)
        home = near.pick(call, now, rng)
        if far is None or home.in_flight < self._full * home.weight:
            return home
        away = far.pick(call, now, rng)
        return away if away.in_flight * home.weight < home.in_flight * away.weight else home

    def explain(self) -> str:
        """The rule in words."""
        if self.near is None:
            return self._explained(f"zone {self._zone} has no endpoint, all others")
        return self._explained(
            f"zone {self._zone} while its endpoints have fewer than {self._full:g} calls in flight each; then all zones"
        )
