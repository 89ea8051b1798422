"""How calls wait in a channel: for a change, or in line for a place.

- A call that finds no endpoint waits for a *change* of the endpoints or their connections. Each change wakes all
  such calls.
- A call that finds every endpoint at its concurrency limit waits *in line* for a place. First come, first served:
  each free place wakes one call.

Everything here belongs to the channel's event loop.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import time
import weakref

from lb.aio import pulse

_ASKS_EVERY_S = 1.0


class Line:
    """The calls that wait for a place below the concurrency limits, by the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, asyncio.Future[bool]]] = []
        """Tickets, in order, and what wakes their calls."""
        self._tickets = itertools.count(1)
        self._timed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def woken(self) -> bool:
        """Whether the first call was told of a free place, and has not gone on yet."""
        return bool(self._waiting) and self._waiting[0][1].done()

    def next(self) -> None:
        """A place may be free: wake the first call that was not woken yet."""
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(True)
                return

    async def place(self, since: float, line_s: float, deadline: float | None, ticket: int | None) -> int | None:
        """Wait for a place. Returns a ticket when there may be one, None when the wait is over.

        It is over at ``deadline``, or once the loop has run for ``line_s`` seconds after ``since``. Both instants are
        of the monotonic clock. ``ticket`` is what this returned before, if the place was gone when the call asked
        for it: the call then keeps its place in line.
        """
        if ticket is None:
            ticket = next(self._tickets)
            if not self._waiting:
                return ticket  # a place may have become free while the call was on its way here
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timers: list[pulse.Timer | asyncio.TimerHandle] = [pulse.Timer(line_s, lambda: _resolve(waiter, False), since)]
        if deadline is not None:
            timers.append(loop.call_later(max(0.0, deadline - time.monotonic()), _resolve, waiter, False))
        bisect.insort(self._waiting, (ticket, waiter))
        self._ask_later()
        free = False
        try:
            free = await waiter
        finally:
            for timer in timers:
                timer.cancel()
            self._waiting.remove((ticket, waiter))
            if not free and waiter.done() and not waiter.cancelled() and waiter.result():
                self.next()  # it was woken, and cancelled before it could go on
        return ticket if free else None

    def _ask_later(self) -> None:
        """Wake the first call now and then: a learnt limit grows, and a breaker admits again, by time alone."""
        if not self._timed:
            self._timed = True
            # Weak: a channel that was forgotten must not be kept by its timer.
            asyncio.get_running_loop().call_later(_ASKS_EVERY_S, _ask, weakref.ref(self))

    def _ask(self) -> None:
        self._timed = False
        if self._waiting:
            self.next()
            self._ask_later()


class Waiting:
    """All calls that wait in one channel."""

    def __init__(self) -> None:
        self.line = Line()
        self._for_change: set[asyncio.Future[bool]] = set()

    @property
    def for_change(self) -> int:
        """How many wait for a change."""
        return len(self._for_change)

    async def change(self, deadline: float | None) -> bool:
        """Wait for a change; False when ``deadline`` (an instant of the monotonic clock) came first."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), _resolve, waiter, False)
        self._for_change.add(waiter)
        try:
            return await waiter
        finally:
            self._for_change.discard(waiter)
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Something changed: wake all who wait for that, and the first in line."""
        for waiter in self._for_change:
            _resolve(waiter, True)
        self.line.next()


def _ask(reference: weakref.ref[Line]) -> None:
    line = reference()
    if line is not None:
        line._ask()


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
