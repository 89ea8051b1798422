"""What is known of an endpoint's load: attempts in flight and a decayed latency.

The latency is an exponentially weighted moving average whose weight depends on the time
between samples, not on their number: an endpoint that is asked seldom forgets as fast as a
busy one (Finagle's and linkerd's EWMA, decay 10 s).
"""

from __future__ import annotations

from math import expm1

DECAY_S = 10.0


class Load:
    """Latency statistics of one endpoint. Times are seconds on the caller's clock."""

    __slots__ = ("_stamp", "latency_s", "samples")

    def __init__(self) -> None:
        """No sample yet: ``latency_s`` is 0 and means nothing until ``samples`` is above 0."""
        self.latency_s = 0.0
        self.samples = 0
        self._stamp = 0.0

    def observe(self, latency_s: float, now: float) -> None:
        """Take in how long a good answer took, at its true end."""
        if self.samples:
            elapsed = now - self._stamp
            if elapsed > 0:
                self.latency_s -= (latency_s - self.latency_s) * expm1(-elapsed / DECAY_S)
        else:
            self.latency_s = latency_s
        self._stamp = now
        self.samples += 1

    def __repr__(self) -> str:
        return f"<Load {self.latency_s * 1000:.1f} ms of {self.samples}>"
