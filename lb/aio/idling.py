"""A channel without calls closes its connections after a while, and makes them again at the next call.

::

    awake ──no call for idle_s, none runs or waits──► asleep
      ▲                                                 │
      └──────────── a call, or "connect" ───────────────┘

While it sleeps its resolver goes on, so that it knows where to connect when it wakes up.
"""

from __future__ import annotations

import asyncio
import time
import weakref

from lb.aio.connections import Connections
from lb.aio.source import Source
from lb.aio.waiting import Waiting
from lb.core.balancer import Balancer


class Idling:
    """Whether a channel sleeps. In the channel's event loop."""

    def __init__(
        self, idle_s: float | None, balancer: Balancer, connections: Connections, source: Source, waiting: Waiting
    ) -> None:
        """``idle_s``: seconds without a call after which it falls asleep; None: it never does."""
        self._idle_s = idle_s
        self._balancer = balancer
        self._connections = connections
        self._source = source
        self._waiting = waiting
        self._timer: asyncio.TimerHandle | None = None
        self._picks = -1
        """How many picks there had been at the last look."""
        self.asleep = False

    def watch(self) -> None:
        """Look for calls after ``idle_s``."""
        if self._idle_s is not None:
            self.stop()  # a fork may have made it sleep before its time
            # Weak: a channel that was forgotten must not be kept by its timer.
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, _look, weakref.ref(self))

    def stop(self) -> None:
        """Look for calls no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Fall asleep if there was no call since the last look; else look again after ``idle_s``."""
        self._timer = None
        if self.asleep:
            return
        picks = sum(candidate.picks for candidate in self._balancer.candidates)
        if picks != self._picks or not self.fall_asleep():
            self._picks = picks
            self.watch()

    def fall_asleep(self) -> bool:
        """Close the connections until the next call, and forget them; False when a call runs or waits."""
        if self.asleep:
            return True
        if self._waiting.for_change or not self._balancer.sleep(time.monotonic()):
            return False
        self.asleep = True
        self._source.rest()
        for candidate in self._balancer.candidates:
            self._connections.close(candidate)
            candidate.handle = None
        self._waiting.wake()
        return True

    def wake_up(self) -> None:
        """Connect again, at the first call after sleeping."""
        self.asleep = False
        for candidate in self._balancer.candidates:
            if candidate.handle is None:  # one that left and came back in its sleep may be connected
                self._connections.open(candidate)
        self.watch()


def _look(reference: weakref.ref[Idling]) -> None:
    idling = reference()
    if idling is not None:
        idling.look()
