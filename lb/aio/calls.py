"""One logical call, in the place of grpcio's ``cygrpc._AioCall``.

grpcio's upper layer (see `_grpcio`) drives it exactly as it drives its own lower call: it
awaits ``unary_unary`` or ``stream_unary`` in the call's task, or ``initiate_*`` and then sends
and receives messages. All bytes are serialized by then, so an attempt can be repeated without
the user's objects.

What a call does next is decided by `lb.core.call`; this file only performs it. The four kinds
differ in when an attempt has failed for good:

- one response: when the attempt's coroutine returns; everything happens in grpcio's own task,
  and a first attempt that succeeds creates nothing but itself;
- a stream of responses: when the status arrives (`_status_arrived`), which the user may not be
  waiting for; a retry then runs in a task of its own.

Requests of a stream are kept until the call is committed (at most `REPLAY_LIMIT` bytes), so
that another attempt can send them again (gRFC A6).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from lb.aio import _grpcio
from lb.aio._grpcio import EOF, AioRpcStatus
from lb.core.balancer import Attempt
from lb.core.call import Action, Call, Done, Failed, Pause, Queued
from lb.core.outcome import OK, PUSHBACK_KEY, Origin, Outcome, classify

if TYPE_CHECKING:
    from lb.aio.channel import LogicalChannel

REPLAY_LIMIT = 1 << 20
"""Bytes of a request stream that are kept for another attempt (grpcio's per_rpc_buffer limit)."""

_NO_METADATA: tuple[tuple[str, Any], ...] = ()
_CANCELLED = classify(grpc.StatusCode.CANCELLED, origin=Origin.CALLER)
_CANCELLED_VALUE = grpc.StatusCode.CANCELLED.value[0]
# The caller's deadline and core's timer are two clocks: this close together they are the same.
_DEADLINE_SLACK_S = 0.02


class LogicalCall:
    """What `grpc.aio` calls hold as their ``_cython_call``. Lives in one event loop."""

    __slots__ = (
        "_arguments",
        "_attempt",
        "_channel",
        "_committed",
        "_credentials",
        "_deadline",
        "_done_callbacks",
        "_headers_wanted",
        "_initial_metadata",
        "_initial_metadata_waiters",
        "_locally_cancelled",
        "_method",
        "_outbox",
        "_real",
        "_registered",
        "_retrying",
        "_span",
        "_status",
        "_status_waiters",
        "call",
    )

    def __init__(
        self,
        channel: LogicalChannel,
        method: bytes,
        deadline: float | None,
        credentials: Any,
        wait_for_ready: bool | None,
        registered: bool,
    ) -> None:
        self._channel = channel
        self._method = method
        self._deadline = deadline
        self._credentials = credentials
        self._registered = registered
        self._real: Any = None
        self._attempt: Attempt | None = None
        self._status: Any = None
        self._initial_metadata: tuple[Any, ...] | None = None
        self._done_callbacks: list[Callable[[], None]] = []
        self._status_waiters: list[asyncio.Future[None]] | None = None
        self._initial_metadata_waiters: list[asyncio.Future[None]] | None = None
        self._locally_cancelled = False
        self._committed = False
        self._headers_wanted = False
        self._retrying: asyncio.Task[None] | None = None
        self._outbox: _Outbox | None = None
        self._arguments: tuple[Any, ...] = ()
        self._span: Any = None
        now = time.monotonic()
        self.call: Call = channel.new_call(
            method, None if deadline is None else now + deadline - time.time(), wait_for_ready, now
        )

    # ---- what grpcio's upper layer asks ----

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once the call has its final status; at once if it has it."""
        if self._status is not None:
            callback()
        else:
            self._done_callbacks.append(callback)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.time())

    def done(self) -> bool:
        """Whether the call has its final status."""
        return self._status is not None

    def cancelled(self) -> bool:
        """Whether that status is CANCELLED."""
        return self._status is not None and self._status.code() == _CANCELLED_VALUE

    def is_ok(self) -> bool:
        """Whether that status is OK."""
        return self._status is not None and self._status.code() == 0

    def is_locally_cancelled(self) -> bool:
        """Whether it was cancelled from this side."""
        return self._locally_cancelled

    async def status(self) -> Any:
        """The final status, once there is one."""
        if self._status is None:
            if self._status_waiters is None:
                self._status_waiters = []
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._status_waiters.append(waiter)
            await waiter
        return self._status

    async def initial_metadata(self) -> Any:
        """The response headers, once an attempt's were shown to the caller."""
        if self._initial_metadata is None:
            # Who asks for headers must get them when they come, though empty ones may belong to
            # an attempt that fails: from here on headers commit the call.
            self._headers_wanted = True
            real = self._real
            if real is not None and not real.done() and real._initial_metadata is not None:
                self._commit(real)
        if self._initial_metadata is None:
            if self._initial_metadata_waiters is None:
                self._initial_metadata_waiters = []
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._initial_metadata_waiters.append(waiter)
            await waiter
        return self._initial_metadata

    def cancel(self, details: str) -> None:
        """End the call now; the running attempt is cancelled and counts for nothing."""
        if self._status is not None:
            return
        self._locally_cancelled = True
        real = self._real
        self._give_back(_CANCELLED)
        # Settled first: the attempt's own end, which comes next, must not be taken for a failure.
        self._settle(AioRpcStatus(_CANCELLED_VALUE, details, None, None), _NO_METADATA)
        if real is not None and not real.done():
            real.cancel(details)
        if self._retrying is not None:
            self._retrying.cancel()

    def set_internal_error(self, error: str) -> None:
        """The upper layer could not go on."""
        if self._status is not None:
            return
        self._give_back(classify(grpc.StatusCode.INTERNAL, details=error))
        code = grpc.StatusCode.INTERNAL.value[0]
        self._settle(AioRpcStatus(code, "Internal error from Core", (), error), _NO_METADATA)

    def __repr__(self) -> str:
        if self._status is None:
            return "<LogicalCall object>"
        code = _grpcio.STATUS_CODES[self._status.code()]
        return (
            f'<LogicalCall of RPC that terminated with:\n\tstatus = {code}\n\tdetails = "{self._status.details()}"\n>'
        )

    # ---- one response: the whole call in one coroutine ----

    async def unary_unary(self, request: bytes, metadata: tuple[Any, ...], *context: Any) -> bytes | None:
        """The whole call; None when it did not end OK."""
        action: Action | None = self._begin()
        while action is not None:
            if type(action) is Attempt:
                real, headers = self._start(action, metadata)
                try:
                    response: bytes | None = await real.unary_unary(request, headers, *context)
                except asyncio.CancelledError:
                    self._abandon(real)
                    raise
                action = self._answered(real)
                if action is None:
                    return response if self.is_ok() else None
            else:
                action = await self._pass_time(action)
        return None

    async def stream_unary(
        self, metadata: tuple[Any, ...], metadata_sent: Callable[[], None], *context: Any
    ) -> bytes | None:
        """The whole call; ``metadata_sent`` is called when messages may be sent."""
        outbox = self._outbox = _Outbox(metadata_sent)
        action: Action | None = self._begin()
        while action is not None:
            if type(action) is Attempt:
                real, headers = self._start(action, metadata)
                outbox.attach(real)
                try:
                    response: bytes | None = await real.stream_unary(headers, outbox.metadata_sent, *context)
                except asyncio.CancelledError:
                    self._abandon(real)
                    raise
                action = self._answered(real)
                if action is None:
                    return response if self.is_ok() else None
            else:
                action = await self._pass_time(action)
        return None

    # ---- a stream of responses ----

    async def initiate_unary_stream(self, request: bytes, metadata: tuple[Any, ...], *context: Any) -> None:
        """Send the request and wait for the first attempt's headers."""
        self._arguments = (request, metadata, context)
        await self._open(self._begin())

    async def initiate_stream_stream(
        self, metadata: tuple[Any, ...], metadata_sent: Callable[[], None], *context: Any
    ) -> None:
        """Begin; returns with the first attempt's headers. ``metadata_sent``: messages may be sent."""
        self._outbox = _Outbox(metadata_sent)
        self._arguments = (None, metadata, context)
        await self._open(self._begin())

    async def _open(self, first: Action) -> None:
        """Bring an attempt so far that its headers arrived, or end the call."""
        request, metadata, context = self._arguments
        action: Action | None = first
        while type(action) is not Attempt:
            if action is None:
                return
            action = await self._pass_time(action)
        real, headers = self._start(action, metadata)
        real.add_done_callback(_StatusArrived(self, real))
        try:
            if self._outbox is None:
                await real.initiate_unary_stream(request, headers, *context)
            else:
                self._outbox.attach(real)
                await real.initiate_stream_stream(headers, self._outbox.metadata_sent, *context)
        except asyncio.CancelledError:
            self._abandon(real)
            raise
        if self._headers_wanted and not real.done():
            await asyncio.sleep(0)  # a status that came along with the headers is told one turn later
        if real._initial_metadata or (self._headers_wanted and not real.done()):
            self._commit(real)

    def _status_arrived(self, real: Any) -> None:
        """A streaming attempt ended: for good, or to be followed by another."""
        if real is not self._real:
            return
        action = self._answered(real)
        if action is not None:
            self._retrying = asyncio.get_running_loop().create_task(self._open(action))

    async def receive_serialized_message(self) -> Any:
        """The next message, or EOF; the status then says why."""
        while True:
            real = self._real
            if real is None:  # no attempt was ever made, and none will be
                return EOF
            message = await real.receive_serialized_message()
            if message is not EOF:
                if not self._committed:
                    self._commit(real)
                return message
            if not self._committed and self._status is None:
                await real.status()
            if self._committed or self._status is not None or self._retrying is None:
                return EOF
            await asyncio.wait((self._retrying,))
            if real is self._real:
                return EOF

    # ---- a stream of requests ----

    async def send_serialized_message(self, message: bytes) -> None:
        """Send one message; returns when flow control lets the next one in."""
        assert self._outbox is not None
        await self._outbox.send(message)

    async def send_receive_close(self) -> None:
        """Say that no more messages follow."""
        assert self._outbox is not None
        await self._outbox.half_close()

    # ---- attempts ----

    def _begin(self) -> Action:
        now = time.monotonic()
        self._span = self._channel.tracer.call_started(self.call, now)
        return self.call.begin(now)

    def _start(self, attempt: Attempt, metadata: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Open the attempt's call on its connection; returns it and the metadata to send."""
        self._attempt = attempt
        deadline = self._deadline
        limit = self._channel.retry.attempt_timeout
        if limit is not None:
            limit += time.time()
            deadline = limit if deadline is None else min(limit, deadline)
        # Waiting for a connection is done here, over all endpoints: core must not wait for this one.
        real = attempt.candidate.handle.call(self._method, deadline, self._credentials, False, self._registered)
        self._real = real
        if attempt.number > 1:
            metadata = (*metadata, ("grpc-previous-rpc-attempts", str(attempt.number - 1)))
        if self._span is not None:
            metadata = self._channel.tracer.attempt_started(self._span, self.call, attempt, metadata)
        return real, metadata

    def _answered(self, real: Any) -> Action | None:
        """An attempt has its status: settle the call with it (None), or say what follows."""
        if self._status is not None:  # cancelled while the answer was on its way
            return None
        status = real._status
        if status.code() == 0:
            self._give_back(OK)
            self._settle(status, real._initial_metadata)
            return None
        outcome = self._outcome(status)
        now = time.monotonic()
        self._give_back(outcome, now)
        replayable = True
        if self._outbox is not None:
            replayable = self._outbox.replayable
            self._outbox.detach()
        # Core gives empty headers for a status without headers too; only filled ones prove a response.
        committed = self._committed or bool(real._initial_metadata)
        action = self.call.ended(outcome, now, committed=committed, replayable=replayable)
        if type(action) is Done:
            self._settle(status, real._initial_metadata)
            return None
        return action

    def _outcome(self, status: Any) -> Outcome:
        code = _grpcio.STATUS_CODES[status.code()]
        details = status.details() or ""
        origin = Origin.PEER
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            remaining = self.time_remaining()
            if remaining is not None and remaining <= _DEADLINE_SLACK_S:
                origin = Origin.CALLER
            elif self._channel.retry.attempt_timeout is not None and details == "Deadline Exceeded":
                origin = Origin.ATTEMPT_TIMEOUT
        elif code is grpc.StatusCode.UNAVAILABLE and _grpcio.never_connected(details):
            origin = Origin.UNSENT
        pushback = None
        for key, value in status.trailing_metadata() or ():
            if key == PUSHBACK_KEY:
                pushback = value if isinstance(value, str) else ""
        return classify(code, origin=origin, pushback=pushback, details=details)

    def _give_back(self, outcome: Outcome, now: float | None = None) -> None:
        """Return the running attempt, if there is one, to the balancer."""
        attempt = self._attempt
        if attempt is None:
            return
        self._attempt = None
        self._channel.attempt_ended(attempt, outcome, time.monotonic() if now is None else now)
        if attempt.span is not None:
            self._channel.tracer.attempt_ended(attempt)

    def _abandon(self, real: Any) -> None:
        """The task was cancelled under a running attempt."""
        self._give_back(_CANCELLED)
        if not real.done():
            real.cancel("Locally cancelled by application!")

    async def _pass_time(self, action: Action) -> Action | None:
        """Wait as told and ask again; None when the call ended instead."""
        if type(action) is Pause:
            await asyncio.sleep(action.delay_s)
            return self.call.resume(time.monotonic())
        if type(action) is Queued:
            if await self._channel.changed(self.call.deadline):
                return self.call.resume(time.monotonic())
            action = self.call.expired(time.monotonic())
        if type(action) is Failed:
            tried = self.call.tried()
            status = AioRpcStatus(action.code.value[0], action.details, (), f"tried: {tried}" if tried else "")
            self._settle(status, _NO_METADATA)
            return None
        # Done, from `resume` after a failed attempt: nothing is left to try.
        last = self.call.attempts[-1].outcome
        assert last is not None
        status = AioRpcStatus(last.code.value[0], last.details, (), f"tried: {self.call.tried()}; {self.call.gave_up}")
        self._settle(status, _NO_METADATA)
        return None

    def _commit(self, real: Any) -> None:
        """The caller sees this attempt's answer: there will be no other."""
        self._committed = True
        self._arguments = ()
        if self._outbox is not None:
            self._outbox.forget()
        self._set_initial_metadata(real._initial_metadata or _NO_METADATA)

    def _set_initial_metadata(self, metadata: tuple[Any, ...]) -> None:
        if self._initial_metadata is None:
            self._initial_metadata = metadata
            _wake(self._initial_metadata_waiters)

    def _settle(self, status: Any, initial_metadata: tuple[Any, ...] | None) -> None:
        """The call has its final status."""
        if self._status is not None:
            return
        self._status = status
        self._set_initial_metadata(initial_metadata or _NO_METADATA)
        if self._status_waiters is not None:
            _wake(self._status_waiters)
        if self._outbox is not None:
            self._outbox.settled()
        if self._span is not None:
            self._channel.tracer.call_ended(
                self._span, self.call, _grpcio.STATUS_CODES[status.code()], status.details()
            )
        for callback in self._done_callbacks:
            callback()
        self._done_callbacks.clear()


class _StatusArrived:
    """The done callback of a streaming attempt. Lets go of both sides once called: no cycle stays."""

    __slots__ = ("_call", "_real")

    def __init__(self, call: LogicalCall, real: Any) -> None:
        self._call: LogicalCall | None = call
        self._real = real

    def __call__(self) -> None:
        call, real = self._call, self._real
        self._call = self._real = None
        if call is not None:
            call._status_arrived(real)


class _Outbox:
    """The requests of a stream: what was written, and how much of it the current attempt has.

    Writers append and then help to send what the attempt lacks, one at a time and in order, so
    flow control reaches them. When an attempt fails, the next one starts from the first message.
    """

    __slots__ = (
        "_at",
        "_bytes",
        "_close_sent",
        "_closed",
        "_flushing",
        "_kept",
        "_lock",
        "_next",
        "_observer",
        "_real",
        "replayable",
    )

    def __init__(self, metadata_sent: Callable[[], None]) -> None:
        self._kept: list[bytes] = []
        self._bytes = 0
        self._at = 0
        self._closed = False
        self._close_sent = False
        self._next: Any = None
        self._real: Any = None
        self._observer = metadata_sent
        self._flushing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.replayable = True
        """Whether all that was written is still here."""

    def attach(self, real: Any) -> None:
        """Send to this attempt, as soon as its metadata went out."""
        self._next = real
        self._real = None
        self._at = 0
        self._close_sent = False

    def metadata_sent(self) -> None:
        """The attempt takes messages now (or has failed: its status tells)."""
        if self._next is None or self._next.done():
            return
        self._real = self._next
        self._observer()
        if self._kept or self._closed:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    def detach(self) -> None:
        """The attempt is over."""
        self._real = self._next = None

    def settled(self) -> None:
        """The call is over: writers may see that."""
        self.detach()
        if self._flushing is not None:
            self._flushing.cancel()
        self._kept.clear()
        self._observer()

    def forget(self) -> None:
        """The call is committed: what was sent need not be kept."""
        self.replayable = False
        del self._kept[: self._at]
        self._at = 0

    async def send(self, message: bytes) -> None:
        self._kept.append(message)
        self._bytes += len(message)
        await self._flush()

    async def half_close(self) -> None:
        self._closed = True
        await self._flush()

    async def _flush(self) -> None:
        async with self._lock:
            real = self._real
            try:
                while real is not None and real is self._real and self._at < len(self._kept):
                    await real.send_serialized_message(self._kept[self._at])
                    if real is not self._real:
                        return
                    self._at += 1
                    if self._bytes > REPLAY_LIMIT or not self.replayable:
                        self.forget()
                if self._closed and not self._close_sent and real is not None and real is self._real:
                    self._close_sent = True
                    await real.send_receive_close()
            except _grpcio.InternalError:
                # The attempt has ended; its status says why, and whether another one follows.
                await real.status()


def _wake(waiters: list[asyncio.Future[None]] | None) -> None:
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)
