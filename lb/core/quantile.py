"""The p95 of a method's latency, for hedging: a histogram that forgets.

Durations are counted in buckets that grow by a quarter each, and a quantile is told as its
bucket's upper edge: never too low, at most a quarter too high. When `HALVE_AT` were counted all
counts are halved: older ones fade, and the memory and the cost of an observation stay the same
whatever the traffic.
"""

from __future__ import annotations

from bisect import bisect_right

LEAST_SAMPLES = 100
"""This many calls must have been seen before there is a quantile."""
HALVE_AT = 2000
_LEAST_S = 1e-5
GROWTH = 1.25
_BUCKETS = 80  # up to about 450 s
_EDGES = [_LEAST_S * GROWTH**at for at in range(_BUCKETS - 1)]
_EVERY = 32
"""The quantile is recomputed after this many observations; in between, the last value is used."""


class Quantile:
    """One method's latencies. ``value_s`` is the quantile in seconds, None until it is known."""

    __slots__ = ("_counts", "_share", "_total", "_until", "value_s")

    def __init__(self, share: float = 0.95) -> None:
        """``share`` is the quantile that is told, between 0 and 1."""
        self._share = share
        self._counts = [0] * _BUCKETS
        self._total = 0
        self._until = LEAST_SAMPLES
        self.value_s: float | None = None

    def observe(self, duration_s: float) -> None:
        """Count one duration. O(1), but every 32nd time O(80)."""
        self._counts[bisect_right(_EDGES, duration_s)] += 1
        self._total += 1
        if self._total >= self._until:
            self._settle()

    @property
    def samples(self) -> int:
        """How many durations the counts stand for: old ones fade."""
        return self._total

    def _settle(self) -> None:
        if self._total >= HALVE_AT:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)
        self._until = self._total + _EVERY
        wanted = self._share * self._total
        seen = 0
        for at, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                self.value_s = _LEAST_S * GROWTH**at  # the bucket's upper edge
                return

    def __repr__(self) -> str:
        known = "unknown" if self.value_s is None else f"{self.value_s * 1000:.1f} ms"
        return f"<Quantile p{self._share * 100:g} {known} of {self._total}>"
