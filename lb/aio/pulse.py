"""Drives `lb.core.pulse` in an event loop, and the time-outs that count the time for which the loop ran."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from lb.core.pulse import BEAT_S, Pulse

_COVER_S = 15.0
"""How long the loop beats after something began."""
_JUDGED_S = 10.0
"""Attempts are judged by the time they took; whatever lasts longer than this is long without what was held of it."""
_LOOK_BEFORE_S = 1.0


class LoopPulse:
    """Beats in one event loop, for as long as somebody needs it."""

    __slots__ = ("_beating", "_until", "pulse")

    def __init__(self) -> None:
        self.pulse = Pulse()
        self._beating = False
        self._until = 0.0

    def keep(self) -> None:
        """Something began that may be judged by its time. In the loop; see ``Pulse.renew_at``."""
        now = time.monotonic()
        self._beat_until(now + _COVER_S, now)
        self.pulse.renew_at = self._until - _JUDGED_S

    def arm(self, left_s: float, look: Callable[[], object]) -> asyncio.TimerHandle:
        """``look`` is called after ``left_s`` seconds, or sooner, to ask ``left_s`` of the pulse again."""
        loop = asyncio.get_running_loop()
        if left_s > 2 * _LOOK_BEFORE_S:  # what held the loop long before a time-out does not matter to it
            return loop.call_later(left_s - _LOOK_BEFORE_S, look)
        now = time.monotonic()
        self._beat_until(now + left_s, now)
        return loop.call_later(left_s, look)

    def _beat_until(self, until: float, now: float) -> None:
        if until > self._until:
            self._until = until
        if not self._beating:
            self._beating = True
            self.pulse.beat(now)
            asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        self._beating = now < self._until
        self.pulse.beat(now, last=not self._beating)
        if self._beating:
            asyncio.get_running_loop().call_later(BEAT_S, self._beat)


class Timer:
    """Calls a function once, when the loop has run for ``limit_s`` since ``since`` (now unless given)."""

    __slots__ = ("_call", "_handle", "_limit_s", "_pulse", "_since")

    def __init__(self, limit_s: float, call: Callable[[], object], since: float | None = None) -> None:
        self._pulse = current()
        self._limit_s = limit_s
        self._call = call
        now = time.monotonic()
        self._since = now if since is None else since
        self._handle: asyncio.TimerHandle | None = self._pulse.arm(max(0.0, self._since + limit_s - now), self._look)

    def cancel(self) -> None:
        """It is not called any more."""
        if self._handle is not None:
            self._handle.cancel()

    def _look(self) -> None:
        self._handle = None  # a handle that has run still holds us: no cycle stays
        left_s = self._pulse.pulse.left_s(self._since, self._limit_s, time.monotonic())
        if left_s > 0.0:
            self._handle = self._pulse.arm(left_s, self._look)
        else:
            self._call()


@asynccontextmanager
async def timeout(limit_s: float) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, but only the time counts for which the loop ran. Raises ``TimeoutError``."""
    async with asyncio.timeout(None) as limit:
        timer = Timer(limit_s, lambda: limit.reschedule(0.0))
        try:
            yield
        finally:
            timer.cancel()


def current() -> LoopPulse:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    found = _pulses.get(loop)
    if found is None:
        found = _pulses[loop] = LoopPulse()
    return found


_pulses: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPulse] = WeakKeyDictionary()
