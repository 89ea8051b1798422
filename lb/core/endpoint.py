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
    """One addressable instance.

    ``address`` is what grpcio dials: ``host:port``, ``[v6]:port`` or ``unix:/path``.
    ``id`` names the instance (Consul's service id); it defaults to the address.
    ``weight`` is its share relative to the others; 0 means no traffic while others are there.
    ``zone`` and ``metadata`` are free text from the registry.

    Raises:
        ValueError: the address is empty, or the weight is not from 0 to 1,000,000,000.
        TypeError: a field has another type.
    """

    address: str
    _: KW_ONLY
    id: str = ""
    weight: int = 1
    zone: str = ""
    # A factory: before 3.12 a mappingproxy has no hash, and dataclasses refuse it as a default.
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    # Made once: a set of 10,000 is compared by it at each change.
    key: tuple[str, str] = field(init=False, repr=False, compare=False)
    """What identifies the instance across resolutions: ``(id, address)``."""

    def __post_init__(self) -> None:
        # A set has thousands: what is as it should be is seen at once.
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
    """The whole set of a target's endpoints at one moment, in a stable order.

    ``note`` says in words where the set comes from. It is shown when the set is empty, for
    example ``consul 127.0.0.1:8500: no service 'catalgo' is registered``.
    """

    endpoints: tuple[Endpoint, ...]
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.endpoints, (tuple, list)):
            raise TypeError(f"Resolution.endpoints is {checks.shown(self.endpoints)}; expected a tuple of lb.Endpoint")
        checks.string("Resolution.note", self.note, empty=True)


class Listener(Protocol):
    """What a resolver reports to. All methods may be called from any thread."""

    def update(self, resolution: Resolution) -> None:
        """The set is now this one. An empty set is an answer, too: calls fail fast."""

    def error(self, message: str) -> None:
        """The source could not be read. The last good set stays; ``message`` is shown in errors."""

    def confirm(self) -> None:
        """The source was read, and the set is still the one told last. For the metric of its age."""


class Resolver(Protocol):
    """Produces resolutions. A user's own resolver is any object with these two methods.

    ``start`` is called once, from the channel's event loop, at the channel's first use.
    ``close`` is called once, when the channel closes; it may return an awaitable, which the
    channel awaits. After it no method of the listener is called.

    A third method is called if it is there: ``resolve_now()``, gRPC's request for a re-resolution. The channel
    calls it in its event loop when a connection was lost or making one begins to fail, and then after 1, 2, 4, ...
    seconds as long as an endpoint is not connected. It must not block. How often the source is read is the
    resolver's to bound: many connections may be lost at once. One that is told of changes, as Consul's, needs none.

    Two attributes are read if they are there: ``target``, what messages and snapshots call it, and ``authority``,
    the name that servers are called by (``:authority``, and the name that a certificate must have).
    """

    def start(self, listener: Listener) -> None:
        """Begin to report to ``listener``; must not block."""

    def close(self) -> object:
        """Stop. Must be safe to call when ``start`` never was."""
