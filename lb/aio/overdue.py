"""The attempts that run under an ``attempt_timeout_s``: one timer for all those of a method.

A timer for each would cost every call more than a hundredth of itself. Attempts of one method have
the same time-out, so the first one in is the first one due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lb.aio import pulse

if TYPE_CHECKING:
    from lb.aio.attempt import LiveAttempt
    from lb.aio.protocols import Owner

_log = logging.getLogger("lb.channel")


class Overdue:
    """Watches attempts between `add` and `remove`; both may be called from any thread."""

    __slots__ = ("_armed", "_limit_s", "_running")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._armed = False
        self._running: dict[LiveAttempt, float] = {}
        """Since when each counts."""

    def __len__(self) -> int:
        """How many are watched."""
        return len(self._running)

    def add(self, attempt: LiveAttempt, since: float, channel: Owner) -> None:
        """``attempt.overdue`` is called in the channel's loop once ``limit_s`` have passed after ``since``."""
        self._running[attempt] = since
        if not self._armed:
            self._armed = True
            channel.in_loop(_look, self)

    def remove(self, attempt: LiveAttempt) -> None:
        """It has ended, or a response came."""
        self._running.pop(attempt, None)

    def look(self) -> None:
        """Tell those that are due, and look again when the next one is."""
        self._armed = True  # also while it looks: who is added meanwhile is met here
        beat = pulse.current()
        # A copy, and no list: making one allocates, so finalizers may run meanwhile, and other threads.
        for attempt, since in self._running.copy().items():
            left_s = beat.pulse.left_s(since, self._limit_s, time.monotonic())
            if left_s > 0.0:
                beat.arm(left_s, self.look)
                return
            if self._running.pop(attempt, None) is not None:
                try:
                    attempt.overdue()
                except Exception:  # noqa: BLE001  # whatever it is, the other attempts are watched on
                    _log.exception("cannot handle the timeout of %r", attempt)
        self._armed = False
        if self._running and not self._armed:  # added by a thread that took the timer for armed
            self._armed = True
            asyncio.get_running_loop().call_soon(self.look)


def _look(overdue: Overdue) -> None:
    overdue.look()
