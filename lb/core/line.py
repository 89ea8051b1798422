"""The channel's line: for calls that found every endpoint at its concurrency limit.

It counts who waits, and says how many may. In which order they go on is the driver's business (`lb.aio.waiting`).
"""

from __future__ import annotations

from math import inf

from lb.core.actions import Queued
from lb.core.concurrency import ConcurrencyLimit
from lb.core.unpicked import Unpicked


class Line:
    """How many calls of one channel wait for a place. Not thread-safe; metrics keep it when the channel is gone."""

    __slots__ = ("_limit", "_target", "full", "queued", "refused", "waiting")

    def __init__(self, target: str, limit: ConcurrencyLimit | None) -> None:
        """Without a limit of the user's own, only what was learnt from servers can fill the endpoints.

        Then the line has no bounds: core queues without any, too.
        """
        self._target = target
        self._limit = limit
        self.full = Unpicked(f"{target}: every endpoint is at its concurrency limit", wait=True, full=True)
        """What a pick answers that finds no place."""
        self.queued = Queued(self.full.message, inf if limit is None else limit.queue_s)
        """What a call in line has to do."""
        self.waiting = 0
        """How many calls stand in line: they say so by `join` and `leave`, and all others look before they pick."""
        self.refused = 0
        """How many calls found no place, in line or in time."""

    @property
    def limited(self) -> bool:
        """Whether the user has set a limit."""
        return self._limit is not None

    def join(self) -> str:
        """One more call stands in line; unless that is full: then the call is refused, for the reason returned."""
        if self._limit is not None and self.waiting >= self._limit.queue:
            self.refused += 1
            return f"{self.full.message}, and the queue is full ({self.waiting} waiting)"
        self.waiting += 1
        return ""

    def leave(self) -> None:
        """One of the calls in line waits no more."""
        self.waiting -= 1

    def refuse(self) -> str:
        """A call that stood in line for as long as it may, and has left, is refused for the reason returned."""
        self.refused += 1
        return (
            f"{self._target}: the call waited {self.queued.line_s:g} s (queue_s), "
            "and every endpoint was still at its concurrency limit"
        )

    def __repr__(self) -> str:
        return f"<Line {self.waiting} waiting, {self.refused} refused>"
