"""The one background thread: an asyncio event loop in which the resolvers and connections of all channels live.

It starts at the first use of a channel and ends when the last one is closed or forgotten.

What becomes of it in a forked child, `lb.shared.fork` tells.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lb.shared import fork, threads
from lb.sync import _grpcio

CLOSING = "lb: closing"
"""The name of the task that closes a channel."""
_CLOSING_S = 1.0
_JOIN_S = 2.0

T = TypeVar("T")


class LoopThread:
    """A running loop, and how many channels use it."""

    def __init__(self) -> None:
        self.users = 0
        self._lock = threads.rlock()
        self._ending = False
        self._told: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._woken = False
        """Whether the loop is about to look at that."""
        self._end_callbacks = _grpcio.hold_callbacks()
        begun = threads.real("queue", "SimpleQueue")()
        self.thread = threads.thread(lambda: self._run(begun), "lb: loop")
        self.thread.start()
        loop = begun.get()
        if isinstance(loop, Exception):
            raise loop
        self.loop: asyncio.AbstractEventLoop = loop

    def soon(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call it in the loop; False when that has ended. From any thread, also from a finalizer.

        The loop is woken once for all that it is told before it looks.
        """
        with self._lock:
            if self._ending:
                return False
            self._told.append((function, arguments))
            if not self._woken:
                self._woken = True
                self.loop.call_soon_threadsafe(self._listen)
            return True

    def _listen(self) -> None:
        """Do what the loop was told, in that order."""
        with self._lock:
            told, self._told = self._told, []
            self._woken = False
        for function, arguments in told:
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001  # as a loop does with what it calls
                self.loop.call_exception_handler({"message": f"Exception in {function!r}", "exception": error})

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T | None:
        """Its result, once the loop has it; None when the loop ends before, or it is cancelled there.

        So it is after ``timeout`` seconds, which no process beside gevent can give.
        """
        results = threads.mailbox()

        def begin() -> None:
            self.loop.create_task(coroutine).add_done_callback(results.put)

        if not self.soon(begin):
            coroutine.close()
            return None
        try:
            task = results.get() if timeout is None else results.get(timeout=timeout)
        except queue.Empty:
            return None
        return None if task.cancelled() else task.result()

    def here(self) -> bool:
        """Whether the caller is in the loop's thread."""
        return threads.ident() == self._ident

    def ended(self, within_s: float) -> bool:
        """Whether it ends, and does so in that time."""
        if self._ending:
            self.thread.join(within_s)
        return self._ending and not self.thread.is_alive()

    def stop(self) -> None:
        """End it, after what it was told to do until now."""
        self.soon(self.loop.stop)

    def _run(self, begun: Any) -> None:
        self._ident = threads.ident()
        try:
            loop = threads.new_event_loop()
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to who starts the thread
            begun.put(error)
            return
        loop.set_exception_handler(_on_exception)
        asyncio.set_event_loop(loop)
        begun.put(loop)
        try:
            loop.run_forever()
            with self._lock:
                self._ending = True
            loop.run_until_complete(_drain())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self._end_callbacks()
            threads.leave()


async def _drain() -> None:
    """Let what was told last begin, let channels close, and end the rest."""
    this = asyncio.current_task()
    await asyncio.sleep(0)
    closing = [task for task in asyncio.all_tasks() if task.get_name() == CLOSING]
    if closing:
        await asyncio.wait(closing, timeout=_CLOSING_S)
    while left := asyncio.all_tasks() - {this}:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


# A plain lock would do, were it not for finalizers: they may run while this thread holds it.
_lock = threads.rlock()
_current: LoopThread | None = None


def acquire() -> LoopThread:
    """The process's loop, started if there is none. Each user gives it back by `release`.

    Raises ``RuntimeError`` in a forked child in which grpcio cannot work.
    """
    global _current
    if fork.lost():
        raise RuntimeError(fork.FORKED)
    with _lock:
        if _current is None:
            _current = LoopThread()
        _current.users += 1
        return _current


def release(used: LoopThread) -> None:
    """One user less; the last one ends the thread."""
    global _current
    with _lock:
        used.users -= 1
        if used.users:
            return
        if _current is used:
            _current = None
    used.stop()


def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say nothing of what is no trouble: all loops of a process read one socket of grpcio's.

    The loop that comes second finds it empty, and one may find an event of a loop that is closed.
    """
    if isinstance(context.get("exception"), (BlockingIOError, RuntimeError)) and "_handle_events" in repr(
        context.get("handle")
    ):
        return
    loop.default_exception_handler(context)


def _forked() -> None:
    global _current, _lock
    _lock = threads.rlock()
    _current = None


def _at_exit() -> None:
    used = _current
    if used is not None:
        used.stop()
        used.thread.join(_JOIN_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
atexit.register(_at_exit)
