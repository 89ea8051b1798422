"""Netflix's *Gradient2* (``Gradient2Limit.java``), to compare `lb.core.concurrency` with."""

from __future__ import annotations

import math

from lb.core.concurrency import Baseline, ConcurrencyLimit, LimitState


class Gradient2(LimitState):
    """Goes by each answer, and by one long mean of all latencies, which rises slowly while the limit is reached."""

    __slots__ = ("exact", "long_s", "samples")

    def __init__(self, settings: ConcurrencyLimit) -> None:
        super().__init__(settings)
        self.exact = float(settings.limit)
        self.long_s = 0.0
        self.samples = 0

    def observe(self, took_s: float, in_flight: int, now: float, of: Baseline | None = None) -> None:
        """A call ended well."""
        self.samples = min(self.samples + 1, 600)
        share = 2 / (self.samples + 1)
        if in_flight >= self.limit and self.samples > 10 and took_s > self.long_s:
            share *= 0.02
        self.long_s += (took_s - self.long_s) * share
        if self.long_s > 2 * took_s:
            self.long_s *= 0.95
        if in_flight * 2 < self.exact:
            return
        wanted = self.exact * max(0.5, min(1.0, 1.5 * self.long_s / took_s)) + math.sqrt(self.exact)
        least, most = self.settings.min_limit, self.settings.max_limit
        self.exact = min(most, max(least, self.exact * 0.8 + wanted * 0.2))
        self.limit = int(self.exact)
