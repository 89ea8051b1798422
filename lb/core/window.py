"""Two counts over the last seconds, kept in ten buckets.

Shared by the breaker (calls, failures) and the budget (calls, retries). Counting is two
attribute operations in the caller (``if now >= w.edge: w.roll(now)``, then ``w.calls += 1``);
rolling is O(1) amortised. The newest bucket is still filling, so the window covers
between nine and ten tenths of its length.
"""

from __future__ import annotations

import math
from collections import deque

BUCKETS = 10


class Window:
    """Counts ``calls`` and ``marked`` of the newest bucket; ``totals`` reads the whole window.

    ``length_s`` is the window in seconds; ``inf`` never rolls (nothing is forgotten).
    """

    __slots__ = ("_older", "_width", "calls", "edge", "marked")

    def __init__(self, length_s: float) -> None:
        """An empty window; its first bucket begins with the first ``roll``."""
        self._width = length_s / BUCKETS
        self._older: deque[tuple[int, int]] = deque(maxlen=BUCKETS - 1)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._older.clear()
        self.calls = 0
        self.marked = 0
        self.edge = -math.inf if self._width < math.inf else math.inf

    def roll(self, now: float) -> None:
        """Begin the bucket that holds ``now``. Call it when ``now >= edge``, before counting."""
        steps = self._steps(now)
        if steps >= BUCKETS:
            self._older.clear()
            self.edge = now + self._width
        else:
            self._older.append((self.calls, self.marked))
            self._older.extend([(0, 0)] * (steps - 1))
            self.edge += steps * self._width
        self.calls = 0
        self.marked = 0

    def totals(self, now: float) -> tuple[int, int]:
        """``(calls, marked)`` of the window that ends at ``now``. Changes nothing."""
        kept = BUCKETS - self._steps(now)
        if kept <= 0:
            return 0, 0
        buckets = [*self._older, (self.calls, self.marked)][-kept:]
        return sum(calls for calls, _ in buckets), sum(marked for _, marked in buckets)

    def _steps(self, now: float) -> int:
        """How many buckets ``now`` is past the newest one, at most ``BUCKETS``."""
        if now < self.edge:
            return 0
        return int(min((now - self.edge) / self._width, BUCKETS - 1)) + 1
