"""Handlers take turns while the event loop is late.

grpcio takes in one call each time that the event loop goes round. A handler that computes holds up the loop, and calls
wait in grpcio meanwhile, where nobody counts or refuses them: a server that is asked for three times what it can do
answers everybody late. So while the loop is late, handlers begin a few at a time, for about `_TURN_S` together. Then
the loop goes round until grpcio has handed over the calls that came meanwhile. They wait here, where the limit sees how
long they wait, or are refused.

A loop whose handlers wait for others is not late. Then all of this costs a look at a flag.
"""

from __future__ import annotations

import asyncio
from collections import deque

_LATE_S = 0.002
"""A loop that is later than this on average is late. By themselves timers of asyncio are up to a millisecond late."""
_LOOK_S = 0.02
_SHARE = 0.2
"""How much the last look counts in the average."""
_TURN_S = 0.002
_QUIET = 8
"""When the loop has gone round so often and no call came, grpcio has none: it needs a few rounds for each."""
_MOST = 64
"""At most so many calls are waited for between two turns, and so many handlers begin in one."""


class Turns:
    """Says which handlers of one event loop may begin. It watches the loop while calls come."""

    __slots__ = (
        "_average_s",
        "_came",
        "_heard",
        "_left",
        "_line",
        "_looked",
        "_quiet",
        "_several",
        "_turning",
        "_watches",
        "late",
    )

    def __init__(self) -> None:
        self.late = False
        """Whether a handler has to wait for its `turn`."""
        self._average_s = 0.0
        self._watches = False
        self._came = 0  # calls in all; then: by the last look, and by the last round
        self._looked = 0
        self._heard = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._turning = False
        self._quiet = 0
        self._left = 0
        self._several = 1

    def came(self) -> None:
        """A call was handed over by grpcio."""
        self._came += 1
        if not self._watches:
            self._watches = True
            self._plan(asyncio.get_running_loop())

    async def turn(self) -> None:
        """Wait until a handler may begin."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._line.append(future)
        if not self._turning:
            self._turning = True
            self._listen(loop)
        await future

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_LOOK_S, self._look, loop, loop.time() + _LOOK_S)

    def _look(self, loop: asyncio.AbstractEventLoop, planned: float) -> None:
        self._average_s += (loop.time() - planned - self._average_s) * _SHARE
        self.late = self._average_s > _LATE_S
        self._watches = self.late or self._came != self._looked
        self._looked = self._came
        if self._watches:
            self._plan(loop)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go round until grpcio has handed over what it has."""
        self._heard, self._quiet, self._left = self._came, 0, _MOST
        loop.call_soon(self._round, loop)

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        heard = self._came - self._heard
        if heard and self._left > 0:
            self._heard, self._quiet, self._left = self._came, 0, self._left - heard
        else:
            self._quiet += 1
        if self._quiet < _QUIET:
            loop.call_soon(self._round, loop)
        else:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        began = 0
        while self._line and began < self._several:
            if not self._line[0].done():  # else its call was cancelled
                self._line[0].set_result(None)
                began += 1
            self._line.popleft()
        loop.call_soon(self._begun, loop, began, loop.time())  # they run right before it

    def _begun(self, loop: asyncio.AbstractEventLoop, began: int, since: float) -> None:
        took_s = max(1e-6, loop.time() - since)
        self._several = max(1, min(_MOST, 2 * self._several, int(began * _TURN_S / took_s)))
        self._turning = bool(self._line)
        if self._turning:
            self._listen(loop)

    def __repr__(self) -> str:
        return f"<Turns {'late' if self.late else 'in time'}, {len(self._line)} waiting>"
