"""How strained a process is: how late its event loop is, on average.

A timer looks ten times a second. How much later than planned it runs is how long callbacks wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

_EVERY_S = 0.1

LOOP_LAG = "loop_lag"
"""The loop's lag as a utilization: the part of the time by which its timers are late, 0 to 1."""


class Strain:
    """Measures the running loop from `start` to `stop`. The figure is an average since it was last asked for."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._late_s = 0.0
        self._passed_s = 0.0

    def start(self) -> None:
        """Measure."""
        self._plan(asyncio.get_running_loop())

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lag(self) -> Mapping[str, float]:
        """The part of the time by which the loop was late."""
        lag = self._late_s / self._passed_s if self._passed_s else 0.0
        self._late_s = self._passed_s = 0.0
        return {LOOP_LAG: lag}

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_EVERY_S, self._look, loop, loop.time() + _EVERY_S)

    def _look(self, loop: asyncio.AbstractEventLoop, planned: float) -> None:
        late_s = max(0.0, loop.time() - planned)
        self._late_s += late_s
        self._passed_s += late_s + _EVERY_S
        self._plan(loop)

    def __repr__(self) -> str:
        return f"<Strain late={self._late_s:.3f} s of {self._passed_s:.3f} s>"
