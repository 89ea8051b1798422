"""Ring hash with bounded loads: calls of one key go to one endpoint, until it is full.

Each endpoint has points on a ring of 64 bits, 4 for the smallest weight. A key has 5 probes on the ring, and
belongs to the point that lies nearest above one of them (*multi-probe consistent hashing*, Appleton
and O'Reilly 2015). That spreads keys as evenly as some 40 points for each endpoint would, and 10,000 equal endpoints
need a ring of 40,000 points, not of 400,000. All of it is computed from ids, addresses and
keys by BLAKE2b, so that all processes agree. When an endpoint comes or goes only its own keys move:
1 of n. (More do when the ratio of the smallest weight to the greatest common divisor changes.)

**Bounded loads** (Mirrokni, Thorup and Zadimoghaddam 2016): no endpoint gets a call that would lift it above
``bound`` times its share, by weight, of the calls in flight. Such a call goes to the next
endpoint on the ring, which is the same for all calls of a key. So a hot key uses as many endpoints as it needs.

A change costs O(points of the endpoints that changed). The first ring is O(n log n), some 0.1 s at 10,000 endpoints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from math import gcd
from random import Random
from struct import unpack
from typing import ClassVar

from lb.core import checks
from lb.core.headers import legal_key
from lb.core.outcome import Outcome
from lb.core.policies.base import CallInfo, Candidate, Picker

POINTS = 4
"""Points on the ring of the smallest weight."""
MOST_POINTS = 32
"""Points of the largest weight, at most."""
PROBES = 5

_RING = 1 << 64

Key = str | bytes | None


class Total:
    """The calls in flight on all endpoints of a channel."""

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        self.in_flight = 0


class Counted:
    """How many of an endpoint's calls in flight the total has.

    This is corrected whenever a call on the endpoint is picked or ends. Retries and hedges, which no picker
    sees, make it late, but never wrong for long.
    """

    __slots__ = ("in_flight", "total")

    def __init__(self, total: Total) -> None:
        self.in_flight = 0
        self.total = total

    def update(self, in_flight: int) -> None:
        """``in_flight`` calls run on it now."""
        self.total.in_flight += in_flight - self.in_flight
        self.in_flight = in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class RingHash:
    """Calls with the same key go to the same endpoint, until that is full; then to the next one on the ring.

    The ring is a multi-probe consistent hash (Appleton and O'Reilly, 2015) with bounded loads (Mirrokni, Thorup and
    Zadimoghaddam, 2016). When one of n endpoints comes or goes, only its own keys move, about 1 of n.

    Args:
        key: the name of a metadata key, in lower case (repeated values are joined by commas), or a function of the
            call (`CallInfo`) that returns a string, bytes or None. Calls without a key go to any endpoint, by weight.
        bound: how far above its share of the calls in flight an endpoint may get, > 1. With 1.25 it may have a quarter
            more. Near 1 the load is most even, and fewer calls stay at the endpoint of their key.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    name: ClassVar[str] = "ring_hash"
    needs_metadata: ClassVar[bool] = True
    key: str | Callable[[CallInfo], Key]
    bound: float = 1.25

    def __post_init__(self) -> None:
        if not callable(self.key):
            checks.string("RingHash.key", self.key)
            if not legal_key(self.key):
                raise ValueError(f"RingHash.key is {checks.shown(self.key)}; expected a metadata key in lower case")
        checks.number("RingHash.bound", self.bound, least=1, above=True)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> RingPicker:
        """A picker over ``candidates``. It takes over the ring of ``previous`` and changes what changed."""
        return RingPicker(self, candidates, previous if isinstance(previous, RingPicker) else None)

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Count the call out."""
        if candidate.stats is not None:
            candidate.stats.update(candidate.in_flight)

    def key_of(self, call: CallInfo) -> Key:
        """The call's key; None when it has none.

        Raises:
            TypeError: the function returned something else than text, bytes or None.
        """
        if not isinstance(self.key, str):
            key = self.key(call)
            if key is not None and not isinstance(key, (str, bytes)):
                raise TypeError(f"ring_hash: key({call.method}) returned {key!r}; expected text, bytes or None")
            return key
        values = [value for name, value in call.metadata if name == self.key]
        if len(values) <= 1:
            return values[0] if values else None
        return b",".join(value if isinstance(value, bytes) else value.encode() for value in values)


class RingPicker:
    """The ring: points in order, and the candidate of each. The first point is at the end once more."""

    __slots__ = ("_guide", "_owners", "_points", "_scale", "_settings", "_shift", "_sum", "_total", "_weights")

    def __init__(self, settings: RingHash, candidates: Sequence[Candidate], previous: RingPicker | None) -> None:
        """Use ``RingHash.picker``."""
        self._settings = settings
        self._weights = weights = {candidate: candidate.weight for candidate in candidates}
        self._sum = sum(weights.values())
        self._scale = min(POINTS / gcd(*weights.values()), max(POINTS, MOST_POINTS) / max(weights.values()))
        self._points: list[int]
        self._owners: list[Candidate]
        before: dict[Candidate, int] = {}
        if previous is not None and previous._scale == self._scale:
            before = previous._weights
        coming = [candidate for candidate, weight in weights.items() if before.get(candidate) != weight]
        leaving = [(candidate, weight) for candidate, weight in before.items() if weights.get(candidate) != weight]
        if previous is not None and len(coming) + len(leaving) < len(before) / 8:
            self._points, self._owners = previous._points, previous._owners
            self._change(leaving, coming)
        else:
            ring = {
                point: candidate for candidate, weight in weights.items() for point in self._places(candidate, weight)
            }
            self._points = sorted(ring)
            self._owners = [ring[point] for point in self._points]
            self._points.append(self._points[0] + _RING)
            self._owners.append(self._owners[0])
        # A guide: where the points of each stretch of the ring begin, so that a search stays in near memory.
        bits = min(11, max(0, len(self._points).bit_length() - 4))
        self._shift = 64 - bits
        self._guide = [bisect_left(self._points, cell << self._shift) for cell in range((1 << bits) + 1)]
        known = next((c.stats for c in candidates if isinstance(c.stats, Counted)), None)
        self._total: Total = Total() if known is None else known.total
        for candidate in coming:
            if candidate.stats is None:
                candidate.stats = Counted(self._total)
                candidate.stats.update(candidate.in_flight)

    def _places(self, candidate: Candidate, weight: int) -> Iterator[int]:
        """The points of an endpoint: as many of one endless sequence as its weight is worth."""
        count = max(1, round(weight * self._scale))
        name = "\0".join(candidate.endpoint.key).encode()
        for block in range(0, count, 8):
            digest = blake2b(name, digest_size=64, salt=block.to_bytes(16, "big")).digest()
            yield from unpack(">8Q", digest)[: count - block]

    def _change(self, leaving: Sequence[tuple[Candidate, int]], coming: Sequence[Candidate]) -> None:
        points, owners = self._points, self._owners
        points.pop()
        owners.pop()
        for candidate, weight in leaving:
            for point in self._places(candidate, weight):
                at = bisect_left(points, point)
                if at < len(points) and points[at] == point and owners[at] is candidate:
                    del points[at], owners[at]
        for candidate in coming:
            for point in self._places(candidate, self._weights[candidate]):
                at = bisect_left(points, point)
                points.insert(at, point)
                owners.insert(at, candidate)
        points.append(points[0] + _RING)
        owners.append(owners[0])

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The key's endpoint, or the next with room. O(log n), and on average a few steps along the ring."""
        key = None if call is None else self._settings.key_of(call)
        if key is None:
            probe, stride = rng.getrandbits(64), rng.getrandbits(64)
        else:
            digest = blake2b(key if isinstance(key, bytes) else key.encode(), digest_size=16).digest()
            probe, stride = unpack(">QQ", digest)
        points, guide, shift = self._points, self._guide, self._shift
        nearest, place = _RING, 0
        for _ in range(PROBES):
            cell = probe >> shift
            at = bisect_left(points, probe, guide[cell], guide[cell + 1])
            distance = points[at] - probe
            if distance < nearest:
                nearest, place = distance, at
            probe = (probe + stride) % _RING
        owners, total = self._owners, self._total
        candidate = owners[place]
        share = self._settings.bound * (total.in_flight + 1) / self._sum
        if candidate.in_flight >= share * candidate.weight:
            candidate = self._next_with_room(place, share)
        stats: Counted | None = candidate.stats
        if stats is not None:
            stats.update(candidate.in_flight + 1)
        return candidate

    def _next_with_room(self, place: int, share: float) -> Candidate:
        owners = self._owners
        for at in chain(range(place + 1, len(owners)), range(place)):
            candidate = owners[at]
            if candidate.in_flight < share * candidate.weight:
                return candidate
        return owners[place]  # the total lags behind: all seem full

    def explain(self) -> str:
        """The rule in words."""
        key = self._settings.key if isinstance(self._settings.key, str) else "a function"
        return f"by key ({key}) on a ring of {len(self._weights)}, up to {self._settings.bound:g} times the mean load"
