"""A blocking call with one request and one response, in the place of grpcio's ``cygrpc.SegregatedCall``.

The endpoint is picked, and the first attempt sent and awaited, in the caller's own thread (`BlockingCall.next_event`).
When that attempt succeeds, or fails for good, no other thread takes part. Anything else (nothing is READY, a
retry, a hedge) goes on in the loop as a `LogicalCall` of `lb.aio`, and the caller waits for that.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Sequence
from typing import Any

from lb.aio._grpcio import (
    AioRpcStatus,
    InternalError,
    name_of_registered,
    on_monotonic_clock,
    on_wall_clock,
    status_now,
)
from lb.aio.attempt import LiveAttempt
from lb.aio.calls import LogicalCall
from lb.aio.engine import Engine
from lb.aio.execution import ILLEGAL, Execution
from lb.aio.protocols import LowerCall, Metadata
from lb.aio.records import new_record, told
from lb.aio.result import NO_METADATA
from lb.aio.sizes import size
from lb.core.attempt import Attempt
from lb.core.call import Action, Call
from lb.core.headers import check_types, legal
from lb.shared import scopes, threads
from lb.sync import _grpcio
from lb.sync.calls import LOCALLY, LOCALLY_CANCELLED, NOT_SECURE, broken
from lb.sync.events import Event, completed
from lb.sync.owner import Owner

NOT_BEGUN: Any = None
_CLOSED = AioRpcStatus(_grpcio.CANCELLED, _grpcio.CHANNEL_CLOSED, (), "")


class Sent:
    """An attempt in the caller's thread, as a `LiveAttempt` uses lower calls."""

    __slots__ = ("_initial_metadata", "_segregated", "_status", "event")

    def __init__(self, segregated: Any) -> None:
        self._segregated = segregated
        self._initial_metadata: Any = None
        self._status: Any = None
        self.event: Any = None
        """What ended it."""

    def wait(self) -> None:
        """Wait for its end."""
        self.take(self._segregated.next_event())

    def take(self, event: Any) -> None:
        """It has ended."""
        self.event = event
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

    def end(self, code: int, details: str) -> None:
        """End it with this status; from any thread."""
        self._segregated.cancel(code, details)


class BlockingCall:
    """One request, one response, in the caller's thread for as long as that is enough.

    ``arguments`` are flags, method, host, metadata and context, as grpcio hands them over, ``operations`` the call's
    only batch, ``deadline`` an instant of the wall clock.
    """

    def __init__(
        self,
        front: Owner,
        arguments: tuple[Any, ...],
        deadline: float | None,
        credentials: Any,
        operations: Sequence[Any],
        registered: bool,
    ) -> None:
        self._front = front
        self.channel: Engine = front.engine
        self._arguments = arguments
        self.method: bytes = arguments[1]
        self._deadline = deadline
        self._core_credentials = credentials
        self._operations = operations
        self.registered = registered
        self.record: Call = NOT_BEGUN
        self.span: Any = None
        self._sending: Sent | None = None
        """Its attempt in the caller's thread."""
        self._execution: Execution | None = None
        """What carries out the rest of it, in the loop."""
        self._task: asyncio.Task[bytes | None] | None = None
        self._ended_with: Any = None
        """The status that somebody ended it with."""

    @property
    def attempts(self) -> list[Attempt]:
        """Its attempts so far, in order."""
        return [] if self.record is NOT_BEGUN else list(self.record.attempts)

    # ---- what its attempt asks ----

    @property
    def metadata(self) -> Metadata:
        """See `Carrier`."""
        return _grpcio.metadata_of(self._operations[0])

    @property
    def credentials(self) -> Any:
        """See `Carrier`."""
        return _grpcio.raised(self._core_credentials)

    def done(self) -> bool:
        """See `Carrier`."""
        return self._execution is not None and self._execution.done()

    replayable = True
    _tag: Any = None
    """What its event carries."""

    def rivals(self, _: LowerCall) -> int:
        """See `Carrier`: none, for calls with hedges go on in the loop at once."""
        return 0

    # ---- what grpcio's upper layer asks ----

    def next_event(self) -> Any:
        """The whole call; the event of its only batch."""
        action = self._begin()
        here = self.record.rules.hedging is None and self._ended_with is None and not self._front.cooperative
        if not here or not isinstance(action, Attempt):
            return self._in_loop(self._general(None), action)
        live = LiveAttempt(self, action, blocking=True)
        try:
            sent = self._send(live)
        except BaseException as error:
            self._general(live).abandon(error)
            if not isinstance(error, ValueError) or legal(self.metadata):
                raise
            return self._event(ILLEGAL, None, NO_METADATA)  # which grpcio before 1.81 raises
        status = status_now(sent)
        if status.code() == 0:
            live.succeeded(status, time.monotonic())
            told(self.channel, self.record, self.span, status)
            return sent.event
        execution = self._general(live)
        following = execution.answered(live)
        if following is None:
            return self._event(execution.result.status, None, execution.result.headers)
        return self._in_loop(execution, following)

    def _begin(self) -> Action:
        channel = self.channel
        now = time.monotonic()
        wait_for_ready = _grpcio.wait_for_ready(self._operations[0])
        deadline = on_monotonic_clock(self._deadline)
        shared = channel.methods.get(self.method) or channel.method(self.method)
        record, self.span, scope = new_record(channel, shared, deadline, wait_for_ready, now)
        self.record = record
        if scope is not None:
            scope.add(self)
            if (metadata := scope.headers(self.metadata)) is not self.metadata:
                self._operations = (_grpcio.send_metadata(metadata), *self._operations[1:])
        if channel.balancer.needs_metadata:
            record.will_send(self.metadata)
        return record.begin(now)

    def _send(self, live: LiveAttempt) -> Sent:
        """The attempt from beginning to end, in this thread."""
        subchannel = live.attempt.candidate.handle
        operations = self._operations
        if self.span is not None or _grpcio.flags_of(operations[0]):
            operations = (_grpcio.send_metadata(live.headers()), *operations[1:])
        flags, method, host, metadata, context = self._arguments
        blocking = subchannel.blocking()
        handle = subchannel.registered(method) if self.registered else None
        segregated = blocking.segregated_call(
            flags,
            name_of_registered(method) if handle else method,
            host,
            on_wall_clock(self.record.deadline),
            metadata,
            self._core_credentials,
            ((operations, None),),
            context,
            handle,
        )
        self._sending = sent = Sent(segregated)
        live.sent(sent, size(_grpcio.message_of(operations[1])) if self.channel.measure_sizes else None)
        try:
            if self._ended_with is not None:  # meanwhile
                segregated.cancel(self._ended_with.code(), self._ended_with.details())
            sent.wait()
        except BaseException:  # Ctrl-C: the server need not go on
            segregated.cancel(*LOCALLY)
            raise
        finally:
            self._sending = None
        if self.channel.measure_sizes:
            live.received(size(sent.event.batch_operations[4].message()))
        return sent

    def _general(self, live: LiveAttempt | None) -> Execution:
        """The same call as the loop can carry it out, from here on."""
        self._execution = execution = Execution.taking_over(self, live)
        return execution

    def _event(self, status: Any, response: bytes | None, headers: Any) -> Event:
        return Event(self._tag, completed(self._operations, self.attempts, status, response, headers))

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled. From any thread."""
        self.end(_grpcio.CANCELLED, scopes.CANCELLED)

    def end(self, code: int, details: str) -> None:
        """End it with this status; from any thread."""
        if self._ended_with is None:
            self._ended_with = AioRpcStatus(code, details, (), "")
        sending, task = self._sending, self._task
        if sending is not None:
            sending.end(code, details)
        elif task is not None:
            self._front.in_loop(task.cancel)

    def cancel(self, *_: Any) -> None:
        """Called by call objects after the end, where nothing is left to cancel."""

    # ---- what the loop takes over ----

    def _in_loop(self, execution: Execution, action: Action) -> Event:
        """What is left of the call, in the loop; then its event."""
        execution.go_on(execution.live, action)
        answers = threads.mailbox()
        try:
            self._front.must_wait()
            check_types(self.metadata)
            begun = self._front.begin(self, self._start_in_loop, execution, answers, contextvars.copy_context())
        except BaseException as error:
            execution.release()
            execution.abandon(error)
            raise
        if not begun:  # the channel was closed while this thread had the call
            execution.release()
            execution.settle(_CLOSED, NO_METADATA)
            return self._event(_CLOSED, None, NO_METADATA)
        try:
            return self._event(*answers.get())
        except BaseException:  # Ctrl-C
            self.end(*LOCALLY)
            raise

    def _start_in_loop(self, execution: Execution, answers: Any, context: contextvars.Context) -> None:
        task = self._task = asyncio.get_running_loop().create_task(self._go_on(execution), context=context)
        task.add_done_callback(lambda task: self._finish(execution, task, answers))

    def _finish(self, execution: Execution, task: asyncio.Task[bytes | None], answers: Any) -> None:
        self._front.ended(self)
        response = None
        status = None
        if task.cancelled():
            execution.release()
            execution.abandon(asyncio.CancelledError())
            execution.settle(self._ended_with or LOCALLY_CANCELLED, NO_METADATA)
        elif (error := task.exception()) is None:
            response = task.result()
        elif isinstance(error, InternalError) and not legal(self.metadata):
            status = ILLEGAL  # in place of what the call made of it
        elif not execution.done():
            execution.settle(broken(error), NO_METADATA)
        self._execution = None  # as in `LoopCall`
        answers.put((status or execution.result.status, response, execution.result.headers))

    async def _go_on(self, execution: Execution) -> bytes | None:
        if self._ended_with is not None:
            raise asyncio.CancelledError
        if self._core_credentials is not None and not self._front.secure:
            execution.release()
            execution.settle(NOT_SECURE, NO_METADATA)
            return None
        message = _grpcio.message_of(self._operations[1])
        return await LogicalCall(execution).unary_unary(message, self.metadata, self._arguments[-1])
