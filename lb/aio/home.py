"""The event loop that a channel belongs to, from its first use on."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lb.aio import _grpcio
from lb.shared import fork

_ANSWERS_S = 0.5


class Home:
    """One channel's loop, once it has one."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> bool:
        """Belong to the running loop. False when that is so already.

        Raises ``UsageError`` in another loop than the one of the first use, and in a process that was forked from one
        where grpcio's asyncio layer was at work.
        """
        loop = get_running_loop()
        if self.loop is loop:
            return False
        if self.loop is not None:
            raise self._elsewhere()
        self.check_fork()
        self.loop = loop
        return True

    def check(self) -> None:
        """Raise ``UsageError`` in another loop than the channel's, as long as that exists."""
        loop = self.loop
        if loop is not None and loop is not get_running_loop() and not loop.is_closed():
            raise self._elsewhere()

    def check_fork(self) -> None:
        """Raise ``UsageError`` where grpcio's asyncio layer does not work because of a fork."""
        if fork.lost():
            raise _grpcio.UsageError(f"channel {self._target}: {fork.FORKED}")

    def _elsewhere(self) -> Exception:
        error: Exception = _grpcio.UsageError(
            f"channel {self._target} was first used in another event loop, and works only there; make one channel per"
            " event loop"
        )
        return error

    def ask(self, question: Callable[[], bool]) -> bool:
        """What it answers in the loop, to a thread that waits; at once where that is the loop's or the loop is closed.

        False when the loop does not answer in time: it may wait for this very thread.
        """
        loop = self.loop
        if loop is None:
            return False
        with contextlib.suppress(RuntimeError):
            if get_running_loop() is loop:
                return question()
        if not loop.is_running():
            return question()
        answer: Future[bool] = Future()
        with contextlib.suppress(RuntimeError, TimeoutError):  # it was closed just now, or is busy
            loop.call_soon_threadsafe(lambda: answer.set_result(question()))
            return answer.result(_ANSWERS_S)
        return False

    def in_loop(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call a function in the loop, if there is one; at once when called there. From any thread."""
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        try:
            here = get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            function(argument)
        else:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(function, argument)
