"""The attempts that run under an ``attempt_timeout_s``: one timer for all those of a method.

A timer for each would cost every call more than a hundredth of itself. Attempts of one method have
the same time-out, so the first one in is the first one due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from lb.aio import pulse

if TYPE_CHECKING:
    from lb.aio.calls import LogicalCall
    from lb.core.attempt import Attempt

_log = logging.getLogger("lb.channel")


class Overdue:
    """Watches attempts from `add` until they are taken out of ``running``; both from any thread."""

    __slots__ = ("_armed", "_limit_s", "running")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._armed = False
        self.running: dict[Attempt, tuple[float, LogicalCall, Any]] = {}
        """Since when it counts, the call, and the lower call to end."""

    def add(self, attempt: Attempt, call: LogicalCall, real: Any, since: float) -> None:
        """``call.attempt_overdue`` is called in the channel's loop once ``limit_s`` have passed after ``since``."""
        self.running[attempt] = (since, call, real)
        if not self._armed:
            self._armed = True
            call.in_loop(self._look)

    def _look(self) -> None:
        self._armed = True  # also while it looks: who is added meanwhile is met here
        beat = pulse.current()
        # A copy, and no list: making one allocates, so finalizers may run meanwhile, and other threads.
        for attempt, (since, call, real) in self.running.copy().items():
            left_s = beat.pulse.left_s(since, self._limit_s, time.monotonic())
            if left_s > 0.0:
                beat.arm(left_s, self._look)
                return
            if self.running.pop(attempt, None) is not None:
                try:
                    call.attempt_overdue(attempt, real)
                except Exception:  # noqa: BLE001  # whatever it is, the other attempts are watched on
                    _log.exception("%s: cannot end an attempt whose time is over: %r", call.call.method, attempt)
        self._armed = False
        if self.running and not self._armed:  # added by a thread that took the timer for armed
            self._armed = True
            asyncio.get_running_loop().call_soon(self._look)
