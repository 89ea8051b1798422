"""Calls that were made, and whose task has not taken its first step.

A task that is cancelled before its first step never runs, and so never tells its call. Neither does the task of a
call whose request cannot be serialized. grpcio leaves such calls to the garbage collector. Ours have picked an
endpoint by then and hold a place there, so they are looked for and given up.
"""

from __future__ import annotations

import asyncio
import weakref

from lb.aio.calls import LogicalCall

_SWEEP_EVERY_S = 0.1


class Unbegun:
    """The calls of one channel that no task has begun to carry out. In the channel's event loop."""

    def __init__(self) -> None:
        self.calls: set[LogicalCall] = set()
        """A call's task takes the call out in its first step."""
        self._seen: set[LogicalCall] = set()
        """Those that were there at the last sweep."""
        self._sweeping = False

    def add(self, call: LogicalCall) -> None:
        """It was made just now."""
        self.calls.add(call)
        if not self._sweeping:
            self._sweeping = True
            # Weak: a channel that was forgotten must not be kept by its timer.
            asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, _sweep, weakref.ref(self))

    def sweep(self) -> bool:
        """Give up the calls that were there at the last sweep, too. False when no call is left to look at.

        The loop has turned since then, so a task that will take its first step has done it.
        """
        for call in self._seen & self.calls:
            self.calls.discard(call)
            call.cancel("The call was given up before it began.")
        self._seen = self.calls.copy()
        self._sweeping = bool(self._seen)
        return self._sweeping


def _sweep(reference: weakref.ref[Unbegun]) -> None:
    unbegun = reference()
    if unbegun is not None and unbegun.sweep():
        asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, _sweep, reference)
