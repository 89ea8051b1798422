"""Handlers that compute take turns while the event loop is late.

grpcio takes in one call each time that the event loop goes round. A handler that computes holds up the loop, and calls
wait in grpcio meanwhile, where nobody counts or refuses them: a server that is asked for three times what it can do
answers everybody late. So while the loop is late because of such handlers, they begin one at a time. In between the
loop goes round until grpcio has handed over the calls that came meanwhile. They wait here, where the limit sees how
long they wait, or are refused.

A loop whose handlers wait for others is not late. Then all of this costs a look at a flag.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

_LATE_S = 0.002
"""A loop that is later than this on average is late. By themselves timers of asyncio are up to a millisecond late."""
_SLOW_S = 0.002
"""Handlers compute if they use more CPU than this, on average, before they first wait for something."""
_LOOK_S = 0.02
_SHARE = 0.2
"""How much the last look counts in an average."""
_QUIET = 12
"""When the loop has gone round so often and no call came, grpcio has none: it needs several rounds for each."""
_MOST = 16
"""So many calls are waited for between two turns at most."""


class Turns:
    """Says which handlers of one event loop may begin. It watches the loop while calls come."""

    __slots__ = (
        *("_began", "_came", "_cost_s", "_heard", "_late_s", "_left", "_line", "_looked", "_quiet", "_turning"),
        *("_watches", "late"),
    )

    def __init__(self) -> None:
        self.late = False
        """Whether a handler has to ask for its `turn`."""
        self._late_s = 0.0
        self._watches = False
        self._came = 0  # calls in all; then: by the last look, and by the last round
        self._looked = 0
        self._heard = 0
        self._cost_s = 0.0
        self._began = 0  # handlers whose cost is being measured
        self._line: deque[asyncio.Future[None]] = deque()
        self._turning = False
        self._quiet = 0
        self._left = 0

    def came(self) -> None:
        """A call was handed over by grpcio."""
        self._came += 1
        if not self._watches:
            self._watches = True
            self._plan(asyncio.get_running_loop())

    async def turn(self) -> None:
        """Wait until a handler may begin: at once, if those before it did not compute."""
        loop = asyncio.get_running_loop()
        if self._cost_s > _SLOW_S:
            future: asyncio.Future[None] = loop.create_future()
            self._line.append(future)
            if not self._turning:
                self._turning = True
                self._listen(loop)
            await future
        self._began += 1
        if self._began == 1:
            loop.call_soon(self._measure, time.thread_time())  # behind all that begin in this round

    def _measure(self, since: float) -> None:
        cost_s = (time.thread_time() - since) / self._began
        # It falls slowly: among handlers that compute are calls that are too late, which cost nothing.
        self._cost_s += (cost_s - self._cost_s) * (_SHARE if cost_s > self._cost_s else _SHARE / 20)
        self._began = 0

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_LOOK_S, self._look, loop, loop.time() + _LOOK_S)

    def _look(self, loop: asyncio.AbstractEventLoop, planned: float) -> None:
        self._late_s += (loop.time() - planned - self._late_s) * _SHARE
        self.late = self._late_s > _LATE_S
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
            self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._line and self._line[0].done():  # its call was cancelled
            self._line.popleft()
        if self._line:
            self._line.popleft().set_result(None)
            loop.call_soon(self._listen, loop)  # right behind it
        else:
            self._turning = False

    def __repr__(self) -> str:
        return f"<Turns {'late' if self.late else 'in time'}, {len(self._line)} waiting>"
