"""Endpoints, and what a resolver says about them.

An *endpoint* is one addressable instance of a service. Endpoints are values: two that
compare equal are the same thing. Their *key* (id and address) tells an instance that
changed (a new weight) from one that was replaced (a new process on another port).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Protocol

from lb.core import checks

MOST_WEIGHT = 10**9
_NOTHING: Mapping[str, str] = MappingProxyType({})
_PLAIN = (dict, MappingProxyType)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to which calls can go. Endpoints are values: equal ones are the same.

    Args:
        address: what to connect to: ``host:port``, ``[v6]:port`` or ``unix:/path``.
        id: the name of the instance (in Consul, the service id). Default: the address.
        weight: its share relative to the others, from 0 to 1,000,000,000. 0: no calls while others are there.
        zone: where it runs (`ZoneAware`).
        metadata: more about it, for a policy of your own.

    Raises:
        ValueError: the address is empty, or the weight is out of its range.
        TypeError: a field has a wrong type.
    """

    address: str
    _: KW_ONLY
    id: str = ""
    weight: int = 1
    zone: str = ""
    # A factory: before 3.12 a mappingproxy has no hash, and dataclasses refuse it as a default.
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    # Computed once: a set of 10,000 is compared by it at each change.
    key: tuple[str, str] = field(init=False, repr=False, compare=False)
    """``(id, address)``. An endpoint with the same key as before is the same instance, and keeps its connection."""

    def __post_init__(self) -> None:
        # Sets have thousands of endpoints: this is the quick check, for those that are right.
        if (
            type(self.address) is not str
            or not self.address
            or type(self.id) is not str
            or type(self.zone) is not str
            or type(self.weight) is not int
            or not 0 <= self.weight <= MOST_WEIGHT
            or type(self.metadata) not in _PLAIN
        ):
            self._check()
        if not self.id:
            object.__setattr__(self, "id", self.address)
        object.__setattr__(self, "key", (self.id, self.address))

    def __str__(self) -> str:
        """For people: ``id (address)``, or the address alone when it has no id of its own."""
        return self.id if self.id == self.address else f"{self.id} ({self.address})"

    def _check(self) -> None:
        checks.string("Endpoint.address", self.address, "host:port, or unix:/path")
        which = f"(address {checks.shown(self.address)})"  # a set has thousands
        accepted = f"a whole number from 0 to {MOST_WEIGHT} {which}"
        checks.whole("Endpoint.weight", self.weight, accepted, most=MOST_WEIGHT)
        checks.string("Endpoint.id", self.id, f"a string {which}", empty=True)
        checks.string("Endpoint.zone", self.zone, f"a string {which}", empty=True)
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"Endpoint.metadata is {checks.shown(self.metadata)}; expected a mapping {which}")


@dataclass(frozen=True, slots=True)
class Resolution:
    """All endpoints of a target at one moment.

    Args:
        endpoints: in an order that stays the same while the set does.
        note: where they come from, in words. It is shown when there are none, such as
            ``consul 127.0.0.1:8500: no service 'catalgo' is registered``.

    Raises:
        TypeError: a field has a wrong type.
    """

    endpoints: tuple[Endpoint, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.endpoints, (tuple, list)):
            raise TypeError(f"Resolution.endpoints is {checks.shown(self.endpoints)}; expected a tuple of lb.Endpoint")
        checks.string("Resolution.note", self.note, empty=True)


class Listener(Protocol):
    """What a resolver reports to. Its methods may be called from any thread."""

    def update(self, resolution: Resolution) -> None:
        """Replace the set of endpoints. If there are none, calls fail at once.

        Raises:
            TypeError: it is not a `Resolution` of endpoints.
        """

    def error(self, message: str) -> None:
        """The source could not be read. The last endpoints stay in use; ``message`` is shown in errors."""

    def confirm(self) -> None:
        """The source was read, and nothing has changed. This is for the metric that shows the age of the answer."""


class Resolver(Protocol):
    """Finds the endpoints of a target. A resolver of your own is any object with these two methods.

    It may also have:

    - ``resolve_now()``: look again. The channel calls it in its event loop when a connection is lost or cannot be made,
      and then after 1, 2, 4, ... seconds while an endpoint is not connected. It must not block. Many connections may be
      lost at once, so limit how often you read the source. A resolver that is told of changes does not need it.
    - ``target``: what messages and snapshots call the target.
    - ``authority``: the name for ``:authority``, and for the server's certificate.
    """

    def start(self, listener: Listener) -> None:
        """Begin to report to ``listener``. Called once, in the channel's event loop. Must not block."""

    def close(self) -> object:
        """Stop, and do not call the listener again. Called once when the channel is closed, also if ``start`` was not.

        If it returns an awaitable, the channel awaits it.
        """
