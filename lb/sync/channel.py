"""`channel`: a ``grpc.Channel`` that chooses among a service's instances itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import grpc

from lb.aio._grpcio import UsageError, on_monotonic_clock, on_wall_clock
from lb.aio.channel import LogicalChannel as AioLogicalChannel
from lb.core import checks
from lb.core.attempt import Attempt
from lb.core.breaker import Breaker
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.endpoint import Resolver
from lb.core.hedging import Hedging
from lb.core.outcome import Outcome
from lb.core.policies import Policy, resolve
from lb.core.retry import Retry
from lb.core.settings import NOT_COPIED, MethodSettings, channel_options, settings
from lb.core.snapshot import Snapshot
from lb.shared import fork, threads
from lb.sync import _grpcio, loop
from lb.sync.calls import Batch, BlockingCall, Handle, Locked, LoopCall, cooperative
from lb.sync.locked import LockedBalancer
from lb.sync.sizes import SizedBlockingCall, SizedLocked
from lb.sync.subchannel import Subchannel


def channel(
    target: str | Resolver,
    *,
    policy: Policy | str | None = None,
    retry: Retry | Literal[False] | None = None,
    breaker: Breaker | Literal[False] | None = None,
    hedging: Hedging | Literal[False] | None = None,
    limit: ConcurrencyLimit | Literal[False] | None = None,
    ejection: Ejection | None = None,
    connection: Connection | None = None,
    health: str | None = None,
    service_config: str | Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    methods: Mapping[str, MethodSettings] | None = None,
    propagate: bool = True,
    measure_sizes: bool = False,
    measure_endpoints: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[Any] | None = None,
) -> Channel:
    """A channel to a service, for all four kinds of call, for threads. It connects at its first use.

    Args:
        target: as of `lb.aio.channel`, and so are all arguments up to ``measure_endpoints``. A resolver of
            the user's own is started and closed in the library's background thread, in which an event
            loop runs; a policy is asked under the channel's lock, in whichever thread calls.
        policy: see `lb.aio.channel`.
        retry: see there.
        breaker: see there.
        hedging: see there.
        limit: see there.
        ejection: see there.
        connection: see there.
        health: see there.
        service_config: see there.
        timeout_s: see there.
        methods: see there.
        propagate: see there.
        measure_sizes: see there.
        measure_endpoints: see there.
        credentials: as of ``grpc.secure_channel``; None for plain text.
        options: channel options as in ``grpc.insecure_channel``, for the connection to each endpoint.
        compression: as there; also for the connection to each endpoint.
        interceptors: as of ``grpc.intercept_channel``. They see a call once, however many attempts it takes.

    Raises:
        ValueError: a bad target, policy name, setting or service config.
        TypeError: an object of a wrong kind, or bad channel options (as grpcio raises it).
        RuntimeError: this process was forked from one in which such a channel was at work (see docs/operating.md).
    """
    if fork.lost():
        raise RuntimeError(fork.FORKED)
    given_interceptors = checks.sequence("interceptors", interceptors, "a sequence of grpc's client interceptors")
    python_options, core_options = _grpcio.separate_options(channel_options(options))
    inner = InLoop(
        target,
        settings=settings(
            policy=policy,
            retry=retry,
            breaker=breaker,
            hedging=hedging,
            limit=limit,
            ejection=ejection,
            connection=connection,
            health=health,
            service_config=service_config,
            timeout_s=timeout_s,
            methods=methods,
            propagate=propagate,
            measure_sizes=measure_sizes,
            measure_endpoints=measure_endpoints,
            options=tuple(core_options),
        ),
        credentials=credentials,
        options=tuple(core_options),
        compression=compression,
    )
    return Channel(LogicalChannel(inner, secure=credentials is not None), python_options, given_interceptors)


class Channel(grpc.Channel):
    """What `channel` returns: a ``grpc.Channel``, with a look inside."""

    def __init__(
        self, logical: LogicalChannel, options: Sequence[tuple[str, Any]], interceptors: Sequence[Any]
    ) -> None:
        self._logical = logical
        upper = _grpcio.UpperChannel(logical, logical.inner.target, options)  # type: ignore[abstract]
        self._upper = grpc.intercept_channel(upper, *interceptors)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.stream_stream(*args, **kwargs)

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """See ``grpc.Channel``: the whole set's connectivity, by gRPC's aggregation rule."""
        self._upper.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """See ``grpc.Channel``."""
        self._upper.unsubscribe(callback)

    def close(self) -> None:
        """End running calls with CANCELLED, and close all connections. Idempotent."""
        self._upper.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        """The endpoints as the channel sees them now, and why each is or is not picked.

        ``str()`` of it is a table; ``as_dict()`` is ready for JSON.
        """
        return self._logical.inner.snapshot()

    def change_policy(self, policy: Policy | str) -> None:
        """Choose by another policy from the next call on; running calls are not touched."""
        self._logical.inner.balancer.change_policy(resolve(policy))

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next call on these weights hold, by endpoint id, whatever the resolver says of them.

        The mapping replaces the one before; ``{}`` gives the resolver its word back. Raises
        ``ValueError`` for a weight that is no whole number >= 0.
        """
        self._logical.inner.change_weights(weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED.format(self))

    def __repr__(self) -> str:
        return f"<lb.sync.Channel {self._logical.inner.target}>"


class InLoop(AioLogicalChannel):
    """The asyncio channel that lives in the background loop, with a lock around its balancer."""

    balancer_type = LockedBalancer
    call_types = (Locked, SizedLocked)
    subchannel_type = Subchannel
    balancer: LockedBalancer

    def start(self) -> None:
        """Begin to resolve and connect. In the loop."""
        self._start()

    def let_go(self) -> bool:
        """See `LogicalChannel.let_go`, which is asked for both."""
        return True

    def attempt_ended(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Give an attempt back; from any thread."""
        try:
            self.balancer.ended(attempt, outcome, now)
        finally:  # a policy's hook may raise
            if attempt.candidate.breaker.last is not None:
                self._breaker_moved(attempt.candidate, now)
            if attempt.candidate.retired and attempt.candidate.closable:
                self.in_loop(self._close_subchannel, attempt.candidate)
            if self.balancer.waiting:
                # The line of those that wait for a place belongs to the loop. Who has just been told to wait
                # and is not in it yet finds the place by itself (`place`).
                self.in_loop(_next_in_line, self)

    def snapshot(self) -> Snapshot:
        """See `Channel.snapshot`."""
        with self.balancer.lock:
            return super().snapshot()


def _next_in_line(channel: InLoop) -> None:
    channel.next_in_line()


_LET_GO_S = 2.0


class _Watched:
    """What `LogicalChannel.watch_connectivity_state` came to."""

    __slots__ = ("success",)

    def __init__(self, success: bool) -> None:
        self.success = success


class LogicalChannel:
    """In the place of grpcio's ``cygrpc.Channel``: hands calls out to threads and the loop.

    It belongs to the process that used it first.
    """

    def __init__(self, inner: InLoop, *, secure: bool) -> None:
        self.inner = inner
        self.secure = secure
        self._blocking_type = SizedBlockingCall if inner.settings.measure_sizes else BlockingCall
        self.closed_reason = ""
        self._events: Any = None
        self._lock = threads.rlock()
        self._loop: loop.LoopThread | None = None
        self._running: set[Any] = set()

    # ---- calls ----

    def segregated_call(
        self,
        flags: int,
        method: bytes,
        host: Any,
        deadline: float | None,
        metadata: Any,
        credentials: Any,
        batches: Sequence[Batch],
        context: Any = None,
        registered_call_handle: int | None = None,
    ) -> Any:
        """A call whose caller waits for its events."""
        if self.closed_reason:
            raise ValueError(self._why_closed(_grpcio.CLOSED))
        registered = bool(registered_call_handle)
        arguments = (flags, method, host, metadata, context)
        if len(batches) == 1:
            return self._blocking_type(self, arguments, deadline, credentials, batches[0][0], registered)
        self.must_wait()
        return Handle(LoopCall(self, arguments, deadline, credentials, batches, registered, threads.mailbox()))

    def integrated_call(
        self,
        flags: int,
        method: bytes,
        host: Any,
        deadline: float | None,
        metadata: Any,
        credentials: Any,
        batches: Sequence[Batch],
        context: Any = None,
        registered_call_handle: int | None = None,
    ) -> Handle:
        """A call whose events go to `next_call_event`."""
        if self.closed_reason:
            raise ValueError(self._why_closed())
        arguments = (flags, method, host, metadata, context)
        registered = bool(registered_call_handle)
        if self._events is None:
            self._used()
        return Handle(LoopCall(self, arguments, deadline, credentials, batches, registered, self._events))

    def next_call_event(self) -> Any:
        """The next event of any integrated call; waits for it."""
        return self._events.get()

    def get_registered_call_handle(self, method: bytes) -> int:
        """Not a handle (those belong to one connection), only "it is registered"."""
        return self.inner.get_registered_call_handle(method)

    def _why_closed(self, words: str = "") -> str:
        """What grpcio says of a closed channel; ``words`` where it says something else of blocking calls."""
        return (
            words
            if words and self.closed_reason not in (fork.FORKED, fork.LEFT)
            else f"Cannot invoke RPC: {self.closed_reason}"
        )

    # ---- the loop ----

    def begin(self, call: Any, function: Callable[..., object], *arguments: Any) -> bool:
        """Call it in the loop, on behalf of a call that runs from now on; False when the channel is closed."""
        return self._used().soon(self._begin, call, function, arguments)

    def _begin(self, call: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._running.add(call)
        if self.closed_reason:  # meanwhile: the call finds itself ended
            call.end(_grpcio.CANCELLED, self.closed_reason)
        else:
            self.inner.start()
        function(*arguments)

    def ended(self, call: Any) -> None:
        """A call is over. In the loop."""
        self._running.discard(call)

    def must_wait(self) -> None:
        """The caller is about to wait for the loop. Raises ``RuntimeError`` in the loop's own thread."""
        if self._used().here():
            raise RuntimeError(
                f"channel {self.inner.target}: a resolver or policy waits for a call in the library's own thread,"
                " which carries out calls; make it in a thread of your own"
            )

    def in_loop(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call it in the loop, if there is one. From any thread, also from a finalizer."""
        used = self._loop
        return used is not None and used.soon(function, *arguments)

    def _used(self) -> loop.LoopThread:
        """The loop, from the first use on."""
        used = self._loop
        if used is None:
            with self._lock:
                if self.closed_reason:
                    raise ValueError(self._why_closed())
                used = self._loop
                if used is None:
                    self._events = threads.mailbox()
                    if threads.green():
                        self._blocking_type = cooperative(self._blocking_type)
                    used = self._loop = loop.acquire()
                    fork.remember(self)
        return used

    # ---- connectivity ----

    def check_connectivity_state(self, try_to_connect: bool) -> int:
        """The whole set's state, as grpcio numbers it: as it was before this call made it connect."""
        if self.closed_reason:
            raise ValueError(self._why_closed())
        state = self.inner.check_connectivity_state(False)
        if try_to_connect:
            self._used().soon(self.inner.check_connectivity_state, True)
        return state

    def watch_connectivity_state(self, last_observed: int, deadline: float | None) -> Any:
        """Wait until the state is another; the event's ``success`` is False at the deadline (wall clock)."""
        if self.closed_reason:
            raise ValueError(f"Cannot monitor channel state: {self.closed_reason}")
        observed = self._changed(last_observed, on_monotonic_clock(deadline))
        return _Watched(bool(self._used().wait(observed)))

    async def _changed(self, last_observed: int, deadline: float | None) -> bool:
        # Not before the first use of the set, which no watch is.
        try:
            return await self.inner.watch_connectivity_state(last_observed, on_wall_clock(deadline))
        except UsageError:  # closed
            return False

    # ---- life ----

    def close(self, code: int, details: str) -> None:
        """End running calls with this status and close everything. Idempotent; from any thread."""
        with self._lock:  # two threads may close it, or another use it for the first time just now
            if self.closed_reason:
                return
            self.closed_reason = details
            used = self._loop
        if used is not None:
            used.soon(self._close, code, details)

    def _close(self, code: int, details: str) -> None:
        for call in list(self._running):
            call.end(code, details)
        self.inner.close()
        asyncio.get_running_loop().create_task(self._closed(), name=loop.CLOSING)

    async def _closed(self) -> None:
        await self.inner.wait_closed()
        used = self._loop
        assert used is not None
        loop.release(used)

    def let_go(self) -> bool:
        """Before a fork: close the connections until the next call; False when a call runs."""
        used = self._loop
        if used is None:
            return True
        if threads.green() or used.here():  # greenlets would run meanwhile, and might call
            return False
        gone = used.wait(self._let_go(), _LET_GO_S)
        if gone is None and used.ended(_LET_GO_S):  # it was closed, and the last one
            gone = self.inner.fall_asleep()
        return gone is True

    async def _let_go(self) -> bool:
        if self._running or not self.inner.fall_asleep():
            return False
        await self.inner.wait_closed()
        return True

    def forked(self, why: str) -> None:
        """This process is a child of the one that used the channel: nothing of it works here."""
        self._lock = threads.rlock()
        self._loop = None
        self.closed_reason = self.closed_reason or why
