"""The longest time that a server gives a handler: where its client set no deadline, or a later one.

One timer serves all calls, since all have the same time: the first one in is the first one due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from lb.shared import scopes

T = TypeVar("T")


class Entry:
    """One call whose handler has so much time."""

    __slots__ = ("due", "over", "task", "writing")

    def __init__(self, task: asyncio.Task[Any], due: float) -> None:
        self.task = task
        self.due = due
        self.over = False
        """Its time is over."""
        self.writing = False
        """It waits for its client to take a response. Cancelled meanwhile, it would end without a status."""


class Overtime:
    """Cancels handlers that take longer than ``timeout_s``. Lives in one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._entries: dict[Entry, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Entry:
        """The handler of the running call begins. Its calls through channels of `lb` inherit its deadline."""
        task = asyncio.current_task()
        assert task is not None
        scopes.enter(scopes.Bound(self._timeout_s, scopes.current(), task))
        entry = Entry(task, time.monotonic() + self._timeout_s)
        self._entries[entry] = None
        if self._timer is None:
            self._timer = task.get_loop().call_later(self._timeout_s, self._look)
        return entry

    def end(self, entry: Entry) -> None:
        """It has ended."""
        self._entries.pop(entry, None)

    async def answer(self, entry: Entry, context: Any, behavior: Awaitable[T]) -> T:
        """What a handler returns, or the status of a call whose time is over."""
        try:
            return await behavior
        except asyncio.CancelledError:
            if entry.over:
                await self.abort(entry, context)
            raise
        finally:
            self.end(entry)

    async def abort(self, entry: Entry, context: Any) -> None:
        """Tell the client that the time is over."""
        entry.task.uncancel()
        await context.abort(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the handler took longer than the {self._timeout_s:g} s it may take here",
        )

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for entry in list(self._entries):
            if entry.due > now:
                self._timer = entry.task.get_loop().call_later(entry.due - now, self._look)
                return
            del self._entries[entry]
            entry.over = True
            if not entry.writing:
                entry.task.cancel()

    def __repr__(self) -> str:
        return f"<Overtime {len(self._entries)} calls, {self._timeout_s:g} s>"
