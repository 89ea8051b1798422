"""Calls in the place of grpcio's ``cygrpc.SegregatedCall`` and ``IntegratedCall``.

grpcio's upper layer (see `_grpcio`) hands over batches of operations and waits for an event for
each. There are two kinds of call here, and both are a `LogicalCall` of `lb.aio` underneath, so
retries, hedges, commitment and spans are written once:

- `BlockingCall`: one request, one response, and the caller waits. The endpoint is picked and
  the first attempt is sent and awaited in the caller's own thread. When that attempt succeeds,
  or fails for good, no other thread takes part. Anything else (nothing is READY, a retry, a
  hedge) goes on in the loop, and the caller waits for that.
- `LoopCall`: futures and streams. The call lives in the loop; the batches' events travel back
  through a queue, to the thread that grpcio keeps per channel for them (or to the caller).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc

from lb.aio._grpcio import EOF, AioRpcStatus, InternalError, on_monotonic_clock, on_wall_clock
from lb.aio.calls import CANCELLED, ILLEGAL, LogicalCall, Told
from lb.core.attempt import Attempt
from lb.core.headers import check_types, legal
from lb.shared import scopes, threads
from lb.sync import _grpcio
from lb.sync.locked import LockedBalancer, LockedCall
from lb.sync.owner import Owner

_NO_METADATA: tuple[tuple[str, Any], ...] = ()
# What core says of them.
_NOT_SECURE = AioRpcStatus(
    grpc.StatusCode.UNAUTHENTICATED.value[0],
    "Established channel does not have a sufficient security level to transfer call credential.",
    (),
    "",
)
_LOCALLY = (_grpcio.CANCELLED, "Locally cancelled by application!")
_LOCALLY_CANCELLED = AioRpcStatus(*_LOCALLY, (), "")
_CLOSED = AioRpcStatus(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED, (), "")

Batch = tuple[Sequence[Any], Any]
"""Operations of grpcio's, and the tag that their event carries."""


class _Done:
    """A completed operation, as the upper layer reads it."""

    __slots__ = ("_type", "_value")

    def __init__(self, kind: int, value: Any = None) -> None:
        self._type = kind
        self._value = value

    def type(self) -> int:
        return self._type

    def message(self) -> bytes | None:
        message: bytes | None = self._value
        return message

    def initial_metadata(self) -> Any:
        return self._value


class _Status(_Done):
    """A completed ``ReceiveStatusOnClientOperation``. Its value is (code, details, trailing metadata, debug string)."""

    __slots__ = ()

    def code(self) -> int:
        code: int = self._value[0]
        return code

    def details(self) -> str:
        details: str = self._value[1]
        return details

    def trailing_metadata(self) -> Any:
        return self._value[2]

    def error_string(self) -> str:
        words: str = self._value[3]
        return words


class _Event:
    """What completes a batch."""

    __slots__ = ("batch_operations", "tag")
    completion_type = _grpcio.OPERATION_COMPLETE
    success = True

    def __init__(self, tag: Any, operations: list[_Done]) -> None:
        self.tag = tag
        self.batch_operations = operations


class Sent:
    """An attempt in the caller's thread, as a `LogicalCall` uses those of ``grpc.aio``."""

    __slots__ = ("_initial_metadata", "_segregated", "_status", "event")

    def __init__(self, segregated: Any) -> None:
        self._segregated = segregated
        self._initial_metadata: Any = None
        self._status: Any = None
        self.event: Any = None
        """What ended it."""

    def wait(self) -> None:
        """Wait for its end."""
        self.event = event = self._segregated.next_event()
        done = event.batch_operations
        self._initial_metadata = done[3].initial_metadata()
        status = done[5]
        if status.code() != 0:
            status = AioRpcStatus(status.code(), status.details(), status.trailing_metadata(), status.error_string())
        self._status = status

    def done(self) -> bool:
        """Whether it has ended."""
        return self.event is not None

    def cancel(self, details: str) -> None:
        """End it; from any thread."""
        self._segregated.cancel(_grpcio.CANCELLED, details)


def _completed(
    operations: Sequence[Any], call: LogicalCall | None, status: Any, message: bytes | None, headers: Any
) -> list[_Done]:
    """The operations of a batch, with what the call brought."""
    done: list[_Done] = []
    for operation in operations:
        kind = operation.type()
        if kind == _grpcio.RECEIVE_STATUS:
            words = Told(status.debug_error_string() or "")
            words.attempts = [] if call is None else call.call.attempts
            done.append(_Status(kind, (status.code(), status.details(), status.trailing_metadata() or (), words)))
        elif kind == _grpcio.RECEIVE_MESSAGE:
            done.append(_Done(kind, message))
        else:
            done.append(_Done(kind, headers))
    return done


class Locked(LogicalCall):
    """A logical call whose core is used by several threads."""

    call_type = LockedCall
    # grpcio's layer asks for the headers of every call, so here a busy machine must not commit a call too early.
    headers_alone_s = 0.25

    def report(self, attempt: Attempt, status: Any) -> None:
        """See `LogicalCall`."""
        balancer = self._channel.balancer
        assert isinstance(balancer, LockedBalancer)
        with balancer.lock:
            super().report(attempt, status)


class BlockingCall(Locked):
    """One request, one response, in the caller's thread for as long as that is enough.

    ``_sending`` is its attempt there. Once the loop has taken over, ``_task`` carries it out.
    """

    _sending: Any = None
    _task: asyncio.Task[bytes | None] | None = None
    _ended_with: Any = None

    def __init__(
        self,
        channel: Owner,
        arguments: tuple[Any, ...],
        deadline: float | None,
        credentials: Any,
        operations: Sequence[Any],
        registered: bool,
    ) -> None:
        self._owner = channel
        self._call_arguments = arguments
        self._core_credentials = credentials
        self._operations = operations
        wait_for_ready = _grpcio.wait_for_ready(operations[0])
        super().__init__(
            channel.engine, arguments[1], deadline, _grpcio.raised(credentials), wait_for_ready, registered
        )

    def _open_first(self, attempt: Attempt, to_wall_clock: float | None) -> None:
        """Nothing yet: `next_event` sends it."""

    def _metadata(self) -> tuple[Any, ...]:
        return _grpcio.metadata_of(self._operations[0])

    def stands(self, attempt: Attempt, real: Any) -> bool:
        """See `LogicalCall`."""
        stands: bool = attempt.candidate.handle.connected(blocking=isinstance(real, Sent))
        return stands

    def next_event(self) -> Any:
        """The event of the call's only batch, which holds everything."""
        if self._deferred:
            self._action = self._take(self._metadata())
        attempt = self._action
        if type(attempt) is Attempt and self.call.settings.hedging is None and self._ended_with is None:
            self._action = None
            self._attempt = attempt
            try:
                sent = self._send(attempt)
            except BaseException as error:
                self._abandon(error)
                if not isinstance(error, ValueError) or legal(self._metadata()):
                    raise
                self._status = ILLEGAL  # which grpcio before 1.81 raises
                return self._rest()
            self._action = self._answered(sent)
            if self._status is sent._status:  # it ended OK
                return sent.event
        return self._rest()

    def _rest(self) -> Any:
        """What is left of the call, in the loop; then its event."""
        response = None
        if self._status is None:
            response = self._wait_for_loop()
        operations = _completed(self._operations, self, self._status, response, self._initial_metadata)
        return _Event(None, operations)

    def _send(self, attempt: Attempt) -> Sent:
        """The attempt from beginning to end, in this thread."""
        subchannel = attempt.candidate.handle
        lower = subchannel.blocking()
        operations = self._operations
        first = operations[0]
        if self._span is not None or first._flags:
            metadata = self._headers(attempt, self._metadata())
            operations = (_grpcio.send_metadata(metadata), *operations[1:])
        flags, method, host, metadata, context = self._call_arguments
        self._sending = sending = lower.segregated_call(
            flags,
            method,
            host,
            on_wall_clock(self.call.deadline),
            metadata,
            self._core_credentials,
            ((operations, None),),
            context,
            subchannel.registered(method) if self._registered else None,
        )
        sent = Sent(sending)
        if (overdue := self.call.settings.overdue) is not None:
            overdue.add(attempt, self, sent, attempt.started_at)
        try:
            if self._ended_with is not None:  # meanwhile
                sending.cancel(self._ended_with.code(), self._ended_with.details())
            sent.wait()
            return sent
        except BaseException:  # Ctrl-C: the server need not go on
            sending.cancel(*_LOCALLY)
            raise
        finally:
            self._sending = None

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled. From any thread."""
        self.end(_grpcio.CANCELLED, scopes.CANCELLED)

    def end(self, code: int, details: str) -> None:
        """End it with this status; from any thread."""
        if self._ended_with is None:
            self._ended_with = AioRpcStatus(code, details, (), "")
        sending, task = self._sending, self._task
        if sending is not None:
            sending.cancel(code, details)
        elif task is not None:
            self._owner.in_loop(task.cancel)

    def cancel(self, *_: Any) -> None:
        """Called by call objects after the end, where nothing is left to cancel."""

    # ---- what the loop takes over ----

    def _wait_for_loop(self) -> bytes | None:
        answers = threads.mailbox()
        try:
            self._owner.must_wait()
            check_types(self._metadata())
            begun = self._owner.begin(self, self._start_in_loop, answers, contextvars.copy_context())
        except BaseException as error:
            self._give_up_attempt()
            self._abandon(error)
            raise
        if not begun:  # the channel was closed while this thread had the call
            self._give_up_attempt()
            self._settle(_CLOSED, _NO_METADATA)
            return None
        try:
            response: bytes | None = answers.get()
            return response
        except BaseException:  # Ctrl-C
            self.end(*_LOCALLY)
            raise

    def _start_in_loop(self, answers: Any, context: contextvars.Context) -> None:
        self._task = asyncio.get_running_loop().create_task(self._go_on(), context=context)
        self._task.add_done_callback(lambda task: self._finish(task, answers))

    def _finish(self, task: asyncio.Task[bytes | None], answers: Any) -> None:
        self._owner.ended(self)
        response = None
        if task.cancelled():
            self._give_up_attempt()
            self._abandon(asyncio.CancelledError())
            self._settle(self._ended_with or _LOCALLY_CANCELLED, _NO_METADATA)
        elif (error := task.exception()) is None:
            response = task.result()
        elif isinstance(error, InternalError) and not legal(self._metadata()):
            self._status = ILLEGAL  # in place of what `_abandon` made of it
        elif self._status is None:
            self._settle(_broken(error), _NO_METADATA)
        self._real = None  # as in `LoopCall._finish`
        answers.put(response)

    async def _go_on(self) -> bytes | None:
        if self._ended_with is not None:
            raise asyncio.CancelledError
        if self._credentials is not None and not self._owner.secure:
            self._give_up_attempt()
            self._settle(_NOT_SECURE, _NO_METADATA)
            return None
        message = _grpcio.message_of(self._operations[1])
        return await self.unary_unary(message, self._metadata(), self._call_arguments[-1])

    def _give_up_attempt(self) -> None:
        """Give back an attempt that was picked and never begun."""
        if type(self._action) is Attempt:
            self._attempt, self._action = self._action, None
            self._give_back(CANCELLED)


class _Cooperative(BlockingCall):
    """A blocking call beside gevent: the loop does all of it, for a wait in core holds up every greenlet."""

    def next_event(self) -> Any:
        """See `BlockingCall`."""
        if self._deferred:
            self._action = self._take(self._metadata())
        return self._rest()


@functools.cache
def cooperative(kind: type[BlockingCall]) -> type[BlockingCall]:
    """The same kind of call, as `_Cooperative`."""
    return type(f"Cooperative{kind.__name__}", (_Cooperative, kind), {})


class Handle:
    """What grpcio's layer holds of a `LoopCall`. Once nobody holds it, nobody waits for the call: it is ended.

    grpcio cancels calls that were forgotten, but not those that it took for ended: where a response
    can not be deserialized it forgets a stream that would wait for its reader for ever.
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
        self._record: LockedCall | None = None
        self._message: bytes | None = None
        self._opened: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._metadata: tuple[Any, ...] = ()
        self._request: bytes | None = None
        self._one_response = False
        self._wait_for_ready: bool | None = None
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
    def call(self) -> LockedCall | None:
        """The core's record, once the loop has made it."""
        return self._record

    # ---- what the upper layer asks, from any thread ----

    def operate(self, operations: Sequence[Any], tag: Any) -> bool:
        """Carry out another operation; False when the call is over."""
        if self._over:
            return False
        return self._channel.in_loop(self._operate, operations, tag)

    def cancel(self, code: int, details: str) -> None:
        """End it with this status."""
        self._channel.in_loop(self.end, code, details)

    def forgotten(self) -> None:
        """Nobody is left who could ask anything of it."""
        if not self._over:
            self.cancel(*_LOCALLY)

    def next_event(self) -> Any:
        """The next event, for calls whose caller waits for them."""
        try:
            return self._events.get()
        except BaseException:  # Ctrl-C
            self.cancel(*_LOCALLY)
            raise

    # ---- in the loop ----

    def _start(self, context: contextvars.Context) -> None:
        if self._over or self._ended_with is not None:
            return
        if self._credentials is not None and not self._channel.secure:
            self._ended_with = _NOT_SECURE
            self._finish()
            return
        try:
            logical = self._logical = context.run(self._make)
            self._record = logical.call  # type: ignore[assignment]  # it is a LockedCall
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must not wait for ever
            self._ended_with = _broken(error)
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
        return self._channel.engine.call_type(
            self._channel.engine,
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
            elif logical._status is None:
                self._ended_with = _broken(error)
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
        headers = logical._initial_metadata
        if headers is None:
            return False
        for batch in [batch for batch in self._due if not _waits_for_end(batch)]:
            self._complete(batch, headers)
        return True

    def _operate(self, operations: Sequence[Any], tag: Any) -> None:
        kind = operations[0].type()
        task = self._task(self._carry_out(kind, operations[0]))

        # Not in the coroutine itself: a task that is cancelled early never begins.
        def ended(task: asyncio.Task[bytes | None]) -> None:
            failed = task.cancelled() or task.exception() is not None
            self._events.put(_Event(tag, [_Done(kind, None if failed else task.result())]))

        task.add_done_callback(ended)

    async def _carry_out(self, kind: int, operation: Any) -> bytes | None:
        logical = self._logical
        if logical is None or self._over:
            return None
        try:
            if kind == _grpcio.SEND_MESSAGE:
                await logical.send_serialized_message(_grpcio.message_of(operation))
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
        return None if message is EOF else message

    def end(self, code: int, details: str) -> None:
        """End it with this status, now."""
        if self._over:
            return
        if self._ended_with is None:
            self._ended_with = AioRpcStatus(code, details, (), "")
        logical = self._logical
        # What waits for core ends by itself, as core ends the attempt.
        sent = logical is not None and logical._real is not None and not logical._real.done()
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
        status = self._ended_with or (None if logical is None else logical._status)
        if status is None:
            status = _LOCALLY_CANCELLED
        headers = None if logical is None else logical._initial_metadata
        for batch in list(self._due):
            self._complete(batch, headers or _NO_METADATA, status)
        # Whoever keeps the call object must not keep core's call with it: that would keep the connection's watch
        # from ending, for which closing waits.
        self._logical = None
        self._channel.ended(self)

    def _complete(self, batch: Batch, headers: Any, status: Any = None) -> None:
        self._due.remove(batch)
        operations, tag = batch
        self._events.put(_Event(tag, _completed(operations, self._logical, status, self._message, headers)))


def _broken(error: BaseException) -> Any:
    return AioRpcStatus(_grpcio.INTERNAL, f"{type(error).__name__}: {error}", (), repr(error))


def _waits_for_end(batch: Batch) -> bool:
    return any(op.type() in (_grpcio.RECEIVE_STATUS, _grpcio.RECEIVE_MESSAGE) for op in batch[0])
