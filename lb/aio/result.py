"""What a caller learns of a call: the headers, once an attempt's are shown, and the status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lb.aio.protocols import Metadata

NO_METADATA: Metadata = ()


class Result:
    """Both, and who waits for them."""

    __slots__ = ("_callbacks", "_headers_waiters", "_status_waiters", "headers", "status")

    def __init__(self) -> None:
        self.status: Any = None
        """The final status; None as long as there is none."""
        self.headers: Metadata | None = None
        self._status_waiters: list[asyncio.Future[None]] = []
        self._headers_waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once there is a status; at once if there is one."""
        if self.status is not None:
            callback()
        else:
            self._callbacks.append(callback)

    async def status_comes(self) -> None:
        """Wait for the status."""
        if self.status is None:
            await _woken(self._status_waiters)

    async def headers_may_come(self) -> None:
        """Wait until there are headers, or an attempt begins that may bring them."""
        await _woken(self._headers_waiters)

    def attempt_begins(self) -> None:
        """Those who wait for headers wait for this attempt's from now on."""
        _wake(self._headers_waiters)

    def show(self, headers: Metadata | None) -> None:
        """The caller sees these headers; the first ones count."""
        if self.headers is None:
            self.headers = headers or NO_METADATA
            _wake(self._headers_waiters)

    def settle(self, status: Any, headers: Metadata | None) -> None:
        """The call has ended."""
        self.status = status
        self.show(headers)
        _wake(self._status_waiters)

    def call_back(self) -> None:
        """Tell those who asked for it, in the order in which they asked."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


async def _woken(waiters: list[asyncio.Future[None]]) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    await waiter


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.pop(0)
        if not waiter.done():
            waiter.set_result(None)
