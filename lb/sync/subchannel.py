"""The connection to one endpoint, seen from two sides: the loop watches it, calling threads use it.

::

    the loop ──► Subchannel ──► cygrpc.AioChannel ─┐
                                                   ├──► one connection of core's
    a thread ──► ThreadSide ──► cygrpc.Channel ────┘

Each side has a grpcio channel of its own kind. Both have the same target and arguments, so core gives them one
connection. With TLS each has one of its own: grpcio makes new core credentials for every channel, and core compares
them by identity.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import grpc

from lb.aio.subchannel import Report, Subchannel
from lb.core.candidate import Candidate
from lb.core.connection import Pace
from lb.shared import threads
from lb.sync import _grpcio

WATCH_S = 1.0
"""Seconds that a closed connection's watch has to end by itself. It does so once core has no call of it left."""

Options = tuple[tuple[str, Any], ...]


class ThreadSide:
    """The channel for calls that wait in their own thread. From any thread, but for `watching`."""

    def __init__(self) -> None:
        self._lock = threads.lock()
        self._arguments: tuple[str, Options, grpc.ChannelCredentials | None, grpc.Compression | None] | None = None
        self._channel: Any = None
        self._registered: dict[bytes, int] = {}
        self._left_behind: Any = None
        self._closed = False

    def watching(
        self,
        address: str,
        options: Options,
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
    ) -> grpc.aio.Channel:
        """The loop's channel, with which this side shares the connection from now on. In the loop.

        Calls may be about to begin on the channel before: that is closed when it has been replaced once more.
        """
        if (address, options, credentials, compression) == self._arguments:  # after a rest
            return _grpcio.watching_channel(*self._arguments)
        with self._lock:
            old, self._left_behind = self._left_behind, self._channel
            self._channel = None
            self._registered = {}
            self._arguments = (address, options, credentials, compression)
            made = _grpcio.watching_channel(*self._arguments)
        if old is not None:
            old.close(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED)
        return made

    def channel(self) -> Any:
        """The ``cygrpc.Channel``, made at the first call. Raises ``ValueError`` when it is closed, as grpcio does."""
        channel = self._channel
        if channel is None:
            with self._lock:
                if self._closed or self._arguments is None:
                    raise ValueError(_grpcio.CLOSED)
                channel = self._channel
                if channel is None:
                    channel = self._channel = _grpcio.blocking_channel(*self._arguments)
        return channel

    def registered(self, method: bytes) -> int:
        """The handle of a registered method on `channel`."""
        handle = self._registered.get(method)
        if handle is None:
            with self._lock:
                if self._channel is None:
                    raise ValueError(_grpcio.CLOSED)
                handle = self._registered[method] = int(self._channel.get_registered_call_handle(method))
        return handle

    def connected(self) -> bool | None:
        """Whether a connection of its own stands at this moment; None: it shares the loop's, or has made none."""
        channel = self._channel
        if channel is None or self._arguments is None or self._arguments[2] is None:
            return None
        return bool(channel.check_connectivity_state(False) == _grpcio.READY)

    def close(self) -> None:
        """Close it; calls that run in threads end with CANCELLED."""
        with self._lock:
            self._closed = True
            channels, self._channel = (self._channel, self._left_behind), None
        for channel in channels:
            if channel is not None:
                channel.close(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED)


class SharedSubchannel:
    """One endpoint's connection. Made and closed in the loop; `blocking` and `registered` are for any thread."""

    def __init__(
        self,
        candidate: Candidate,
        options: Options,
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
        report: Report,
        pace: Pace,
        health: str | None = None,
    ) -> None:
        side = self._side = ThreadSide()
        self._watch = partial(
            Subchannel, candidate, options, credentials, compression, report, pace, health, side.watching
        )
        self._watched: Subchannel = self._watch()
        self._resting = False
        # A call asks for these: no frame of ours in between.
        self.call = self._watched.call
        self.doubt = self._watched.doubt
        self.blocking = side.channel
        self.registered = side.registered

    def connected(self, *, blocking: bool = False) -> bool:
        """Whether the connection stands at this moment. With TLS `blocking` has one of its own."""
        found = self._side.connected() if blocking else None
        return self._watched.connected() if found is None else found

    def close(self) -> asyncio.Task[None] | None:
        """Close both sides. Returns what still has to end in the loop."""
        self._side.close()
        self._resting = False
        return self._watched.end(WATCH_S)

    def rest(self) -> asyncio.Task[None] | None:
        """Watch the connection no more, and leave it to the blocking calls that run, until `go_on`. In the loop."""
        self._resting = True
        self.call = self._call
        return self._watched.end(WATCH_S)

    def go_on(self) -> None:
        """Watch it again. In the loop."""
        if self._resting:
            self._resting = False
            self._watched = self._watch()
            self.call = self._watched.call
            self.doubt = self._watched.doubt

    def _call(self, *arguments: Any, **named: Any) -> Any:
        """A call in the loop while it rests."""
        self.go_on()
        return self._watched.call(*arguments, **named)
