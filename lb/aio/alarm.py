"""What is due after a time that is the same for all calls of a method: one timer for all of them.

So are attempts that are given up after ``attempt_timeout_s``, and calls that begin another attempt after the hedging
delay. A timer for each would cost every call a tenth of itself. The first one in is the first one due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from lb.aio import pulse
from lb.aio.protocols import Owner

_log = logging.getLogger("lb.channel")


class Alarm:
    """Watches what is between `add` and `remove`; both may be called from any thread."""

    __slots__ = ("_armed", "_limit", "_tell", "_waiting")

    def __init__(self, limit: Callable[[], float | None], tell: Callable[[Any], object]) -> None:
        """``limit`` gives the seconds, which may change now and then, or None for never. ``tell`` is called with each
        that is due, in the channel's loop.
        """
        self._limit = limit
        self._tell = tell
        self._armed = False
        self._waiting: dict[Any, float] = {}
        """Since when each counts."""

    def __len__(self) -> int:
        """How many are watched."""
        return len(self._waiting)

    def add(self, what: Any, since: float, channel: Owner) -> None:
        """It is due once the limit has passed after ``since``."""
        self._waiting[what] = since
        if not self._armed:
            self._armed = True
            channel.in_loop(_look, self)

    def remove(self, what: Any) -> None:
        """It is not waited for any more."""
        self._waiting.pop(what, None)

    def look(self) -> None:
        """Tell of those that are due, and look again when the next one is."""
        self._armed = True  # also while it looks: who is added meanwhile is met here
        beat = pulse.current()
        limit_s = self._limit()
        # A copy, and no list: making one allocates, so finalizers may run meanwhile, and other threads.
        for what, since in self._waiting.copy().items():
            if limit_s is None:
                break
            left_s = beat.pulse.left_s(since, limit_s, time.monotonic())
            if left_s > 0.0:
                beat.arm(left_s, self.look)
                return
            if self._waiting.pop(what, None) is not None:
                try:
                    self._tell(what)
                except Exception:  # noqa: BLE001  # whatever it is, the others are watched on
                    _log.exception("could not handle the timeout of %r", what)
        self._armed = False
        if self._waiting and not self._armed:  # added by a thread that took the timer for armed
            self._armed = True
            asyncio.get_running_loop().call_soon(self.look)


def _look(alarm: Alarm) -> None:
    alarm.look()
