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

Requests of a stream wait in an `Outbox`, from which another attempt can take them again.

What grpcio or a user's policy raises on the way ends the call with INTERNAL; an attempt is
given back whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import grpc

from lb.aio import _grpcio
from lb.aio._grpcio import EOF, AioRpcStatus
from lb.aio.hedge import Race
from lb.aio.outbox import Outbox
from lb.core import words
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.call import Action, Call, Done, Failed, Method, Pause, Queued
from lb.core.headers import check_types, legal
from lb.core.outcome import OK, PUSHBACK_KEY, REPORT_KEY, Origin, Outcome, Retryable, Verdict, classify
from lb.core.pulse import Pulse
from lb.shared import scopes
from lb.telemetry.metrics import Metrics
from lb.telemetry.spans import Spans

_NO_METADATA: tuple[tuple[str, Any], ...] = ()
CANCELLED = classify(grpc.StatusCode.CANCELLED, origin=Origin.CALLER)
ILLEGAL = AioRpcStatus(grpc.StatusCode.INTERNAL.value[0], "Invalid metadata", (), "")
"""What core says of metadata that cannot be sent."""
_CANCELLED_VALUE = grpc.StatusCode.CANCELLED.value[0]
# The caller's deadline and core's timer are two clocks: this close together they are the same.
_DEADLINE_SLACK_S = 0.02
# Core counts in nanoseconds, 292 years of them: a deadline beyond that has passed, to core.
_BEYOND_CORE_S = 1e9

T = TypeVar("T")

_log = logging.getLogger("lb.channel")


class Owner(Protocol):
    """What a call needs of its channel."""

    @property
    def target(self) -> str:
        """What the channel was made for."""

    @property
    def balancer(self) -> Balancer:
        """Chooses the endpoints."""

    @property
    def tracer(self) -> Spans:
        """Makes the spans."""

    @property
    def metrics(self) -> Metrics:
        """Measures."""

    @property
    def propagate(self) -> bool:
        """Whether calls inherit deadline and cancellation from the incoming call they are made for."""

    @property
    def unbegun(self) -> set[LogicalCall]:
        """Calls that no task has begun to carry out."""

    def in_loop(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call a function in the channel's event loop; from any thread."""

    @property
    def methods(self) -> Mapping[bytes, Method]:
        """What all calls of a method share, of those methods that were called before."""

    def method(self, method: bytes) -> Method:
        """The same, of any method."""

    def attempt_ended(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Take an attempt back."""

    def attempt_answered(self, attempt: Attempt) -> None:
        """A stream's first response came."""

    def attempt_silent(self, attempt: Attempt, now: float) -> None:
        """An attempt had no response for its ``attempt_timeout_s``; the balancer knows."""

    def over(self) -> bool:
        """Whether it is closed: there will be no other attempt."""

    async def changed(self, deadline: float | None) -> bool:
        """Wait for a change of endpoints or connections; False when the deadline came first."""

    @property
    def pulse(self) -> Pulse:
        """For how long the event loop was held."""

    def keep_pulse(self) -> None:
        """Watch that from now on for a while; from any thread."""

    async def place(self, since: float, line_s: float, deadline: float | None, ticket: int | None) -> int | None:
        """Wait in line for a place below the concurrency limit; None when ``line_s`` or the deadline came first.

        ``ticket``: what it returned before, when the place was gone by then; it keeps its place in line.
        """

    def next_in_line(self) -> None:
        """Wake the first call in that line."""


class LogicalCall:
    """What `grpc.aio` calls hold as their ``_cython_call``. Lives in one event loop."""

    call_type: ClassVar[type[Call]] = Call
    """The core's record of it (`lb.sync` puts one with a lock here)."""

    headers_alone_s: ClassVar[float] = 0.02
    """Core hands over the (empty) headers of a status without headers a moment before the status itself."""

    # What a call that succeeds at once neither sets nor reads stands here once, not in each of them. What it
    # reads is set in each: an attribute of the class costs ten times as much to read as one of the instance.
    _locally_cancelled = False
    _committed = False
    _retrying: asyncio.Task[None] | None = None
    _given_up: Any = None
    """The attempt of a stream that another one follows; it stands in ``_real`` until that begins."""
    _timed_out: tuple[Any, ...] = ()
    """Lower calls that were ended because `attempt_timeout_s` passed."""
    _passing_time: asyncio.Task[Any] | None = None
    _last: tuple[Any, Any] = (None, None)
    _arguments: tuple[Any, ...] = ()

    def __init__(
        self,
        channel: Owner,
        method: bytes,
        deadline: float | None,
        credentials: Any,
        wait_for_ready: bool | None,
        registered: bool,
    ) -> None:
        self._channel = channel
        self._method = method
        self._attempt: Attempt | None = None
        self._real: Any = None
        self._status: Any = None
        self._initial_metadata: tuple[Any, ...] | None = None
        self._initial_metadata_waiters: list[asyncio.Future[None]] | None = None
        self._status_waiters: list[asyncio.Future[None]] | None = None
        self._done_callbacks: list[Callable[[], None]] | None = None
        self._outbox: Outbox | None = None
        self._race: Race | None = None
        self._deferred = False
        now = time.monotonic()
        if now > channel.pulse.renew_at:
            channel.keep_pulse()
        settings = channel.methods.get(method) or channel.method(method)
        to_wall_clock = None
        if deadline is not None:
            to_wall_clock = time.time() - now
            deadline -= to_wall_clock  # it is an instant of the wall clock, which may be set
        elif settings.default_timeout_s is not None:
            deadline = now + settings.default_timeout_s
        scope = scopes.current() if channel.propagate else None
        if scope is not None:
            deadline = scope.bound(deadline)
        if settings.timeout_s is not None:
            latest = now + settings.timeout_s
            deadline = latest if deadline is None else min(latest, deadline)
        self._credentials = credentials
        self._registered = registered
        self.call = self.call_type(settings, deadline, wait_for_ready, now)
        # The first attempt's endpoint is chosen and its lower call made here, in the caller's own step,
        # as grpcio makes its own. Made in the task that follows, calls that start together would be
        # written to their connections one by one: that costs a tenth of a call.
        self._span = channel.tracer.call_started(self.call, now)
        self._action: Action | None = None
        if scope is not None:
            scope.add(self)
            if self._status is not None:  # the incoming call is cancelled already
                return
        if channel.balancer.needs_metadata:  # which comes with that task
            self._deferred = True
            return
        try:
            self._action = self.call.begin(now)
        except Exception as error:  # noqa: BLE001  # a user's policy may raise anything
            self._action = self._policy_raised(error)
        if type(self._action) is Attempt:
            self._open_first(self._action, to_wall_clock)

    def _open_first(self, attempt: Attempt, to_wall_clock: float | None) -> None:
        """Make the first attempt's lower call (`lb.sync` does that elsewhere)."""
        self._attempt = attempt
        try:
            self._real = self.lower_call(attempt, to_wall_clock)
        except BaseException as error:
            self._abandon(error)
            raise

    # ---- what grpcio's upper layer asks ----

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once the call has its final status; at once if it has it."""
        if self._status is not None:
            callback()
        elif self._done_callbacks is None:
            self._done_callbacks = [callback]
        else:
            self._done_callbacks.append(callback)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        deadline = self.call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

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
        while self._initial_metadata is None:
            real = self._real
            if real is None or real.done() or self in self._channel.unbegun:
                # An attempt, or the final status, is about to come.
                if self._initial_metadata_waiters is None:
                    self._initial_metadata_waiters = []
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._initial_metadata_waiters.append(waiter)
                await waiter
                continue
            headers = await real.initial_metadata()
            if not headers and not real.done():
                # Who asks for headers gets them when they come, though empty ones look like those
                # of an attempt that has failed: a failure would be told at once.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.headers_alone_s):
                        await real.status()
            if real is self._real and not real.done() and self._initial_metadata is None:
                self._commit(real)
        return self._initial_metadata

    def cancel(self, details: str) -> None:
        """End the call now; the running attempt is cancelled and counts for nothing."""
        if self._status is not None:
            return
        self._locally_cancelled = True
        self._give_back(CANCELLED)
        # Settled first: the attempt's own end, which comes next, must not be taken for a failure.
        self._fail(AioRpcStatus(_CANCELLED_VALUE, details, None, None), _NO_METADATA)
        self._drop_real(details)
        if self._retrying is not None:
            self._retrying.cancel()
        if self._passing_time is not None:  # who cancels may be another than grpcio's upper layer
            self._passing_time.cancel()

    def incoming_cancelled(self) -> None:
        """The incoming call that this one is made for was cancelled. From any thread."""
        self._channel.in_loop(self.cancel, scopes.CANCELLED)

    def set_internal_error(self, error: str) -> None:
        """The upper layer could not go on."""
        if self._status is not None:
            return
        self._broken("Internal error from Core", error)

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
        action = self._action
        if type(action) is Attempt and self._status is None:  # as `_take` does, for most calls
            self._channel.unbegun.discard(self)
            self._action = None
        else:
            action = self._take(metadata)
            if action is None and not self._locally_cancelled and not legal(metadata):
                raise _grpcio.ExecuteBatchError(ILLEGAL.details())  # as core does in this kind of call alone
        if self.call.settings.hedging is not None:
            self._race = Race(self, request, metadata, context)
            return await self._race.run(action)
        while action is not None:
            if type(action) is Attempt:
                try:
                    real = self._real if self._attempt is action else None
                    if real is None:
                        real = self._open_real(action)
                    if (overdue := self.call.settings.overdue) is not None:
                        overdue.add(action, self, real, action.started_at)
                    first = self._span is None and action.number == 1
                    headers = metadata if first else self._headers(action, metadata)
                    response: bytes | None = await real.unary_unary(request, headers, *context)
                except BaseException as error:
                    self._abandon(error)
                    raise
                action = self._answered(real)
                if action is None:
                    return response if self._status.code() == 0 else None
            else:
                action = await self._pass_time(action)
        return None

    async def stream_unary(
        self, metadata: tuple[Any, ...], metadata_sent: Callable[[], None], *context: Any
    ) -> bytes | None:
        """The whole call; ``metadata_sent`` is called when messages may be sent."""
        self._arguments = (None, metadata, context)
        outbox = self._requests()
        outbox.observe(metadata_sent, self._await_response if self._timed else None)
        action = self._take(metadata)
        while action is not None:
            if type(action) is Attempt:
                try:
                    real = self._open_real(action)
                    self._begun()
                    outbox.attach(real)
                    response: bytes | None = await real.stream_unary(
                        self._headers(action, metadata), outbox.metadata_sent, *context
                    )
                except BaseException as error:
                    self._abandon(error)
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
        await self._initiate()

    async def initiate_stream_stream(
        self, metadata: tuple[Any, ...], metadata_sent: Callable[[], None], *context: Any
    ) -> None:
        """Begin; returns with the first attempt's headers. ``metadata_sent``: messages may be sent."""
        self._requests().observe(metadata_sent, self._await_response if self._timed else None)
        self._arguments = (None, metadata, context)
        await self._initiate()

    async def _initiate(self) -> None:
        action = self._take(self._arguments[1])
        await self._open(action)
        while self._retrying is not None and not self._retrying.done():
            await asyncio.wait((self._retrying,))

    async def _open(self, first: Action | None) -> None:
        """Bring an attempt so far that its headers arrived, or end the call."""
        request, metadata, context = self._arguments
        action: Action | None = first
        while type(action) is not Attempt:
            if action is None:
                return
            action = await self._pass_time(action)
        try:
            self._real = real = self.stream_of(self._open_real(action))
            self._begun()
            headers = self._headers(action, metadata)
            if self._outbox is None and self._timed:
                self._await_response(real)
            if self._outbox is None:
                await real.initiate_unary_stream(request, headers, *context)
            else:
                self._outbox.attach(real)
                await real.initiate_stream_stream(headers, self._outbox.metadata_sent, *context)
        except BaseException as error:
            self._abandon(error)
            raise
        if real._initial_metadata:
            if real is self._real and real is not self._given_up:
                self._commit(real)
        else:
            # A status without headers hands over empty ones first, and itself a moment later.
            await asyncio.sleep(0)

    def _status_arrived(self, real: Any) -> None:
        """A streaming attempt ended: for good, or to be followed by another."""
        if real is not self._real:
            return
        action = self._answered(real)
        if action is not None:
            self._given_up = real
            if type(action) is Attempt:  # picked already: whoever cancels before that task runs gives it back
                self._attempt = action
            self._retrying = asyncio.get_running_loop().create_task(self._open_again(action))

    async def _open_again(self, action: Action) -> None:
        self._attempt = None  # begun: from here on the attempt is opened, or never was picked
        try:
            await self._open(action)
        except Exception as error:  # noqa: BLE001  # nobody waits for this task's own result: the call must not hang
            if self._status is None:
                self._abandon(error)

    def receive_serialized_message(self) -> Awaitable[Any]:
        """The next message, or EOF; the status then says why."""
        real = self._real
        if self._committed and real is not None:  # nothing can come in between: no coroutine of ours for each message
            received: Awaitable[Any] = real.receive_serialized_message()
            return received
        return self._receive_first()

    async def _receive_first(self) -> Any:
        """The next message of a call of which nothing was shown yet: another attempt may have to bring it."""
        while True:
            real = self._real
            if real is None:  # no attempt was ever made, and none will be
                return EOF
            message = await real.receive_serialized_message()
            if message is not EOF:
                if real is not self._real or real is self._given_up:
                    continue  # of an attempt that was given up while the message was on its way here
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

    def send_serialized_message(self, message: bytes) -> Awaitable[None]:
        """Send one message; it is awaited, and returns when flow control lets the next one in."""
        return self._requests().send(message)

    async def send_receive_close(self) -> None:
        """Say that no more messages follow."""
        await self._requests().half_close()

    def _requests(self) -> Outbox:
        # Who writes or half-closes need not wait until the call's own task has begun.
        if self._outbox is None:
            self._outbox = Outbox()
        return self._outbox

    # ---- attempts ----

    def _take(self, metadata: tuple[Any, ...]) -> Action | None:
        """The first action, to be carried out by the call's task; None when the call has ended already."""
        self._channel.unbegun.discard(self)
        if self._status is not None:
            self._action = None
            return None
        action: Action | None
        if self._deferred:
            self._deferred = False
            self.call.metadata = metadata
            action = self._ask(self.call.begin, time.monotonic())
        else:
            action, self._action = self._action, None
            if type(action) is Queued:
                self.call.metadata = metadata  # by the time it picks the policy may be another one, that reads them
                if action.line_s is None:
                    # What it waits for may have come between the call's beginning and its task's.
                    action = self._ask(self.call.resume, time.monotonic())
        if type(action) is Attempt:
            if _grpcio.ENDS_ILLEGAL:
                return action
            self._attempt = action  # which `_sendable` gives back
        return action if self._sendable(metadata) else None

    def _sendable(self, metadata: tuple[Any, ...]) -> bool:
        """Whether core would take this metadata. If not, the call ends as core would end it, and waits for nothing."""
        try:
            check_types(metadata)
        except Exception as error:
            self._abandon(error)
            raise
        if legal(metadata):
            return True
        self._broken(ILLEGAL.details(), "")
        self._real = None  # nothing can be read from it
        return False

    def _ask(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T | Failed:
        """Ask the core. It calls a user's policy, and that may raise."""
        try:
            return function(*arguments, **named)
        except Exception as error:  # noqa: BLE001  # as above
            return self._policy_raised(error)

    def _policy_raised(self, error: Exception) -> Failed:
        policy = self._channel.balancer.policy.name
        _log.error("%s: the policy %s failed", self._channel.target, policy, exc_info=error)
        return Failed(grpc.StatusCode.INTERNAL, f"the policy {policy} failed: {error!r}")

    def _open_real(self, attempt: Attempt) -> Any:
        """The attempt's call on its connection, made now unless it was before."""
        if self._attempt is attempt and self._real is not None:
            return self._real
        self._attempt = attempt
        self._real = None  # should the next line raise
        self._real = real = self.lower_call(attempt)
        return real

    def stream_of(self, real: Any) -> Any:
        """The same lower call, for a stream of responses."""
        return _grpcio.ResponseStream(real, self._status_arrived)

    def _begun(self) -> None:
        """Another attempt begins: those who wait for headers wait for its headers from now on."""
        if self._initial_metadata_waiters is not None:
            _wake(self._initial_metadata_waiters)

    def lower_call(self, attempt: Attempt, to_wall_clock: float | None = None) -> Any:
        """A new call of grpcio's lower layer for this attempt. ``to_wall_clock``: how far ahead that clock is."""
        deadline = self.call.deadline
        if deadline is not None:  # core makes it at once an instant of its own monotonic clock
            deadline += time.time() - time.monotonic() if to_wall_clock is None else to_wall_clock
        # Waiting for a connection is done here, over all endpoints: core must not wait for this one.
        return attempt.candidate.handle.call(self._method, deadline, self._credentials, False, self._registered)

    @property
    def _timed(self) -> bool:
        return self.call.settings.overdue is not None

    def _await_response(self, real: Any) -> None:
        """The requests are sent: from now on the attempt's time-out counts, until the first response."""
        overdue, attempt = self.call.settings.overdue, self._attempt
        if overdue is not None and attempt is not None and real is self._real and not self._committed:
            overdue.add(attempt, self, real, time.monotonic())

    def in_loop(self, function: Callable[[], object]) -> None:
        """Call it in the channel's event loop; from any thread."""
        self._channel.in_loop(lambda _: function(), None)

    def attempt_overdue(self, attempt: Attempt, real: Any) -> None:
        """`attempt_timeout_s` has passed without a response to the attempt, whose lower call is ``real``."""
        if attempt.ended_at is not None or self._status is not None or real.done():
            return
        now = time.monotonic()
        replayable = self._outbox is None or self._outbox.replayable
        rivals = 0 if self._race is None else self._race.rivals(real)
        if self.call.overdue(attempt, now, replayable=replayable, running=rivals):
            self._timed_out = (*self._timed_out, real)
            real.cancel("attempt timeout")
            return
        if self.call.error is not None:
            _log.error("%s: %s", self._channel.target, self.call.error, exc_info=self.call.error)
            self.call.error = None
        self._channel.attempt_silent(attempt, now)

    def in_time(self, real: Any) -> Any:
        """The status of an attempt that did not end OK; in our own words if it was given up."""
        if not self._timed_out or real not in self._timed_out:
            return real._status
        limit = self.call.settings.retry.attempt_timeout_s
        details = f"no response within the attempt's timeout of {limit:g} s"
        return AioRpcStatus(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], details, (), "")

    def _headers(self, attempt: Attempt, metadata: tuple[Any, ...]) -> tuple[Any, ...]:
        """The metadata that this attempt sends."""
        if attempt.number > 1 and (previous := self.call.previous(attempt)):
            metadata = (*metadata, ("grpc-previous-rpc-attempts", str(previous)))
        if self._span is not None:
            metadata = self._channel.tracer.attempt_started(self._span, self.call, attempt, metadata)
        return metadata

    def _answered(self, real: Any) -> Action | None:
        """An attempt has its status: settle the call with it (None), or say what follows."""
        if self._status is not None:  # cancelled while the answer was on its way
            return None
        status = real._status
        if self._channel.balancer.report is not None and self._attempt is not None:
            self.report(self._attempt, status)
        if status.code() == 0:
            attempt = self._attempt
            if attempt is not None:
                self._attempt = None
                self.hand_back(attempt, OK, time.monotonic())
            self._settle(status, real._initial_metadata)
            return None
        now = time.monotonic()
        attempt = self._attempt
        status = _grpcio.as_with_core_retries(self.in_time(real))
        outcome = self.outcome(attempt, real, status, now)
        self._give_back(outcome, now)
        replayable = True
        if self._outbox is not None:
            replayable = self._outbox.replayable
            self._outbox.detach()
        # Core gives empty headers for a status without headers too; only filled ones prove a response.
        # And on a closed channel there is no other attempt (under interceptors a call may outlive its channel).
        committed = self._committed or bool(real._initial_metadata) or self._channel.over()
        running = 0 if self._race is None else self._race.running
        action = self._ask(self.call.ended, outcome, now, committed=committed, replayable=replayable, running=running)
        self._last = (status, real._initial_metadata)
        if type(action) is Done:
            if self.call.error is not None:
                _log.error("%s: %s", self._channel.target, self.call.gave_up, exc_info=self.call.error)
            elif _log.isEnabledFor(logging.DEBUG):
                call = self.call
                _log.debug("%s: %s fails: %s; tried %s", self._channel.target, call.method, call.gave_up, call.tried())
            self._fail(status, real._initial_metadata)
            return None
        return action

    def _metadata(self) -> Sequence[Any]:
        """What the caller sends, as far as it matters: without a stream, core's refusal is an error of its own."""
        return self._arguments[1] if self._arguments else ()

    def stands(self, attempt: Attempt, real: Any) -> bool:
        """Whether the connection that an attempt was sent on stands at this moment."""
        connected: bool = attempt.candidate.handle.connected()
        return connected

    def outcome(self, attempt: Attempt | None, real: Any, status: Any, now: float) -> Outcome:
        """What came of an attempt that did not end OK."""
        code = _grpcio.STATUS_CODES[status.code()]
        details = status.details() or ""
        origin = Origin.PEER
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            remaining = self.time_remaining()
            if real in self._timed_out:
                origin = Origin.ATTEMPT_TIMEOUT
            elif remaining is not None and not _DEADLINE_SLACK_S < remaining < _BEYOND_CORE_S:
                origin = Origin.CALLER
        elif code is grpc.StatusCode.UNAVAILABLE and attempt is not None:
            if not _grpcio.of_server(real):
                origin = words.origin(
                    details,
                    attempt.candidate,
                    started_at=attempt.started_at,
                    ended_at=now,
                    stands=self.stands(attempt, real),
                )
                if origin is Origin.CLOSING:
                    attempt.candidate.handle.doubt()
        elif code is grpc.StatusCode.INTERNAL and not legal(self._metadata()):
            origin = Origin.CALLER  # core refused to send it
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
        self.hand_back(attempt, outcome, time.monotonic() if now is None else now)

    def hand_back(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Return an attempt to the balancer, with what came of it."""
        if (overdue := self.call.settings.overdue) is not None:
            overdue.running.pop(attempt, None)
        try:
            self._channel.attempt_ended(attempt, outcome, now)
        except Exception:  # noqa: BLE001  # the hook of a user's policy may raise anything
            _log.exception("%s: the policy %s failed", self._channel.target, self._channel.balancer.policy.name)
        if attempt.span is not None:
            self._channel.tracer.attempt_ended(attempt)
        metrics = self._channel.metrics
        if metrics.on:
            metrics.attempt_ended(self.call, attempt)

    def report(self, attempt: Attempt, status: Any) -> None:
        """Hand a server's load report to the policy that reads them. Not one that comes with an error."""
        if status.code() != 0:
            return
        take = self._channel.balancer.report
        for key, value in status.trailing_metadata() or ():
            if key == REPORT_KEY and take is not None:
                try:
                    take(attempt.candidate, value, time.monotonic())
                except Exception:  # noqa: BLE001  # what a server sends may be anything
                    _log.exception("%s: cannot read the load report of %s", self._channel.target, attempt.endpoint_id)

    def _abandon(self, error: BaseException) -> None:
        """A running attempt was cancelled, or grpcio could not carry it out."""
        if isinstance(error, asyncio.CancelledError):
            self._give_back(CANCELLED)
            real, self._real = self._real, None
            # Forgotten first: its own end must not settle the call, which the upper layer is about to cancel.
            if real is not None and not real.done():
                real.cancel("Locally cancelled by application!")
        else:
            self._broken(f"{type(error).__name__}: {error}", repr(error))

    def _broken(self, details: str, debug: str) -> None:
        """End the call with INTERNAL; that says nothing of the endpoint."""
        self._give_back(Outcome(grpc.StatusCode.INTERNAL, Verdict.IGNORED, Retryable.NEVER, Origin.CALLER, details))
        self._fail(AioRpcStatus(grpc.StatusCode.INTERNAL.value[0], details, (), debug), _NO_METADATA)
        self._drop_real(details)

    def _drop_real(self, details: str) -> None:
        real = self._real
        if real is not None and not real.done():
            real.cancel(details)

    async def _pass_time(self, action: Action) -> Action | None:
        """Wait as told and ask again; None when the call ended instead."""
        self._passing_time = asyncio.current_task()
        try:
            return await self._pass(action)
        finally:
            self._passing_time = None

    async def _pass(self, action: Action) -> Action | None:
        if type(action) is Pause:
            await asyncio.sleep(action.delay_s)
        if type(action) in (Pause, Queued) and self._channel.over():
            # Closing cancels what the channel knows; an interceptor may have made calls that it does not.
            self._fail(AioRpcStatus(_CANCELLED_VALUE, _grpcio.CHANNEL_CLOSED, (), ""), _NO_METADATA)
            return None
        if type(action) is Pause:
            return self._ask(self.call.resume, time.monotonic())
        if type(action) is Queued and action.line_s is not None:
            return await self._in_line(action.line_s)
        if type(action) is Queued:
            if await self._channel.changed(self.call.deadline):
                return self._ask(self.call.resume, time.monotonic())
            action = self.call.expired(time.monotonic())
        if type(action) is Failed:
            tried = self.call.tried()
            status = AioRpcStatus(action.code.value[0], action.details, (), f"tried: {tried}" if tried else "")
            self._fail(status, _NO_METADATA)
            return None
        # Done, from `resume` after a failed attempt: nothing is left to try.
        self._fail(*self._last)
        return None

    async def _in_line(self, line_s: float) -> Action | None:
        """Wait for a place below the concurrency limit; what follows."""
        deadline = self.call.deadline
        since = time.monotonic()
        ticket = None
        while (ticket := await self._channel.place(since, line_s, deadline, ticket)) is not None:
            action = self._ask(self.call.resume, time.monotonic())
            if type(action) is not Queued or action.line_s is None:
                self._channel.next_in_line()  # there may be room for more than one
                return action
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return self.call.expired(now)
        return self.call.refused()

    def _commit(self, real: Any) -> None:
        """The caller sees this attempt's answer: there will be no other."""
        self._committed = True
        self._arguments = ()
        if self._attempt is not None:
            if (overdue := self.call.settings.overdue) is not None:
                overdue.running.pop(self._attempt, None)
            self._channel.attempt_answered(self._attempt)
        if self._outbox is not None:
            self._outbox.forget()
        if self._initial_metadata is None:
            self._initial_metadata = real._initial_metadata or _NO_METADATA
            _wake(self._initial_metadata_waiters)

    def _fail(self, status: Any, initial_metadata: tuple[Any, ...] | None) -> None:
        """The call has its final status, of which grpcio's upper layer makes an error."""
        self._settle(_Failure(status, self.call.attempts), initial_metadata)

    def _settle(self, status: Any, initial_metadata: tuple[Any, ...] | None) -> None:
        """The call has its final status."""
        if self._status is not None:
            return
        self._status = status
        if self.call._queued:
            self.call.leave_line()
        if self._race is not None:
            self._race.stop()
        if self._initial_metadata is None:
            self._initial_metadata = initial_metadata or _NO_METADATA
            if self._initial_metadata_waiters is not None:
                _wake(self._initial_metadata_waiters)
        if self._status_waiters is not None:
            _wake(self._status_waiters)
        if self._outbox is not None:
            self._outbox.settled()
        metrics = self._channel.metrics
        if metrics.on:
            metrics.call_ended(self.call, _grpcio.STATUS_CODES[status.code()], self._span)
        span = self._span
        if span is not None and not isinstance(span, tuple):  # a tuple: there is none, only headers
            self._channel.tracer.call_ended(span, self.call, _grpcio.STATUS_CODES[status.code()], status.details())
        if self._done_callbacks is not None:
            callbacks, self._done_callbacks = self._done_callbacks, None
            for callback in callbacks:
                callback()


class Told(str):
    """The debug string of a failed call, with its attempts: all of ours that grpcio's errors keep.

    A copy is the same, and what is pickled is the text.
    """

    __slots__ = ("attempts",)
    attempts: list[Attempt]

    def __copy__(self) -> Told:
        return self

    def __deepcopy__(self, memo: object) -> Told:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class _Failure:
    """A status as grpcio's upper layer makes its error of: with the attempts in its debug string."""

    __slots__ = ("_attempts", "_status", "code", "details", "trailing_metadata")

    def __init__(self, status: Any, attempts: list[Attempt]) -> None:
        self._status = status
        self._attempts = attempts
        self.code = status.code
        self.details = status.details
        self.trailing_metadata = status.trailing_metadata

    def debug_error_string(self) -> Told | None:
        """See ``AioRpcStatus``."""
        words = self._status.debug_error_string()
        if words is None:
            return None
        told = Told(words)
        told.attempts = self._attempts
        return told


def _wake(waiters: list[asyncio.Future[None]] | None) -> None:
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)


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
