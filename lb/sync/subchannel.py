"""The connection to one endpoint, seen from two sides: the loop watches it, calling threads use it.

Each side has a grpcio channel of its own kind. Both have the same target and arguments, so core
gives them one connection (with TLS each has one of its own: grpcio makes core's credentials anew for
every channel, and core compares these by identity).
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from lb.aio.subchannel import Subchannel as AioSubchannel
from lb.shared import threads
from lb.sync import _grpcio

WATCH_S = 1.0
"""Seconds that a closed connection's watch has to end by itself. It does so once core has no call of it left."""


class Subchannel(AioSubchannel):
    """One endpoint's connection. Made and closed in the loop; `blocking` is for any thread."""

    def __init__(self, *arguments: Any) -> None:
        self._lock = threads.lock()
        self._blocking: Any = None
        self._registered: dict[bytes, int] = {}
        self._left_behind: Any = None
        super().__init__(*arguments)

    def _connect(
        self,
        address: str,
        options: tuple[tuple[str, Any], ...],
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
    ) -> grpc.aio.Channel:
        self._arguments = (address, options, credentials, compression)
        return _grpcio.watching_channel(*self._arguments)

    def blocking(self) -> Any:
        """A ``cygrpc.Channel`` for calls that wait in their own thread, made at the first of them.

        Raises ``ValueError`` when the connection is closed, as grpcio does.
        """
        channel = self._blocking
        if channel is None:
            with self._lock:
                if self._closed:
                    raise ValueError(_grpcio.CLOSED)
                channel = self._blocking
                if channel is None:
                    channel = self._blocking = _grpcio.blocking_channel(*self._arguments)
        return channel

    def _connect_alone(self) -> None:
        """See the class above. Calls may be about to begin on the old connection: it is closed when the next one is."""
        with self._lock:
            old, self._left_behind = self._left_behind, self._blocking
            self._blocking = None
            self._registered = {}
            super()._connect_alone()
        if old is not None:
            old.close(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED)

    def connected(self, *, blocking: bool = False) -> bool:
        """Whether the connection stands at this moment; with TLS `blocking` has one of its own."""
        channel = self._blocking
        if blocking and self._arguments[2] is not None and channel is not None:
            return bool(channel.check_connectivity_state(False) == _grpcio.READY)
        return super().connected()

    def registered(self, method: bytes) -> int:
        """The handle of a registered method on `blocking`."""
        handle = self._registered.get(method)
        if handle is None:
            with self._lock:
                if self._blocking is None:
                    raise ValueError(_grpcio.CLOSED)
                handle = self._registered[method] = int(self._blocking.get_registered_call_handle(method))
        return handle

    def close(self) -> asyncio.Task[None] | None:
        """Close both sides; calls that run in threads end with CANCELLED. Returns what still has to end."""
        with self._lock:
            if self._closed:
                return None
            self._closed = True
            channels, self._blocking = (self._blocking, self._left_behind), None
        self._over.set()
        if self._asking is not None:
            self._asking.cancel()
        for channel in channels:
            if channel is not None:
                channel.close(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED)
        watched = self._watch is not None
        # Closing ends the watch. Were it cancelled instead, core would answer it later, maybe to a closed loop.
        if not watched:
            self._lower.close()
        self._task.add_done_callback(_forget)
        return self._task.get_loop().create_task(self._ended(close=watched), name="lb: end of a watch")

    async def _ended(self, *, close: bool) -> None:
        if close:  # a call of the health watch would keep the connection
            await self._end_watch()
            self._lower.close()
        await asyncio.wait((self._task,), timeout=WATCH_S)
        self._task.cancel()


def _forget(task: asyncio.Task[None]) -> None:
    """It may well end by an error: it finds its channel closed."""
    if not task.cancelled():
        task.exception()
