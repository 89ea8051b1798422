"""A call with one request and one response, as most of them go. To learn how a call goes, begin here.

::

    start ──pick, open──► (next turn of the loop) send ──► _arrived ──OK──► settled: who awaits it goes on
                                                    │         └──else──► `LogicalCall` goes on, in a task
                                                    └─ hedging delay ──► `Race` goes on with it, in a task

It needs no task: the future of the attempt's batch calls back. Other calls go on as the general call of `lb.aio.calls`:
those whose first attempt does not end OK, and those that are asked for more than their response. It is made then and
there (`general`), and goes on as if it had been there from the beginning.

A stub makes it by `Engine.unary_call`, which calls `start`. The first call of a method goes the general way at once.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

from lb.aio import _grpcio
from lb.aio._grpcio import headers_now, status_now
from lb.aio.attempt import LiveAttempt
from lb.aio.calls import LogicalCall
from lb.aio.execution import Execution
from lb.aio.hedge import took
from lb.aio.protocols import LowerCall, Metadata
from lb.aio.records import told
from lb.core.attempt import Attempt
from lb.core.call import Action, Call
from lb.shared import scopes

if TYPE_CHECKING:
    from lb.aio.engine import Engine


class UnaryCall(_grpcio.UnaryUnaryCall):
    """What a stub returns: grpcio's own call object, which carries out the call itself as far as that is simple."""

    def __init__(
        self,
        channel: Engine,
        stub: _grpcio.UnaryUnary,
        request: Any,
        metadata: Metadata,
        credentials: Any,
        record: Call,
        span: Any,
    ) -> None:
        self.channel = channel
        self.method = stub.method
        self.registered = stub.registered
        self.metadata = metadata
        self.credentials = credentials
        self.record = record
        self.span = span
        self.live: LiveAttempt | None = None
        self._stub = stub
        self._request = request
        self.context = copy_context()
        self._headers = metadata
        self._steps: Any = None
        self._batch: Any = None
        self._general: LogicalCall | None = None
        self._task: asyncio.Task[bytes | None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._running = True
        self._error: BaseException | None = None
        self._response: Any = None
        self._serialized = True

    # ---- the call ----

    def start(self, now: float) -> None:
        """Choose the endpoint and make the attempt's lower call, in the caller's own step.

        It is sent in the loop's next turn, with all others that start in this one: that costs a tenth less.
        """
        channel = self.channel
        action = self.record.begin(now)
        if not isinstance(action, Attempt):
            self._go_on(action)
            return
        self.live = live = LiveAttempt(self, action)
        try:
            live.open()
            if self.span is not None:
                self._headers = live.headers()
        except BaseException as error:
            self.general().execution.abandon(error)
            self._settle(None)
            raise
        channel.departures.send_soon(self)

    def send(self) -> None:
        """Send the attempt. Called by the channel, with all others of one turn, in the caller's `context`."""
        live = self.live
        if live is None or not self._running:  # cancelled meanwhile
            return
        shared = self.record.shared
        if (overdue := shared.overdue) is not None:  # `LiveAttempt.watch`, without its frame
            overdue.add(live, live.attempt.started_at, self.channel)
        try:
            self._steps = live.lower.unary_unary(self._stub.serialize(self._request), self._headers)
            self._batch = self._steps.send(None)
            self._batch.add_done_callback(self._arrived, context=self.context)
            if (hedges := shared.hedges) is not None and self.record.hedge_delay_s() is not None:
                hedges.add(self, live.attempt.started_at, self.channel)
        except BaseException as error:  # noqa: BLE001  # who awaits the call gets it
            self._failed(error)

    def _arrived(self, _: object) -> None:
        """The batch is complete."""
        if self._waiter is not None and self._waiter.cancelled():
            self.cancel()  # whoever awaits the call is cancelled, and would say so in its next step
        live, steps, self._steps = self.live, self._steps, None
        assert live is not None
        response = None
        try:
            try:
                steps.send(None)
            except StopIteration as stop:
                response = stop.value
            self._answered(live, response)
        except BaseException as error:  # noqa: BLE001  # as above
            self._failed(error)

    def _answered(self, live: LiveAttempt, response: bytes | None) -> None:
        if self._general is None:
            status = status_now(live.lower)
            if status.code() == 0:
                now = monotonic()
                if self.record.shared.latency is not None:
                    took(self.record, live.attempt, now)
                live.succeeded(status, now)
                if self.span is not None or self.channel.metrics.on:
                    told(self.channel, self.record, self.span, status)
                self._settle(response)
                return
        general = self.general()
        action = general.execution.answered(live)
        if action is None:
            self._settle(response if general.is_ok() else None)
        else:
            self._go_on(action)

    def __await__(self) -> Generator[Any, None, Any]:
        """The response, or what the call raises."""
        try:
            if self._running and self._task is None:
                waiter = self._waiter
                if waiter is None or waiter.done():
                    waiter = self._waiter = asyncio.get_running_loop().create_future()
                yield from waiter
            if self._task is not None:
                response = yield from self._task
                if self._running:  # the task has just ended, and its callback comes in the loop's next turn
                    self._settle(response)
        except asyncio.CancelledError:
            if not self.cancelled():
                self.cancel()
            raise
        if self._error is not None:
            raise self._error
        general = self._general
        if general is None or general.is_ok():
            if self._serialized:
                self._serialized = False
                self._response = self._stub.deserialize(self._response)
            return self._response
        if general.is_locally_cancelled():
            raise asyncio.CancelledError
        raise _grpcio.rpc_error(general)

    # ---- where it is not as simple ----

    def general(self) -> LogicalCall:
        """The call as a `LogicalCall`, from now on."""
        general = self._general
        if general is None:
            live = self.live
            execution = Execution.taking_over(self, live)
            self._general = general = LogicalCall(execution)
            if live is not None and not self._running:
                execution.recall(status_now(live.lower), headers_now(live.lower))
        return general

    def _go_on(self, action: Action) -> None:
        """What follows takes time: a task."""
        general = self.general()
        general.execution.go_on(self.live, action)
        self._in_task(general.unary_unary(self._stub.serialize(self._request), self.metadata))

    def hedge(self) -> None:
        """The hedging delay has passed without an answer: other attempts may begin beside the first, in a task."""
        live, steps, batch = self.live, self._steps, self._batch
        if live is None or batch.done():
            return  # the answer has just come
        self._steps = None
        batch.remove_done_callback(self._arrived)
        race = self.general().execution.race(self._stub.serialize(self._request), ())
        self._in_task(race.run(live.attempt, _rest(steps, batch)))

    def _in_task(self, coroutine: Coroutine[Any, Any, bytes | None]) -> None:
        if (hedges := self.record.shared.hedges) is not None:
            hedges.remove(self)
        self._task = asyncio.get_running_loop().create_task(coroutine, context=self.context)
        self._task.add_done_callback(self._task_done)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)  # who awaits the call waits for the task from now on

    def _task_done(self, task: asyncio.Task[bytes | None]) -> None:
        self._settle(None if task.cancelled() or task.exception() is not None else task.result())

    def _failed(self, error: BaseException) -> None:
        """The attempt could not be carried out. Whoever awaits the call gets the error; Ctrl-C goes on from here."""
        general = self.general()
        if not general.done():  # else it was cancelled
            general.execution.abandon(error)
            self._error = error
        self._settle(None)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error

    def _settle(self, response: bytes | None) -> None:
        self.channel.departures.running.discard(self)
        if (hedges := self.record.shared.hedges) is not None:
            hedges.remove(self)
        if self._running:
            self._response = response
            self._running = False
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- what else is asked of it ----

    replayable = True

    def rivals(self, lower: LowerCall) -> int:
        """See `Carrier`."""
        return 0 if self._general is None else self._general.execution.rivals(lower)

    def done(self) -> bool:
        """Whether the call has its final status."""
        return not self._running if self._general is None else self._general.done()

    def cancelled(self) -> bool:
        """Whether that status is CANCELLED."""
        return self._general is not None and self._general.cancelled()

    def cancel(self) -> bool:
        """End the call now; False when it has ended."""
        return self._end(_grpcio.LOCALLY_CANCELLED)

    def _end(self, details: str) -> bool:
        general = self.general()
        if general.done():
            return False
        general.cancel(details)
        if self._task is not None:
            self._task.cancel()
        self._settle(None)
        return True

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled. From any thread."""
        self.channel.in_loop(self._end, scopes.CANCELLED)


@types.coroutine
def _rest(steps: Coroutine[Any, Any, bytes | None], batch: Any) -> Generator[Any, None, bytes | None]:
    """What is left of a coroutine that has come as far as its only wait, that for this batch."""
    batch._asyncio_future_blocking = False  # asyncio's protocol: it may be waited for, once more
    try:
        try:
            yield from batch
        except BaseException as error:  # noqa: BLE001  # as if it were awaited itself
            steps.throw(error)
        else:
            steps.send(None)
    except StopIteration as stop:
        response: bytes | None = stop.value
        return response
    raise RuntimeError("grpcio's unary_unary waits twice")
