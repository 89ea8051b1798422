"""The requests of a stream: what was written, and how much of it the current attempt has.

Writers append and then help to send what the attempt lacks, one at a time and in order, so
flow control reaches them. A write is done once an attempt took its message, whatever becomes of
that attempt. Between two attempts writers wait. When an attempt fails, the next one starts from
the first message; that needs all of them, so they are kept until the call is committed, or until
they are more than `REPLAY_LIMIT` bytes (gRFC A6).
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable

from lb.aio import _grpcio
from lb.aio.protocols import LowerCall

REPLAY_LIMIT = 1 << 20
"""Bytes of a request stream that are kept for another attempt (core's per-RPC buffer has this size)."""

# How long a failed write waits for the status that explains it. It may never come: core tells it
# only after the messages before it were read, and the reader may be the one who writes.
_STATUS_S = 1.0


class Outbox:
    """One call's requests. It may be closed before the call's own task has begun."""

    __slots__ = (
        "_at",
        "_attached",
        "_bytes",
        "_close_sent",
        "_closed",
        "_dropped",
        "_flushing",
        "_kept",
        "_lock",
        "_lower",
        "_next",
        "_observer",
        "_on_close",
        "_over",
        "_taken",
        "_written",
        "replayable",
    )

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._bytes = 0
        self._at = 0
        """How many of the kept messages the attempt has."""
        self._dropped = 0
        """How many came before the kept ones."""
        self._written = 0
        self._taken = 0
        """How many of the written messages any attempt took."""
        self._closed = False
        self._close_sent = False
        self._next: LowerCall | None = None
        self._lower: LowerCall | None = None
        self._observer: weakref.WeakMethod[Callable[[], None]] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._attached = asyncio.Event()
        self._over = False
        self._on_close: Callable[[LowerCall], None] | None = None
        self.replayable = True
        """Whether all that was written is still here."""

    @property
    def idle(self) -> bool:
        """Whether the attempt has all that was written, and needs nothing of it kept."""
        return self._lower is not None and not (self.replayable or self._kept or self._closed or self._lock.locked())

    def observe(self, metadata_sent: Callable[[], None], on_close: Callable[[LowerCall], None] | None = None) -> None:
        """``metadata_sent`` tells grpcio's upper layer that it may write.

        ``on_close`` is told each attempt to which all requests were sent.
        """
        self._on_close = on_close
        # A bound method of the upper call, which holds us: weak, so that no cycle stays behind.
        self._observer = weakref.WeakMethod(metadata_sent)

    def attach(self, lower: LowerCall) -> None:
        """Send to this attempt, as soon as its metadata went out."""
        self._next = lower
        self._lower = None
        self._at = 0
        self._close_sent = False

    def metadata_sent(self) -> None:
        """The attempt takes messages now (or has failed: its status tells)."""
        if self._next is None or self._next.done():
            return
        self._lower = self._next
        self._attached.set()
        self._tell()
        if self._kept or self._closed:
            self._flushing = asyncio.get_running_loop().create_task(self._flush_again())

    def detach(self) -> None:
        """The attempt is over; writers wait for the next one."""
        self._lower = self._next = None
        if not self._over:
            self._attached.clear()

    def settled(self) -> None:
        """The call is over: writers may see that."""
        self._over = True
        self._on_close = None
        self.detach()
        if self._flushing is not None:
            self._flushing.cancel()
        self._kept.clear()
        self._attached.set()
        self._tell()

    def forget(self) -> None:
        """What was sent need not be kept any longer: the call is committed, or it is too much."""
        self.replayable = False
        self._dropped += self._at
        del self._kept[: self._at]
        self._at = 0

    async def send(self, message: bytes) -> None:
        """Write one message; returns when flow control lets the next one in.

        Raises ``InternalError`` when the call ended before an attempt took the message; the upper layer
        raises the call's status then.
        """
        message = message or b""  # None: the serializer raised; grpcio logs that and sends an empty message
        lower, lock = self._lower, self._lock
        if lower is None or self.replayable or self._kept or lock.locked():
            self._kept.append(message)
            self._bytes += len(message)
            self._written += 1
            await self._deliver(self._written)
            return
        # Nothing is kept any longer, and nobody is before it: most messages of a long stream go this way.
        await lock.acquire()
        try:
            await lower.send_serialized_message(message)
        except _grpcio.InternalError as error:
            await self._ended(lower, error)
            await self._attached.wait()  # there is no other attempt: the call is about to end
            raise
        finally:
            lock.release()

    async def half_close(self) -> None:
        """Say that no message follows. A call that has ended, or ends meanwhile, need not hear it."""
        self._closed = True
        with contextlib.suppress(_grpcio.InternalError):
            while not self._close_sent and not self._over:
                await self._attached.wait()
                await self._flush()

    async def _deliver(self, written: int) -> None:
        """Return once so many of the written messages were taken."""
        attached = self._attached
        while self._taken < written:
            if not attached.is_set():
                await attached.wait()
            if self._over:
                raise _grpcio.InternalError("the call is over")
            await self._flush()

    async def _flush(self) -> None:
        async with self._lock:
            lower = self._lower
            try:
                while lower is not None and lower is self._lower and self._at < len(self._kept):
                    number = self._dropped + self._at + 1
                    await lower.send_serialized_message(self._kept[self._at])
                    if number > self._taken:
                        self._taken = number
                    if lower is not self._lower:
                        return
                    self._at += 1
                    if self._bytes > REPLAY_LIMIT or not self.replayable:
                        self.forget()
                if self._closed and not self._close_sent and lower is not None and lower is self._lower:
                    self._close_sent = True
                    if self._on_close is not None:
                        self._on_close(lower)
                    await lower.send_receive_close()
            except _grpcio.InternalError as error:
                assert lower is not None
                await self._ended(lower, error)

    async def _ended(self, lower: LowerCall, error: Exception) -> None:
        """A write has failed: the attempt's status says why, and whether another one follows."""
        try:
            async with asyncio.timeout(_STATUS_S):
                await lower.status()
        except TimeoutError:
            raise error from None
        if lower is self._lower:
            self.detach()

    async def _flush_again(self) -> None:
        # Nobody waits for this task; who writes or reads next meets the call's status.
        with contextlib.suppress(_grpcio.InternalError):
            await self._flush()

    def _tell(self) -> None:
        observer = None if self._observer is None else self._observer()
        if observer is not None:
            observer()
