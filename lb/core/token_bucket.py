"""A token bucket: ``rate`` tokens a second, ``burst`` at once.

It stores one instant instead of a count ("generic cell rate algorithm", ITU-T I.371): when the
bucket will be full again. Nothing has to be refilled, so reading never
writes, and an idle bucket costs nothing.
"""

from __future__ import annotations

import math

from lb.core import checks

# Waiting exactly as long as `wait` says must be enough, although `now + wait` was rounded.
SLACK_S = 1e-9


class TokenBucket:
    """Gives out ``burst`` tokens at once, and ``rate`` a second in the long run.

    In any ``t`` seconds these are at most ``burst + rate * t``. The caller gives the time: ``now`` is in monotonic
    seconds. Not thread-safe.

    Args:
        rate: tokens a second, > 0.
        burst: the most tokens that it holds, > 0. It begins full.

    Raises:
        ValueError: ``rate`` or ``burst`` is out of its range.
        TypeError: one of them is not a number.
    """

    __slots__ = ("_burst", "_full_at", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        """A full bucket."""
        for name, value in (("rate", rate), ("burst", burst)):
            checks.number(f"TokenBucket.{name}", value, most=1e15, above=True)
        self._rate = float(rate)
        self._burst = float(burst)
        self._full_at = -math.inf

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._rate

    @property
    def burst(self) -> float:
        """Tokens that may be taken at once from a full bucket."""
        return self._burst

    def available(self, now: float) -> float:
        """Tokens in the bucket at ``now``."""
        return min(self._burst, self._burst - (self._full_at - now) * self._rate)

    def wait(self, now: float, n: float = 1.0) -> float:
        """Seconds from ``now`` until ``n`` tokens are there; 0.0 if they are there. Takes nothing.

        Raises:
            ValueError: ``n`` is not > 0 and <= ``burst``.
        """
        if not 0 < n <= self._burst:
            raise ValueError(f"n is {n!r}; expected a number > 0 and <= burst ({self._burst:g})")
        missing = self._full_at - now - (self._burst - n) / self._rate
        return missing if missing > SLACK_S else 0.0

    def take(self, now: float, n: float = 1.0) -> float:
        """Take ``n`` tokens and return 0.0; or, if they are not there, take none and return how many seconds to wait.

        Raises:
            ValueError: ``n`` is not > 0 and <= ``burst``.
        """
        wait = self.wait(now, n)
        if wait == 0.0:
            self._full_at = max(self._full_at, now) + n / self._rate
        return wait

    def __repr__(self) -> str:
        return f"TokenBucket(rate={self._rate:g}/s, burst={self._burst:g}, full_at={self._full_at:g})"
