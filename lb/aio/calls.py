"""One logical call, in the place of grpcio's ``cygrpc._AioCall``.

grpcio's upper layer (see `_grpcio`) drives it exactly as it drives its own lower call: it
awaits ``unary_unary`` or ``stream_unary`` in the call's task, or ``initiate_*`` and then sends
and receives messages. All bytes are serialized by then, so an attempt can be repeated without
the user's objects.

What a call does next is decided by `lb.core.call`; this file only performs it. The four kinds
differ in when an attempt has failed for good:

- one response: when the attempt's coroutine returns; everything happens in the call's own task;
- a stream of responses: when the status arrives, which the user may not be waiting for (`lb.aio.responses`).

Attempts beside each other are a `Race` (`lb.aio.hedge`), requests of a stream wait in an `Outbox`, from which
another attempt can take them again. Each attempt is a `LiveAttempt` (`lb.aio.attempt`).

What grpcio or a user's policy raises on the way ends the call with INTERNAL; an attempt is
given back whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from lb.aio import _grpcio
from lb.aio._grpcio import EOF
from lb.aio.execution import ILLEGAL, Execution
from lb.aio.protocols import Metadata
from lb.aio.responses import Responses
from lb.core.attempt import Attempt
from lb.core.call import Action
from lb.core.headers import legal
from lb.shared import scopes

_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]

T = TypeVar("T")

_log = logging.getLogger("lb.channel")


class LogicalCall:
    """What `grpc.aio` calls hold as their ``_cython_call``. Lives in one event loop.

    The first half is what grpcio asks; the second half is what its drivers use: ``unary_unary`` and ``stream_unary``
    here, `Responses`, `Race`, and the calls that began without it (`lb.aio.unary`, `lb.sync`).
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.record = execution.record
        self._responses: Responses | None = None
        self._locally_cancelled = False

    # ---- what grpcio's upper layer asks ----

    @property
    def _status(self) -> Any:
        return self.execution.result.status

    @property
    def _initial_metadata(self) -> Any:
        return self.execution.result.headers

    @property
    def _channel(self) -> Any:
        """Before 1.83 a channel of grpcio's own asks all calls of the loop for this when it closes."""
        return self.execution.channel

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once the call has its final status; at once if it has it."""
        self.execution.result.add_done_callback(callback)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        deadline = self.record.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def done(self) -> bool:
        """Whether the call has its final status."""
        return self.execution.result.status is not None

    def cancelled(self) -> bool:
        """Whether that status is CANCELLED."""
        return self.done() and self._status.code() == _CANCELLED

    def is_ok(self) -> bool:
        """Whether that status is OK."""
        return self.execution.is_ok()

    def is_locally_cancelled(self) -> bool:
        """Whether it was cancelled from this side."""
        return self._locally_cancelled

    async def status(self) -> Any:
        """The final status, once there is one."""
        await self.execution.result.status_comes()
        return self.execution.result.status

    async def initial_metadata(self) -> Any:
        """The response headers, once an attempt's were shown to the caller."""
        execution = self.execution
        result, channel = execution.result, execution.channel
        while result.headers is None:
            live = execution.live
            if live is None or live.lower is None or live.lower.done() or self in channel.unbegun:
                await result.headers_may_come()  # an attempt, or the final status, is about to come
                continue
            headers = await live.lower.initial_metadata()
            if not headers and not live.lower.done():
                # Who asks for headers gets them when they come, though empty ones look like those
                # of an attempt that has failed: a failure would be told at once.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(channel.headers_alone_s):
                        await live.lower.status()
            if live is execution.live and not live.lower.done() and result.headers is None:
                execution.commit(live)
        return result.headers

    def cancel(self, details: str) -> None:
        """End the call now; the running attempt is cancelled and counts for nothing."""
        if self.done():
            return
        self._locally_cancelled = True
        self.execution.cancel(details)
        if self._responses is not None:
            self._responses.stop()

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled. From any thread."""
        self.execution.channel.in_loop(self.cancel, scopes.CANCELLED)

    def set_internal_error(self, error: str) -> None:
        """The upper layer could not go on."""
        if not self.done():
            self.execution.broken("Internal error from Core", error)

    def __repr__(self) -> str:
        if self._status is None:
            return "<LogicalCall object>"
        code = _grpcio.STATUS_CODES[self._status.code()]
        return (
            f'<LogicalCall of RPC that terminated with:\n\tstatus = {code}\n\tdetails = "{self._status.details()}"\n>'
        )

    async def unary_unary(self, request: bytes, metadata: Metadata, *context: Any) -> bytes | None:
        """The whole call, with one request and one response; None when it did not end OK."""
        execution = self.execution
        action = self._take(metadata)
        if action is None and not self._locally_cancelled and not legal(metadata):
            raise _grpcio.ExecuteBatchError(ILLEGAL.details())  # as core does in this kind of call alone
        if self.record.rules.hedging is not None:
            return await execution.race(request, context).run(action)
        while action is not None:
            if isinstance(action, Attempt):
                try:
                    live = execution.opened(action)
                    live.watch(action.started_at)
                    response: bytes | None = await live.lower.unary_unary(request, live.headers(), *context)
                except BaseException as error:
                    execution.abandon(error)
                    raise
                action = execution.answered(live)
                if action is None:
                    return response if self.is_ok() else None
            else:
                action = await execution.wait(action)
        return None

    async def stream_unary(self, metadata: Metadata, metadata_sent: Callable[[], None], *context: Any) -> bytes | None:
        """The whole call, with a stream of requests; ``metadata_sent`` is called when messages may be sent."""
        execution = self.execution
        outbox = execution.requests()
        outbox.observe(metadata_sent, execution.await_response)
        action = self._take(metadata)
        while action is not None:
            if isinstance(action, Attempt):
                try:
                    live = execution.opened(action)
                    execution.result.attempt_begins()
                    outbox.attach(live.lower)
                    response: bytes | None = await live.lower.stream_unary(
                        live.headers(), outbox.metadata_sent, *context
                    )
                except BaseException as error:
                    execution.abandon(error)
                    raise
                action = execution.answered(live)
                if action is None:
                    return response if self.is_ok() else None
            else:
                action = await execution.wait(action)
        return None

    async def initiate_unary_stream(self, request: bytes, metadata: Metadata, *context: Any) -> None:
        """Send the request; returns with the headers of the attempt that is shown to the caller."""
        self._responses = Responses(self.execution, request, None, context)
        await self._responses.run(self._take(metadata))

    async def initiate_stream_stream(
        self, metadata: Metadata, metadata_sent: Callable[[], None], *context: Any
    ) -> None:
        """Begin; returns with those headers. ``metadata_sent``: messages may be sent."""
        outbox = self.execution.requests()
        outbox.observe(metadata_sent, self.execution.await_response)
        self._responses = Responses(self.execution, None, outbox, context)
        await self._responses.run(self._take(metadata))

    def receive_serialized_message(self) -> Awaitable[Any]:
        """The next message, or EOF; the status then says why."""
        execution = self.execution
        live = execution.live
        if execution.committed and live is not None:  # nothing comes in between: no coroutine of ours for each message
            # From now on grpcio's layer asks the lower call itself: 3 % of a message.
            self.receive_serialized_message = live.lower.receive_serialized_message  # type: ignore[method-assign]
            return self.receive_serialized_message()
        return _end_of_stream() if self._responses is None else self._responses.receive_first()

    def send_serialized_message(self, message: bytes) -> Awaitable[None]:
        """Send one message; it is awaited, and returns when flow control lets the next one in."""
        return self.execution.requests().send(message)

    async def send_receive_close(self) -> None:
        """Say that no more messages follow."""
        await self.execution.requests().half_close()

    def _take(self, metadata: Metadata) -> Action | None:
        self.execution.channel.unbegun.discard(self)
        return self.execution.take(metadata)


async def _end_of_stream() -> Any:
    """The end of a stream that never began."""
    return EOF


_made_by: weakref.WeakKeyDictionary[asyncio.Task[Any], LogicalCall] = weakref.WeakKeyDictionary()


def remember_maker(call: LogicalCall) -> None:
    """Keep in mind which task makes a call: under interceptors that is all that leads back to it."""
    task = asyncio.current_task()
    if task is not None:
        _made_by[task] = call


def logical_call(call: Any) -> LogicalCall | None:
    """The `LogicalCall` under a call object, through interceptors; None if there is none (yet)."""
    below = _grpcio.lower_call(call)
    if isinstance(below, LogicalCall):
        return below
    task = _grpcio.interceptors_task(call)
    return None if task is None else _made_by.get(task)
