"""Streams, and futures of streams, in the place of grpcio's ``cygrpc.IntegratedCall`` and ``SegregatedCall``.

grpcio's upper layer (see `_grpcio`) hands over batches of operations and waits for an event for each. The call
is a `LogicalCall` of `lb.aio` in the loop, so retries, hedges, commitment and spans are written once; the batches'
events travel back through a queue, to the thread that grpcio keeps per channel for them (or to the caller). Messages
of a committed stream go another way: see `straight`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc

from lb.aio._grpcio import (
    EOF,
    AioRpcStatus,
    InternalError,
    headers_now,
    on_monotonic_clock,
    on_wall_clock,
    status_now,
)
from lb.aio.calls import LogicalCall
from lb.aio.execution import ILLEGAL
from lb.aio.response_stream import ResponseStream
from lb.aio.result import NO_METADATA
from lb.core.attempt import Attempt
from lb.core.call import Call
from lb.core.headers import check_types, legal
from lb.sync import _grpcio
from lb.sync.events import Batch, Done, Event, completed
from lb.sync.owner import Owner
from lb.sync.straight import Operation

# What core says of them.
NOT_SECURE = AioRpcStatus(
    grpc.StatusCode.UNAUTHENTICATED.value[0],
    "Established channel does not have a sufficient security level to transfer call credential.",
    (),
    "",
)
LOCALLY = (_grpcio.CANCELLED, "Locally cancelled by application!")
LOCALLY_CANCELLED = AioRpcStatus(*LOCALLY, (), "")


class Handle:
    """What grpcio's layer holds of a `LoopCall`. Once nobody holds it, nobody waits for the call: it is ended.

    grpcio cancels calls that were forgotten, but not those that it took for ended: where a response
    cannot be deserialized it forgets a stream that would wait for its reader for ever.
    """

    __slots__ = ("cancel", "held", "next_event", "operate")

    def __init__(self, call: LoopCall) -> None:
        self.held = call
        self.operate = call.operate
        self.cancel = call.cancel
        self.next_event = call.next_event

    def __del__(self) -> None:
        self.held.forgotten()


class LoopCall:
    """A future or a stream."""

    def __init__(
        self,
        channel: Owner,
        arguments: tuple[Any, ...],
        deadline: float | None,
        credentials: Any,
        batches: Sequence[Batch],
        registered: bool,
        events: Any,
    ) -> None:
        self._channel = channel
        _, self._method, _, _, self._context = arguments
        self._deadline = on_monotonic_clock(deadline)
        self._credentials = _grpcio.raised(credentials)
        self._registered = registered
        self._events = events
        self._due = list(batches)
        self._over = False
        self._ended_with: Any = None
        self._logical: LogicalCall | None = None
        self._record: Call | None = None
        self._message: bytes | None = None
        self._opened: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._metadata: tuple[Any, ...] = ()
        self._request: bytes | None = None
        self._one_response = False
        self._wait_for_ready: bool | None = None
        self._straight: Any = None
        """Core's call, once messages go past the loop (`Operation`)."""
        self._all_straight = False
        """Whether those that the caller writes do, too."""
        for operations, _ in batches:
            for operation in operations:
                kind = operation.type()
                if kind == _grpcio.SEND_INITIAL_METADATA:
                    self._metadata = _grpcio.metadata_of(operation)
                    self._wait_for_ready = _grpcio.wait_for_ready(operation)
                elif kind == _grpcio.SEND_MESSAGE:
                    self._request = _grpcio.message_of(operation)
                elif kind == _grpcio.RECEIVE_MESSAGE:
                    self._one_response = True
        check_types(self._metadata)
        if not channel.begin(self, self._start, contextvars.copy_context()):
            raise ValueError(f"Cannot invoke RPC: {channel.closed_reason}")

    @property
    def attempts(self) -> list[Attempt]:
        """Its attempts so far, in order."""
        return [] if self._record is None else list(self._record.attempts)

    # ---- what the upper layer asks, from any thread ----

    def operate(self, operations: tuple[Any, ...], tag: Any) -> bool:
        """Carry out another operation; False when the call is over."""
        if self._over:
            return False
        straight = self._straight
        if straight is not None and (self._all_straight or operations[0].type() == _grpcio.RECEIVE_MESSAGE):
            operation = Operation(straight, operations, tag, self._deliver)
            if self._over:  # meanwhile: the loop that would be told of its end may have ended
                operation.give_up()
            return True
        return self._channel.in_loop(self._operate, operations, tag)

    def cancel(self, code: int, details: str) -> None:
        """End it with this status."""
        self._channel.in_loop(self.end, code, details)

    def forgotten(self) -> None:
        """Nobody is left who could ask anything of it."""
        if not self._over:
            self.cancel(*LOCALLY)

    def next_event(self) -> Any:
        """The next event, for calls whose caller waits for them."""
        try:
            return self._events.get()
        except BaseException:  # Ctrl-C
            self.cancel(*LOCALLY)
            raise

    # ---- in the loop ----

    def _start(self, context: contextvars.Context) -> None:
        if self._over or self._ended_with is not None:
            return
        if self._credentials is not None and not self._channel.secure:
            self._ended_with = NOT_SECURE
            self._finish()
            return
        try:
            logical = self._logical = context.run(self._make)
            self._record = logical.record
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must not wait for ever
            self._ended_with = broken(error)
            self._finish()
            return
        if not self._one_response:
            if self._request is None:
                opening = logical.initiate_stream_stream(self._metadata, self._metadata_sent, self._context)
            else:
                opening = logical.initiate_unary_stream(self._request, self._metadata, self._context)
            self._opened = self._task(opening, context)
        self._task(self._run(logical), context)

    def _make(self) -> LogicalCall:
        return self._channel.engine.new_call(
            self._method,
            on_wall_clock(self._deadline),
            self._credentials,
            self._wait_for_ready,
            self._registered,
        )

    def _task(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None = None) -> Any:
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, logical: LogicalCall) -> None:
        try:
            if self._opened is not None:
                await self._follow(logical, self._opened)
            elif self._request is not None:
                self._message = await logical.unary_unary(self._request, self._metadata, self._context)
            else:
                self._task(self._headers(logical))
                self._message = await logical.stream_unary(self._metadata, self._metadata_sent, self._context)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            if isinstance(error, InternalError) and not legal(self._metadata):
                self._ended_with = ILLEGAL
            elif not logical.done():
                self._ended_with = broken(error)
        finally:
            self._finish()

    async def _follow(self, logical: LogicalCall, opened: asyncio.Task[None]) -> None:
        """A stream of responses, from its headers to its status."""
        await asyncio.wait((opened,))
        if not opened.cancelled() and (error := opened.exception()) is not None:
            raise error
        if not self._told_headers(logical):
            self._task(self._headers(logical))
        await logical.status()

    def _metadata_sent(self) -> None:
        """The outbox asks for somebody to tell; `operate` waits by itself."""

    async def _headers(self, logical: LogicalCall) -> None:
        await logical.initial_metadata()
        self._told_headers(logical)

    def _told_headers(self, logical: LogicalCall) -> bool:
        """Complete the batches that wait for the response headers, if these are here."""
        headers = headers_now(logical)
        if headers is None:
            return False
        for batch in [batch for batch in self._due if not _waits_for_end(batch)]:
            self._complete(batch, headers)
        return True

    def _operate(self, operations: tuple[Any, ...], tag: Any) -> None:
        kind = operations[0].type()
        task = self._task(self._carry_out(kind, operations[0]))

        # Not in the coroutine itself: a task that is cancelled early never begins.
        def ended(task: asyncio.Task[bytes | None]) -> None:
            failed = task.cancelled() or task.exception() is not None
            self._events.put(Event(tag, [Done(kind, None if failed else task.result())]))

        task.add_done_callback(ended)

    async def _carry_out(self, kind: int, operation: Any) -> bytes | None:
        logical = self._logical
        if logical is None or self._over:
            return None
        try:
            if kind == _grpcio.SEND_MESSAGE:
                await logical.send_serialized_message(_grpcio.message_of(operation))
                self._go_straight(logical)
            elif kind == _grpcio.SEND_CLOSE:
                await logical.send_receive_close()
            else:
                return await self._receive(logical)
        except InternalError:
            pass  # the call is over: its status tells
        return None

    async def _receive(self, logical: LogicalCall) -> bytes | None:
        if self._opened is not None and not self._opened.done():
            await asyncio.wait((self._opened,))
        message = await logical.receive_serialized_message()
        self._told_headers(logical)
        self._go_straight(logical)
        return None if message is EOF else message

    def _go_straight(self, logical: LogicalCall) -> None:
        """From now on messages go past the loop, if nothing can come in between any more."""
        execution = logical.execution
        live = execution.live
        if not execution.committed or self._over or self._channel.cooperative or live is None:
            return
        if isinstance(live.lower, ResponseStream):  # and not one whose messages are counted
            self._all_straight = self._request is not None or execution.requests().idle
            self._straight = live.lower.core

    def _deliver(self, event: Operation) -> None:
        """An operation past the loop is complete. In any thread."""
        if event.tag is None:
            self._events.put(event)
        elif event.tag(event):  # it was the call's last one, which the events' thread is to know
            self._events.put(Event(_true, ()))

    def end(self, code: int, details: str) -> None:
        """End it with this status, now."""
        if self._over:
            return
        if self._ended_with is None:
            self._ended_with = AioRpcStatus(code, details, (), "")
        logical = self._logical
        # What waits for core ends by itself, as core ends the attempt.
        sent = logical is not None and logical.execution.sent
        if logical is not None:
            logical.cancel(details)
        if not sent:
            for task in list(self._tasks):
                task.cancel()
        self._finish()

    def _finish(self) -> None:
        """Complete every batch that is still due."""
        if self._over:
            return
        self._over = True
        logical = self._logical
        status = self._ended_with or (None if logical is None else status_now(logical))
        if status is None:
            status = LOCALLY_CANCELLED
        headers = None if logical is None else headers_now(logical)
        for batch in list(self._due):
            self._complete(batch, headers or NO_METADATA, status)
        # Whoever keeps the call object must not keep core's call with it: that would keep the connection's watch
        # from ending, for which closing waits.
        self._logical = self._straight = None
        self._channel.ended(self)

    def _complete(self, batch: Batch, headers: Any, status: Any = None) -> None:
        self._due.remove(batch)
        operations, tag = batch
        attempts = [] if self._record is None else self._record.attempts
        self._events.put(Event(tag, completed(operations, attempts, status, self._message, headers)))


def broken(error: BaseException) -> Any:
    """The status of a call that grpcio could not carry out."""
    return AioRpcStatus(_grpcio.INTERNAL, f"{type(error).__name__}: {error}", (), repr(error))


def _true(_: Event) -> bool:
    return True


def _waits_for_end(batch: Batch) -> bool:
    return any(op.type() in (_grpcio.RECEIVE_STATUS, _grpcio.RECEIVE_MESSAGE) for op in batch[0])
