"""Which calls can no longer be answered in time: work for them is thrown away, and makes others late."""

from __future__ import annotations

from lb.core.quantile import GROWTH, Quantile

LET_THROUGH = 20
"""One in so many hopeless calls is let through: were all refused, a method that has become faster would not be found
out."""


class Typical:
    """How long one method typically takes: the median of its latest calls."""

    __slots__ = ("_hopeless", "_median", "observe")

    def __init__(self) -> None:
        self._median = Quantile(0.5)
        self._hopeless = 0
        self.observe = self._median.observe
        """A call ended well after so long."""

    @property
    def median_s(self) -> float | None:
        """The median in seconds, at most a fifth too low; None until enough calls were seen."""
        upper_s = self._median.value_s
        return None if upper_s is None else upper_s / GROWTH

    def hopeless(self, left_s: float) -> bool:
        """Whether to refuse a call that has so many seconds left."""
        upper_s = self._median.value_s
        if upper_s is None or left_s * GROWTH >= upper_s:
            return False
        self._hopeless += 1
        return self._hopeless % LET_THROUGH != 0

    def __repr__(self) -> str:
        return f"<Typical {self._median!r}>"
