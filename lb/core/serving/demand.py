"""How much more is asked of a server than it can do, and for how long a refused client shall stay away.

A server that is full for a moment sends its clients to another one, at once: push-back 0. One that refuses most of
its calls spends its time on refusals, and the others are hardly better off. Then it says how long to stay away: the
longer, the larger the share that it refuses. The times are spread, so that those who were refused together do not come
back together.
"""

from __future__ import annotations

from random import Random

from lb.core.window import Window

_OVER_S = 1.0
_FEW = 20
"""A second with fewer calls says nothing."""
_FAR_SHARE = 2 / 3
"""Refusing more than this, three times the limit is asked."""
_STEP_S = 0.1
MOST_S = 5.0
"""On average; the spread comes on top."""


class Demand:
    """Counts what a server is asked and what it refuses."""

    __slots__ = ("_window",)

    def __init__(self) -> None:
        self._window = Window(_OVER_S)

    def asked(self, now: float) -> None:
        """There is a call."""
        window = self._window
        if now >= window.edge:
            window.roll(now)
        window.calls += 1

    def refused(self, now: float) -> None:
        """A call that was counted is refused."""
        window = self._window
        if now >= window.edge:
            window.roll(now)
        window.marked += 1

    def share(self, now: float) -> float:
        """Which part of the calls of the last second was refused, from 0 to 1; 0 when there were few."""
        calls, refused = self._window.totals(now)
        return min(1.0, refused / calls) if calls >= _FEW else 0.0

    def pushback_s(self, now: float, rng: Random) -> float:
        """For how many seconds a client that is refused now shall stay away from this server."""
        share = self.share(now)
        if share <= _FAR_SHARE:
            return 0.0
        mean_s = _STEP_S * share / (1.0 - share) if share < 1.0 else MOST_S
        return min(MOST_S, mean_s) * rng.uniform(0.5, 1.5)

    def __repr__(self) -> str:
        return f"<Demand {self._window.calls} asked, {self._window.marked} refused>"
