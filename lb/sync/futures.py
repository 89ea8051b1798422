"""A future of one request and one response, in the place of grpcio's ``cygrpc.IntegratedCall``.

The loop picks the endpoint and starts the first attempt, and core's answer settles it, with no task on the way. As with
a blocking call, anything else (nothing is READY, a retry, a hedge) goes on as a `LogicalCall` of `lb.aio`.
"""

from __future__ import annotations

import contextvars
import time
from typing import Any

from lb.aio._grpcio import AioRpcStatus, cygrpc, status_now
from lb.aio.attempt import LiveAttempt
from lb.aio.execution import ILLEGAL, Execution
from lb.aio.records import told
from lb.aio.result import NO_METADATA
from lb.core.actions import Action
from lb.core.attempt import Attempt
from lb.core.headers import check_types, legal
from lb.shared import scopes
from lb.sync import _grpcio
from lb.sync.blocking import NOT_BEGUN, BlockingCall, Sent
from lb.sync.calls import NOT_SECURE, broken
from lb.sync.events import Batch
from lb.sync.owner import Owner
from lb.sync.straight import Operation


class SentInLoop(Sent):
    """An attempt on the loop's connection."""

    __slots__ = ()

    def cancel(self, details: str) -> None:
        """End it."""
        self._segregated.cancel(details)


class FutureCall(BlockingCall):
    """One request, one response, whose event goes to the thread that grpcio keeps for those of its channel."""

    def __init__(
        self,
        front: Owner,
        arguments: tuple[Any, ...],
        deadline: float | None,
        credentials: Any,
        batch: Batch,
        registered: bool,
        events: Any,
    ) -> None:
        operations, self._tag = batch
        super().__init__(front, arguments, deadline, credentials, operations, registered)
        self._events = events
        self._context = contextvars.copy_context()
        self._live: LiveAttempt | None = None
        self._due = [True]
        """Empty once its event was given, or the rest of it is carried out by a task."""
        check_types(self.metadata)
        if not front.begin(self, self._start):
            raise ValueError(f"Cannot invoke RPC: {front.closed_reason}")

    # ---- what grpcio's upper layer asks, from any thread ----

    def cancel(self, *ended_with: Any) -> None:
        """End it with this code and these details."""
        self._front.in_loop(self.end, *ended_with)

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled."""
        self.channel.in_loop(lambda _: self.end(_grpcio.CANCELLED, scopes.CANCELLED), None)

    # ---- in the loop ----

    def _start(self) -> None:
        if self._ended_with is not None:
            return
        try:
            self._context.run(self._start_first)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must not wait for ever
            if self._live is not None:
                self._general(self._live).abandon(error)
            illegal = isinstance(error, ValueError) and not legal(self.metadata)
            self._answer(ILLEGAL if illegal else broken(error))

    def _start_first(self) -> None:
        if self._core_credentials is not None and not self._front.secure:
            self._answer(NOT_SECURE)
            return
        action = self._begin()
        if self._ended_with is not None:  # by the incoming call, which is over
            self._general(None).go_on(None, action)
            self._end_now()
            return
        if self.record.rules.hedging is not None or not isinstance(action, Attempt):
            self._go_on_with(self._general(None), action)
            return
        self._live = live = LiveAttempt(self, action)
        live.open()
        call = live.lower
        operations = self._operations
        if self.span is not None or _grpcio.flags_of(operations[0]):
            operations = (_grpcio.send_metadata(live.headers()), *operations[1:])
        context = self._arguments[-1]
        if context is not None:
            cygrpc.set_instrumentation_context_on_call_aio(call, context)
        live.sent(SentInLoop(call), None)
        Operation(call, tuple(operations), self._tag, self._arrived)

    def end(self, code: int, details: str) -> None:
        """End it with this status, now."""
        if self._ended_with is not None:
            return
        self._ended_with = AioRpcStatus(code, details, (), "")
        if self._task is not None:
            self._task.cancel()
        elif self.record is NOT_BEGUN:
            self._answer(self._ended_with)
        elif self._live is not None:  # else it is about to begin, which sees this, or it is over
            self._end_now()

    def _end_now(self) -> None:
        if self._claim():
            live = self._live
            execution = self._execution or self._general(live)
            execution.release()
            execution.settle(self._ended_with, NO_METADATA)
            if live is not None:
                live.cancel(self._ended_with.details())
            self._give(self._event(self._ended_with, None, NO_METADATA))

    # ---- its end, in whichever loop has taken core's event ----

    def _claim(self) -> bool:
        """Whether it is for the caller of this to say what follows. To pop is one step to all threads."""
        try:
            return self._due.pop()
        except IndexError:
            return False

    def _arrived(self, event: Operation) -> None:
        if not self._claim():
            return
        live = self._live
        assert live is not None
        try:
            live.lower.take(event)
            status = status_now(live.lower)
            if status.code() == 0:
                live.succeeded(status, time.monotonic())
                told(self.channel, self.record, self.span, status)
                self._give(event)
                return
            execution = self._general(live)
            following = execution.answered(live)
        except Exception as error:  # noqa: BLE001  # as above
            self._general(live).abandon(error)
            self._give(self._event(broken(error), None, NO_METADATA))
            return
        if following is None:
            self._give(self._event(execution.result.status, None, execution.result.headers))
        elif not self._front.in_loop(self._go_on_with, execution, following):
            self._give(self._event(broken(RuntimeError("the loop has ended")), None, NO_METADATA))

    def _answer(self, status: Any) -> None:
        if self._claim():
            self._give(self._event(status, None, NO_METADATA))

    def _give(self, event: Any) -> None:
        self._live = self._execution = None  # as in `LoopCall`
        self._front.ended(self)
        self._events.put(event)

    # ---- where it is not as simple ----

    def _go_on_with(self, execution: Execution, action: Action) -> None:
        execution.go_on(execution.live, action)
        self._start_in_loop(execution, self, self._context)
        self._due.clear()
        self._live = None

    def put(self, answer: tuple[Any, bytes | None, Any]) -> None:
        """What the task came to: status, response and headers."""
        self._events.put(self._event(*answer))
