"""A call carried out: its attempts one after another, from the first choice of an endpoint to the final status.

The drivers ask it for the next step and tell it what came of the last one: the loops of `lb.aio.calls` for one
response, `lb.aio.responses` for a stream of them, `lb.aio.hedge` for attempts beside each other. What follows an
attempt is decided by `lb.core.call`; this file performs it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc

from lb.aio import _grpcio, between
from lb.aio._grpcio import AioRpcStatus, headers_now, status_now
from lb.aio.attempt import CANCELLED, LiveAttempt
from lb.aio.errors import FailedStatus
from lb.aio.hedge import Race
from lb.aio.outbox import Outbox
from lb.aio.protocols import Carrier, LowerCall, Metadata, Owner
from lb.aio.records import log_raised, told
from lb.aio.result import NO_METADATA, Result
from lb.core.attempt import Attempt
from lb.core.call import Action, Call, Done, Queued
from lb.core.headers import check_types, legal
from lb.shared.scopes import Scope

ILLEGAL = AioRpcStatus(grpc.StatusCode.INTERNAL.value[0], "Invalid metadata", (), "")
"""What core says of metadata that cannot be sent."""

_log = logging.getLogger("lb.channel")


class Execution:
    """One call's attempts, and its `Result`. Lives in one event loop."""

    inherited: Scope | None = None
    """The incoming call that it is made for."""

    def __init__(
        self,
        channel: Owner,
        method: bytes,
        record: Call,
        *,
        credentials: Any = None,
        registered: bool = False,
        span: Any = None,
        metadata: Metadata = NO_METADATA,
    ) -> None:
        self.channel = channel
        self.method = method
        self.record = record
        self.credentials = credentials
        self.registered = registered
        self.span = span
        self.metadata = metadata
        self.result = Result()
        self.live: LiveAttempt | None = None
        """The latest attempt of the call's own task, running or not."""
        self.last: tuple[Any, Any] = (None, None)
        """What the last attempt that failed ended with: status and headers."""
        self.committed = False
        """Whether the caller saw an attempt's answer: there will be no other."""
        self._outbox: Outbox | None = None
        self._race: Race | None = None
        self._action: Action | None = None
        self._deferred = False
        """Whether the first endpoint is to be chosen once the metadata is known."""
        self._waiting: asyncio.Task[Any] | None = None

    def done(self) -> bool:
        """Whether the call has its final status."""
        return self.result.status is not None

    def is_ok(self) -> bool:
        """Whether that status is OK."""
        status = self.result.status
        return status is not None and status.code() == 0

    @property
    def waits(self) -> bool:
        """Whether the call's task waits for something between attempts."""
        return self._waiting is not None

    # ---- its attempts ----

    def requests(self) -> Outbox:
        """The requests of a stream. Who writes or half-closes need not wait until the call's own task has begun."""
        if self._outbox is None:
            self._outbox = Outbox()
        return self._outbox

    def race(self, request: bytes, context: tuple[Any, ...]) -> Race:
        """Its attempts run beside each other, from now on."""
        self._race = race = Race(self, request, context)
        return race

    def begin(self, now: float) -> None:
        """Choose the first attempt's endpoint, and make its lower call; its task goes on from there (`take`).

        In the caller's own step, as grpcio makes its own. Made in the task that follows, calls that start together
        would be written to their connections one by one: that costs a tenth of a call.
        """
        if self.channel.balancer.needs_metadata:  # which comes with that task
            self._deferred = True
            return
        self._action = action = self.record.begin(now)
        if isinstance(action, Attempt):
            try:
                self.hold(action).open()
            except BaseException as error:
                self.abandon(error)
                raise

    @classmethod
    def taking_over(cls, carrier: Carrier, live: LiveAttempt | None) -> Execution:
        """What carries out the rest of a call that began elsewhere, with its attempt so far."""
        made = cls(
            carrier.channel,
            carrier.method,
            carrier.record,
            credentials=carrier.credentials,
            registered=carrier.registered,
            span=carrier.span,
            metadata=carrier.metadata,
        )
        made.live = live
        return made

    def go_on(self, live: LiveAttempt | None, action: Action | None) -> None:
        """Take over a call that began elsewhere: its attempt so far, and what is to follow (in `unary_unary`)."""
        self.live = live
        self._action = action
        if isinstance(action, Attempt) and (live is None or live.attempt is not action):
            self.hold(action)

    def take(self, metadata: Metadata) -> Action | None:
        """The first action, to be carried out by the call's task; None when the call has ended already."""
        if self.inherited is not None:
            metadata = self.inherited.headers(metadata)
        self.metadata = metadata
        action, self._action = self._action, None
        if self.done():
            return None
        if self._deferred:
            self._deferred = False
            self.record.will_send(metadata)
            action = self.record.begin(time.monotonic())
        elif isinstance(action, Queued):
            self.record.will_send(metadata)  # by the time it picks the policy may be another one, that reads them
            if action.line_s is None:
                # What it waits for may have come between the call's beginning and its task's.
                action = self.record.resume(time.monotonic())
        if isinstance(action, Attempt):
            if _grpcio.ENDS_ILLEGAL:
                return action
            self.hold(action)  # which `_sendable` gives back
        return action if self._sendable(metadata) else None

    def _sendable(self, metadata: Metadata) -> bool:
        """Whether core would take this metadata. If not, the call ends as core would end it, and waits for nothing."""
        try:
            check_types(metadata)
        except Exception as error:
            self.abandon(error)
            raise
        if legal(metadata):
            return True
        self.broken(ILLEGAL.details(), "")
        self.live = None  # nothing can be read from it
        return False

    def hold(self, attempt: Attempt) -> LiveAttempt:
        """Make this attempt the call's current one: whoever ends the call gives it back."""
        live = self.live
        if live is None or live.attempt is not attempt:
            live = self.live = LiveAttempt(self, attempt)
        return live

    def release(self) -> None:
        """Give back the current attempt, which counts for nothing."""
        if self.live is not None:
            self.live.give_back(CANCELLED, time.monotonic())

    @property
    def sent(self) -> bool:
        """Whether an attempt is under way in core."""
        return self.live is not None and self.live.lower is not None and not self.live.lower.done()

    def opened(self, attempt: Attempt) -> LiveAttempt:
        """The same, with its lower call."""
        live = self.hold(attempt)
        live.open()
        return live

    def await_response(self, lower: LowerCall) -> None:
        """The requests are sent: from now on the attempt's time-out counts, until the first response."""
        live = self.live
        if live is not None and lower is live.lower and live.running and not self.committed:
            live.watch(time.monotonic())

    @property
    def replayable(self) -> bool:
        """Whether the whole request is still at hand."""
        return self._outbox is None or self._outbox.replayable

    def rivals(self, lower: LowerCall) -> int:
        """How many attempts run beside this one that were not given up."""
        race, own = self._race, self.live
        if race is None:
            return 0
        beside = own is not None and own.running and own.lower is not lower and not own.timed_out
        return race.rivals(lower) + beside

    def commit(self, live: LiveAttempt) -> None:
        """The caller sees this attempt's answer."""
        self.committed = True
        if live.running:
            live.unwatch()
            self.channel.attempt_answered(live.attempt)
        if self._outbox is not None:
            self._outbox.forget()
        self.result.show(headers_now(live.lower))

    def answered(self, live: LiveAttempt) -> Action | None:
        """An attempt has its status: settle the call with it (None), or say what follows."""
        if self.done():  # cancelled while the answer was on its way
            return None
        status = status_now(live.lower)
        if status.code() == 0:
            live.succeeded(status, time.monotonic())
            self.settle(status, headers_now(live.lower))
            return None
        action = self.judged(live, time.monotonic())
        if isinstance(action, Done):
            self.fail(*self.last)
            return None
        return action

    def judged(self, live: LiveAttempt, now: float) -> Action:
        """An attempt has failed: give it back, and ask what follows. `Done`: the call ends as it did (`end_as`)."""
        status, headers = live.status(), headers_now(live.lower)
        outcome = live.outcome(status, now)
        replayable = self.replayable
        if self._outbox is not None:
            self._outbox.detach()
        # Core gives empty headers for a status without headers too; only filled ones prove a response.
        # And on a closed channel there is no other attempt (under interceptors a call may outlive its channel).
        committed = self.committed or bool(headers) or self.channel.over()
        running, own = 0, self.live
        if self._race is not None:
            running = self._race.running + (own is not None and own is not live and own.running)
        action = live.failed(outcome, now, committed=committed, replayable=replayable, running=running)
        record = self.record
        self.last = (status, headers)
        if isinstance(action, Done):
            log_raised(self.channel, action)
            if _log.isEnabledFor(logging.DEBUG):
                target = self.channel.target
                _log.debug("%s: %s fails: %s; tried %s", target, record.method, record.gave_up, record.tried())
        return action

    def cancel(self, details: str) -> None:
        """End the call now; the running attempt is cancelled and counts for nothing."""
        live = self.live
        self.release()
        # Settled first: the attempt's own end, which comes next, must not be taken for a failure.
        self.fail(AioRpcStatus(grpc.StatusCode.CANCELLED.value[0], details, None, None), NO_METADATA)
        if live is not None:
            live.cancel(details)
        if self._waiting is not None:  # who cancels may be another than grpcio's upper layer
            self._waiting.cancel()

    def abandon(self, error: BaseException) -> None:
        """A running attempt was cancelled, or grpcio could not carry it out."""
        if not isinstance(error, asyncio.CancelledError):
            self.broken(f"{type(error).__name__}: {error}", repr(error))
            return
        # Forgotten first: its own end must not settle the call, which the upper layer is about to cancel.
        live, self.live = self.live, None
        if live is not None:
            live.give_back(CANCELLED, time.monotonic())
            live.cancel("Locally cancelled by application!")

    def broken(self, details: str, debug: str) -> None:
        """End the call with INTERNAL; that says nothing of the endpoint."""
        live = self.live
        if live is not None:
            live.broken(details)
        self.fail(AioRpcStatus(grpc.StatusCode.INTERNAL.value[0], details, (), debug), NO_METADATA)
        if live is not None:
            live.cancel(details)

    # ---- between attempts ----

    async def wait(self, action: Action) -> Action | None:
        """Wait as told and ask again; None when the call ended instead."""
        self._waiting = asyncio.current_task()
        try:
            return await between.pass_time(self, action)
        finally:
            self._waiting = None

    # ---- its end ----

    def end_as(self, live: LiveAttempt) -> None:
        """The call ends as this attempt did."""
        status = status_now(live.lower)
        if status.code() == 0:
            self.settle(status, headers_now(live.lower))
        else:
            self.fail(live.status(), headers_now(live.lower))

    def recall(self, status: Any, initial_metadata: Metadata | None) -> None:
        """It had ended so, before this object was made."""
        self.result.settle(status, initial_metadata)

    def fail(self, status: Any, initial_metadata: Metadata | None) -> None:
        """The call has its final status, of which grpcio's upper layer makes an error."""
        self.settle(FailedStatus(status, self.record.attempts), initial_metadata)

    def settle(self, status: Any, initial_metadata: Metadata | None) -> None:
        """The call has its final status."""
        if self.done():
            return
        self.result.settle(status, initial_metadata)
        self.record.settled()
        if self._race is not None:
            self._race.stop()
        if self._outbox is not None:
            self._outbox.settled()
        told(self.channel, self.record, self.span, status)
        self.result.call_back()
