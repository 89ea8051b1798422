"""Reasons for a process to end: a signal, or the end of the supervisor that started it.

A supervisor gives each child the reading end of a pipe and keeps the writing end. It never writes. When it ends,
however it dies, the kernel closes the writing end, and every child reads end-of-file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

SUPERVISOR_GONE = "the supervisor is gone"


class NotOpenError(ValueError):
    """A supervisor's descriptor is not open. The message has its number."""


class Reasons:
    """The reasons heard so far, the first one first: a signal's name, or `SUPERVISOR_GONE`."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()

    def add(self, reason: str) -> None:
        """One more."""
        self.heard.append(reason)
        self._news.set()

    async def at_least(self, number: int) -> None:
        """Return once there are ``number`` of them."""
        while len(self.heard) < number:
            self._news.clear()
            await self._news.wait()

    async def do_until(self, number: int, work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work`` until there are ``number`` reasons, and cancel it then. Whether it was done; raises its error."""
        working = asyncio.create_task(work)
        enough = asyncio.create_task(self.at_least(number))
        try:
            await asyncio.wait({working, enough}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            for task in (working, enough):
                task.cancel()
            await asyncio.gather(working, enough, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<Reasons {', '.join(self.heard) or 'none'}>"


@contextlib.contextmanager
def listening(parent_fd: int | None, signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Reasons]:
    """Hear the signals, and the end of the supervisor at the other end of ``parent_fd``. In a running loop.

    Raises:
        NotOpenError: ``parent_fd`` is not an open descriptor.
        RuntimeError: there are signals, and this is not the main thread.
    """
    loop = asyncio.get_running_loop()
    reasons = Reasons()

    def parent(fd: int) -> None:
        if not os.read(fd, 1):  # end-of-file
            loop.remove_reader(fd)
            reasons.add(SUPERVISOR_GONE)

    try:
        if parent_fd is not None:
            try:
                loop.add_reader(parent_fd, parent, parent_fd)
            except (OSError, ValueError):
                raise NotOpenError(f"{parent_fd}: is not an open descriptor") from None
        try:
            for number in signals:
                loop.add_signal_handler(number, reasons.add, number.name)
        except (RuntimeError, ValueError) as error:
            if threading.current_thread() is threading.main_thread():
                raise
            raise RuntimeError("only the main thread hears signals; elsewhere pass signals=()") from error
        yield reasons
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if parent_fd is not None:
            loop.remove_reader(parent_fd)
