"""`channel`: a ``grpc.aio.Channel`` that chooses among a service's instances itself."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import contextvars
import inspect
import itertools
import logging
import os
import time
import weakref
from asyncio import get_running_loop
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import grpc

from lb.aio import _grpcio, pulse
from lb.aio.calls import LogicalCall, remember_maker
from lb.aio.idempotency import is_idempotent
from lb.aio.overdue import Overdue
from lb.aio.resolvers import StaticResolver, make_resolver
from lb.aio.sizes import SizedCall
from lb.aio.subchannel import STATES, Subchannel, subchannel_options
from lb.core import checks
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker, State
from lb.core.call import Method
from lb.core.candidate import Candidate, Connectivity
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection, Pace
from lb.core.ejection import Ejection
from lb.core.endpoint import MOST_WEIGHT, Endpoint, Resolution, Resolver
from lb.core.hedging import Hedging
from lb.core.outcome import Outcome
from lb.core.policies import Policy, resolve
from lb.core.proxy import proxied, resolved
from lb.core.quantile import Quantile
from lb.core.retry import Retry
from lb.core.settings import NOT_COPIED, MethodSettings, Settings, channel_options, settings
from lb.core.target import DnsTarget, StaticTarget, parse_target
from lb.core.throttle import ThrottleState
from lb.core.unpicked import RESOLVER_GRACE_S
from lb.shared import fork
from lb.telemetry.metrics import Metrics
from lb.telemetry.spans import Spans

if TYPE_CHECKING:
    from lb.core.snapshot import Snapshot

_log = logging.getLogger("lb.channel")

_MOST_METHODS = 4096
_SWEEP_EVERY_S = 0.1
_LOOK_UP_S = 1.0
_LINE_ASKS_S = 1.0
UNMATCHED_S = 60.0
_MOST_SHOWN = 5
_CLOSE = 0.8
_told: set[str] = set()
"""Names in settings that the log was told of."""

# How core numbers the states.
_LEVELS: dict[Connectivity, int] = {ours: theirs.value[0] for theirs, ours in STATES.items()}


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
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> Channel:
    """A channel to a service, for all four kinds of call. It connects at its first use.

    Its calls raise what they raise on grpcio's channel; docs/troubleshooting.md tells which words are lb's
    own, and what they mean.

    Args:
        target: ``consul:///catalog?dc=&tag=&near=`` (of the agent that ``CONSUL_HTTP_ADDR`` names, or
            ``consul://agent:8500/catalog``; ``tag`` may be repeated, and an instance must have all),
            ``static:///host:port,host:port?weights=1,3``, or what grpcio takes: ``host:port``, the same as
            ``dns:///host:port`` (each address of the name is an endpoint; looked up every 30 s, or
            ``?interval=`` seconds, and when a connection is lost), ``ipv4:``, ``ipv6:``, ``unix:``; or a
            resolver: an object with ``start(listener)`` and ``close()`` (see `lb.Resolver`).
        policy: how to choose, an object or a name (``round_robin``, ``weighted_round_robin``,
            ``least_request``, ``p2c``, ...; see docs/policies.md). Default: ``weighted_round_robin``.
        retry: when failed attempts are tried again. False: never. Default: ``lb.Retry()``.
        breaker: when an endpoint is left out for a while. False: never. Default: ``lb.Breaker()``.
        hedging: a second attempt while the first has not answered, for unary calls of methods that
            are idempotent. False: none, also where a service config has them. Default: none.
        limit: how many calls may run at once on each endpoint. Default, and False: any number.
        ejection: how much of the pool breakers may take out. Default: ``lb.Ejection()``.
        connection: reconnecting, keepalive, idling. Default: ``lb.Connection()``.
        health: watch gRPC's health service of each endpoint under this service name (``""``: the whole
            server), and send nothing to those that are NOT_SERVING, or do not know the service while others do.
            Default: no watch.
        service_config: gRPC's JSON document (text or mapping) in place of the settings above; it is
            also accepted among the ``options``. See docs/service_config.md.
        timeout_s: seconds for a call that gives none itself; streams too, from beginning to end. Default: none.
        methods: what holds for single methods (``/package.Service/Method``, or ``/package.Service/*`` for all of a
            service; the entry of the method stands alone), by an `lb.MethodSettings` with ``timeout_s``, ``retry``,
            ``hedging``. The call's own timeout wins over that of ``methods``, and that over ``timeout_s``; all are
            bounded by the service config's, by an incoming call's deadline and `lb.deadline`. For retries and
            hedging ``methods`` win over the service config, and that over ``retry`` and ``hedging``.
        propagate: whether a call made while an incoming call is handled inherits its deadline and
            cancellation (see `lb.aio.incoming`), and one in a block of `lb.deadline` that one's.
        measure_sizes: whether the metrics tell the sizes of messages, too (see docs/metrics.md).
        measure_endpoints: whether the metrics of attempts tell the endpoint of each (see docs/metrics.md).
        credentials: as of ``grpc.ssl_channel_credentials``; None for plain text. The certificate
            must be for the target's authority (``consul:///catalog``: ``catalog``), unless the
            option ``grpc.ssl_target_name_override`` or ``grpc.default_authority`` says otherwise.
        options: channel options as in ``grpc.aio.insecure_channel``, for the connection to each endpoint.
        compression: as there; also for the connection to each endpoint.
        interceptors: as there. They see a call once, however many attempts it takes.

    Raises:
        ValueError: a bad target, policy name, setting, service config or interceptor.
        TypeError: an object of a wrong kind, or bad channel options (as grpcio raises it).
    """
    given = channel_options(options)
    interceptors = checks.sequence("interceptors", interceptors, "a sequence of grpc.aio.ClientInterceptor")
    return Channel(  # type: ignore[abstract]  # grpcio's upper layer, unknown to the stubs, implements them
        LogicalChannel(
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
                options=given,
            ),
            credentials=credentials,
            options=given,
            compression=compression,
            intercepted=bool(interceptors),
        ),
        interceptors,
    )


class Channel(_grpcio.UpperChannel):
    """What `channel` returns: a ``grpc.aio.Channel``, with a look inside."""

    _channel: LogicalChannel

    def snapshot(self) -> Snapshot:
        """The endpoints as the channel sees them now, and why each is or is not picked.

        ``str()`` of it is a table; ``as_dict()`` is ready for JSON.
        """
        return self._channel.snapshot()

    def change_policy(self, policy: Policy | str) -> None:
        """Choose by another policy from the next call on; running calls are not touched."""
        self._channel.balancer.change_policy(resolve(policy))

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next call on these weights hold, by endpoint id, whatever the resolver says of them.

        The mapping replaces the one before; ``{}`` gives the resolver its word back. Raises
        ``ValueError`` for a weight that is no whole number >= 0.
        """
        self._channel.change_weights(weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED.format(self))

    def __repr__(self) -> str:
        return f"<lb.aio.Channel {self._channel.target}>"


class LogicalChannel:
    """In the place of grpcio's ``AioChannel``: drives the balancer, owns resolver and connections.

    Nothing starts before the first use; that also decides the event loop it belongs to.
    """

    # `lb.sync` puts its own here.
    balancer_type: ClassVar[type[Balancer]] = Balancer
    call_types: ClassVar[tuple[type[LogicalCall], type[LogicalCall]]] = (LogicalCall, SizedCall)
    subchannel_type: ClassVar[type[Subchannel]] = Subchannel
    _refusal = _grpcio.CHANNEL_CLOSED

    def __init__(
        self,
        target: str | Resolver,
        *,
        settings: Settings,
        credentials: grpc.ChannelCredentials | None,
        options: tuple[tuple[str, Any], ...],
        compression: grpc.Compression | None,
        intercepted: bool = False,
    ) -> None:
        if isinstance(target, bytes):  # grpcio takes them too
            target = target.decode(errors="backslashreplace")  # a backslash is in no target
        if isinstance(target, str):
            parsed = parse_target(target)
            if isinstance(parsed, DnsTarget):
                if proxied(parsed.host, options, os.environ):
                    parsed = parsed.unresolved()
                else:
                    options = resolved(options)
            if isinstance(parsed, StaticTarget) and parsed.doubt:
                _log.warning("%s: %s", parsed.text, parsed.doubt)
            self.target = parsed.text
            authority = parsed.authority
            self._resolver: Resolver = make_resolver(parsed)
        else:
            if not callable(getattr(target, "start", None)) or not callable(getattr(target, "close", None)):
                raise TypeError(f"target is {target!r}; expected a string, or a resolver with start() and close()")
            self.target = str(getattr(target, "target", type(target).__name__))
            authority = str(getattr(target, "authority", ""))
            self._resolver = target
        self._resolve_now: Callable[[], object] | None = getattr(self._resolver, "resolve_now", None)
        self._look_up_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._check_fork()
        _grpcio.check_arguments(self.target, options, credentials, compression)
        self.settings = settings
        self.propagate = settings.propagate
        for note in settings.config.notes:  # what was ignored in it
            _log.info("%s: %s", self.target, note)
        self._budget = settings.budget.new_state()
        self.balancer = self.balancer_type(
            self.target,
            settings.policy,
            settings.breaker,
            Random(),
            ejection=settings.ejection,
            limit=settings.limit,
            throttle=self._budget if isinstance(self._budget, ThrottleState) else None,
        )
        self.metrics = Metrics(self.target, self.balancer, self._budget.balance, by_endpoint=settings.measure_endpoints)
        self.tracer = Spans(self.target, self.balancer, self.metrics.look)
        self._registered: set[str] = set()
        self._unmatched = settings.entries
        """Names in the settings that no method which was called goes by."""
        self.methods: dict[bytes, Method] = {}
        """What all calls of a method share, of those methods that were called before."""
        self._credentials = credentials
        self._options = subchannel_options(options, authority, settings)
        self._compression = compression
        self._intercepted = intercepted
        self.call_type = self.call_types[settings.measure_sizes]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._closed = False
        self.pulse = self.balancer.pulse
        """For how long the loop was held, once there is one."""
        self.unbegun: set[LogicalCall] = set()
        """Calls that no task has begun to carry out."""
        self._overdue: set[LogicalCall] = set()
        self._sweeping = False
        self._asleep = False
        self._served_by_none = False
        self._picks = -1
        self._waiters: set[asyncio.Future[bool]] = set()
        self._line: list[tuple[int, asyncio.Future[bool]]] = []
        self._line_timed = False
        self._tickets = itertools.count(1)
        self._ending: set[asyncio.Task[None]] = set()

    # ---- calls ----

    def call(
        self,
        method: bytes,
        deadline: float | None,
        credentials: Any,
        wait_for_ready: bool | None,
        registered_call_handle: int = 0,
    ) -> LogicalCall:
        """A new logical call (grpcio's upper layer makes it)."""
        if self._closing:
            raise _grpcio.UsageError(self._refusal)
        if credentials is not None:
            _grpcio.check_call_credentials(credentials, secure=self._credentials is not None)
        if self._loop is not get_running_loop():
            self._start()
        if self._asleep:
            self._wake_up()
        call = self.call_type(self, method, deadline, credentials, wait_for_ready, registered_call_handle != 0)
        if self._intercepted:
            remember_maker(call)
        self.unbegun.add(call)
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, _sweep, weakref.ref(self))
        return call

    def sweep(self) -> bool:
        """Give up calls whose task ended before its first step (cancelled, or the request did not serialize).

        grpcio leaves those to the garbage collector; ours hold a place at an endpoint. A call is
        given up when it was there at the last sweep, too: the loop has turned since, and a task
        that was there has begun. False when no call is left to look at.
        """
        for call in self._overdue & self.unbegun:
            self.unbegun.discard(call)
            call.cancel("The call was given up before it began.")
        self._overdue = self.unbegun.copy()
        self._sweeping = bool(self._overdue)
        return self._sweeping

    def method(self, method: bytes) -> Method:
        """What all calls of a method share; see `methods`."""
        known = self.methods.get(method)
        if known is None:
            if not isinstance(method, bytes):  # from an interceptor; the words are grpcio's
                raise TypeError(f"Argument 'method' has incorrect type (expected bytes, got {type(method).__name__})")
            if len(self.methods) >= _MOST_METHODS:  # a proxy may meet any number of them
                self.methods.clear()
            name = method.decode()
            found = self.settings.method(name, declared_idempotent=is_idempotent(name))
            self._unmatched.difference_update(found.entries)
            if found.doubt:
                _log.warning("%s: %s", self.target, found.doubt)
            measured = found.hedging is not None and found.hedging.delay_s is None
            known = self.methods[method] = Method(
                name,
                found.idempotent,
                self.balancer,
                found.retry,
                self._budget,
                found.hedging,
                Quantile() if measured else None,
                found.timeout_s,
                found.default_timeout_s,
                found.wait_for_ready,
                self.metrics.tally(name, self._registered),
                None if found.retry.attempt_timeout_s is None else Overdue(found.retry.attempt_timeout_s),
            )
        return known

    def tell_unmatched(self, names: set[str]) -> None:
        """Tell the log of names in the settings that no called method goes by: each once in a process.

        A list of methods may well have some that this program does not call. It is a warning when one is nearly the
        name of a method that was called and goes by none, or when no name had any use.
        """
        names = names - _told
        if not names:
            return
        _told.update(names)
        called = {method.name for method in self.methods.values()}
        alone = {name for name in called if not self.settings.entries.intersection(checks.entries(name))}
        forms = [form for name in sorted(alone) for form in checks.entries(name)]
        from difflib import get_close_matches  # once in a process

        meant = sorted({form for name in names for form in get_close_matches(name, forms, n=1, cutoff=_CLOSE)})
        hint = f". Did you mean {', '.join(meant)}?" if meant else ""
        level = logging.WARNING if meant or self._unmatched == self.settings.entries else logging.INFO
        shown, told = ", ".join(sorted(names)), ", ".join(sorted(called)[:_MOST_SHOWN])
        words = "%s: Retry.idempotent or methods has %s, but no such method was called (called: %s)%s"
        _log.log(level, words, self.target, shown, told, hint)

    def look_for_unmatched(self) -> None:
        """A while after the first call: those of services that were called."""
        services = {checks.entries(method.name)[1] for method in self.methods.values()}
        self.tell_unmatched({name for name in self._unmatched if checks.entries(name)[1] in services})

    def get_registered_call_handle(self, method: bytes) -> int:
        """Not a handle (those belong to one connection), only "it is registered"."""
        self._registered.add(method.decode())
        return 1

    def attempt_ended(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """Give an attempt back; closes the connection of a retired endpoint after its last one."""
        try:
            self.balancer.ended(attempt, outcome, now)
        finally:  # a policy's hook may raise
            if attempt.candidate.breaker.last is not None:
                self._breaker_moved(attempt.candidate, now)
            if attempt.candidate.retired and attempt.candidate.closable:
                self._close_subchannel(attempt.candidate)
            if self._line:
                self.next_in_line()

    def attempt_answered(self, attempt: Attempt) -> None:
        """A stream's first response came."""
        now = time.monotonic()
        self.balancer.answered(attempt, now)
        if attempt.candidate.breaker.last is not None:
            self._breaker_moved(attempt.candidate, now)

    def attempt_silent(self, attempt: Attempt, now: float) -> None:
        """An attempt had no response for its ``attempt_timeout_s``; the balancer knows."""
        if attempt.candidate.breaker.last is not None:
            self._breaker_moved(attempt.candidate, now)

    def _breaker_moved(self, candidate: Candidate, now: float) -> None:
        """Log the move that an attempt which ended or answered ``now`` has caused, if it has. Not under a lock."""
        move = candidate.breaker.last
        if move is None or move.at != now or move.after is State.HALF_OPEN:
            return
        self.metrics.breaker_moved(move)
        where = f"{self.target}: {candidate.endpoint}"
        if move.after is State.OPEN:
            _log.info("%s: breaker open for %.1f s: %s; %s", where, move.open_s, move.reason, candidate.last_error)
        else:
            _log.info("%s: breaker closed: %s", where, move.reason)

    def keep_pulse(self) -> None:
        """Watch for what holds the loop, from now on for a while; from any thread."""
        if self._loop is not None:
            self.pulse.expect(time.monotonic())
            self.in_loop(_keep_pulse, None)

    def next_in_line(self) -> None:
        """A place below the concurrency limit may be free: wake the first call that waits for one."""
        for _, waiter in self._line:
            if not waiter.done():
                waiter.set_result(True)
                return

    async def place(self, since: float, line_s: float, deadline: float | None, ticket: int | None) -> int | None:
        """Wait in line for a place; None when the loop had run for ``line_s`` since ``since``, or at the deadline.

        ``ticket``: what it returned before, when the place was gone by then; it keeps its place in line.
        """
        if ticket is None:
            ticket = next(self._tickets)
            if not self._line:
                return ticket  # a place may have become free while the call was on its way here
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timers: list[pulse.Timer | asyncio.TimerHandle] = [pulse.Timer(line_s, lambda: _resolve(waiter, False), since)]
        if deadline is not None:
            timers.append(loop.call_later(max(0.0, deadline - time.monotonic()), _resolve, waiter, False))
        bisect.insort(self._line, (ticket, waiter))
        self._time_line()
        free = False
        try:
            free = await waiter
        finally:
            for timer in timers:
                timer.cancel()
            self._line.remove((ticket, waiter))
            if not free and waiter.done() and not waiter.cancelled() and waiter.result():
                self.next_in_line()  # woken, and cancelled before it could go on
        return ticket if free else None

    def _time_line(self) -> None:
        """Let the first in line ask now and then: a learnt limit grows, and a breaker admits again, by time alone."""
        if not self._line_timed:
            self._line_timed = True
            asyncio.get_running_loop().call_later(_LINE_ASKS_S, _ask_line, weakref.ref(self))

    def ask_line(self) -> None:
        """See `_time_line`."""
        self._line_timed = False
        if self._line:
            self.next_in_line()
            self._time_line()

    async def changed(self, deadline: float | None) -> bool:
        """Wait until endpoints or connections changed; False when the deadline came first."""
        if self._asleep:  # it fell asleep while the call waited for something else
            self._wake_up()
        return await self._change(deadline)

    async def _change(self, deadline: float | None) -> bool:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), _resolve, waiter, False)
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    # ---- what the resolver says (from any thread) ----

    def update(self, resolution: Resolution) -> None:
        """A new set of endpoints."""
        # Here, where the resolver's own stack shows who said it.
        if not isinstance(resolution, Resolution):
            raise TypeError(f"update() was given {resolution!r}; expected an lb.Resolution")
        for endpoint in resolution.endpoints:
            if not isinstance(endpoint, Endpoint):
                raise TypeError(f"update() was given the endpoint {endpoint!r}; expected an lb.Endpoint")
        self.in_loop(self._updated, resolution)

    def error(self, message: str) -> None:
        """The resolver can not read its source."""
        self.in_loop(self._resolver_failed, message)

    def confirm(self) -> None:
        """The resolver has read its source, and nothing is new."""
        self.metrics.answered_at = time.monotonic()

    def in_loop(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call a function in the channel's event loop, if it has one; from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            function(argument)
        else:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(function, argument)

    def _updated(self, resolution: Resolution) -> None:
        if self._closed:
            return
        changes = self.balancer.update(resolution)
        if not isinstance(self._resolver, StaticResolver):  # that one's answer does not age
            self.confirm()
        if not self._asleep:
            for candidate in changes.added:
                self._connect(candidate)
        for candidate in changes.closable:
            self._close_subchannel(candidate)
        self._wake()

    def _connect(self, candidate: Candidate) -> None:
        try:
            candidate.handle = self.subchannel_type(
                candidate,
                self._options,
                self._credentials,
                self._compression,
                self._connectivity,
                Pace(self.settings.connection, self.balancer.rng),
                self.settings.health,
            )
        except (ValueError, TypeError, _grpcio.UsageError) as error:
            self.balancer.set_connectivity(
                candidate, Connectivity.TRANSIENT_FAILURE, time.monotonic(), f"no connection was made: {error}"
            )

    # ---- idling ----

    def look_for_calls(self) -> None:
        """Close the connections when there was no call since the last look; looks again after ``idle_s``."""
        if self._closed or self._asleep:
            return
        picks = sum(candidate.picks for candidate in self.balancer.candidates)
        if picks != self._picks or not self.fall_asleep():
            self._picks = picks
            self._watch_idling()

    def fall_asleep(self) -> bool:
        """Close the connections until the next call, and forget them; False when one runs or waits."""
        if self._asleep or self._loop is None:
            return True
        if self._waiters or not self.balancer.sleep(time.monotonic()):
            return False
        self._asleep = True
        for candidate in self.balancer.candidates:
            self._close_subchannel(candidate)
            candidate.handle = None
        self._wake()
        return True

    def _wake_up(self) -> None:
        """Connect again, at the first call after idling."""
        self._asleep = False
        for candidate in self.balancer.candidates:
            if candidate.handle is None:  # one that left and came back in its sleep may be connected
                self._connect(candidate)
        self._watch_idling()

    def _watch_idling(self) -> None:
        idle_s = self.settings.connection.idle_s
        if idle_s is not None and self._loop is not None:
            if self._idle_timer is not None:  # a fork has made it sleep before its time
                self._idle_timer.cancel()
            # Weak: a channel that was forgotten must not be kept by its timer.
            self._idle_timer = self._loop.call_later(idle_s, _look_for_calls, weakref.ref(self))

    def _resolver_failed(self, message: str) -> None:
        if not self.balancer.resolver_error and self._loop is not None:
            self._loop.call_later(RESOLVER_GRACE_S, self._wake)
        self.balancer.resolver_failed(message, time.monotonic())
        self._wake()  # what waits takes the message along

    def _connectivity(
        self,
        candidate: Candidate,
        state: Connectivity,
        trouble: str,
        *,
        again: bool = False,
        unserved: bool = False,
    ) -> None:
        before, known = candidate.connectivity, candidate.trouble
        if state is before and trouble in ("", known) and unserved is candidate.unserved:
            return
        if self.balancer.set_connectivity(candidate, state, time.monotonic(), trouble, unserved=unserved):
            self.look_up_again(_LOOK_UP_S)
        if trouble and trouble != known and not again:
            _log.info("%s: %s: %s", self.target, candidate.endpoint, trouble)
        elif state is not before:
            _log.debug("%s: %s is %s", self.target, candidate.endpoint.id, state.value)
        if not self._served_by_none and self.balancer.nobody_serves():
            self._served_by_none = True
            _log.warning(
                "%s: no endpoint knows the service %r of health=; all endpoints are used anyway",
                self.target,
                self.settings.health,
            )
        self._wake()

    def look_up_again(self, then_s: float) -> None:
        """Ask the resolver to look again; and once more after ``then_s``, while an endpoint is not connected.

        The source may know of a replacement a moment later. Pauses double, for an address may be dead for ever.
        """
        loop = self._loop
        if self._resolve_now is None or self._closed or self._asleep or loop is None:
            return
        if self._look_up_timer is not None:
            self._look_up_timer.cancel()
        self._look_up_timer = loop.call_later(then_s, _look_up_again, weakref.ref(self), then_s)
        try:
            begun = self._resolve_now()
            if inspect.iscoroutine(begun):
                begun.close()
                raise TypeError("resolve_now() is a coroutine function; expected a plain one that makes a task")
        except Exception:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver's resolve_now() raised", self.target)

    def _wake(self) -> None:
        for waiter in self._waiters:
            _resolve(waiter, True)
        if self._line:
            self.next_in_line()

    # ---- life ----

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            raise self._elsewhere()
        self._check_fork()
        self._loop = loop
        beat = pulse.current()
        self.pulse = self.balancer.pulse = beat.pulse
        beat.keep()
        fork.remember(self)
        start: Callable[[LogicalChannel], object] = self._resolver.start
        try:
            # In a context of its own: the first caller may be in the middle of a trace.
            begun = contextvars.Context().run(start, self)
            if inspect.iscoroutine(begun):
                begun.close()
                raise TypeError("start() is a coroutine function; expected a plain one that makes a task")
        except Exception as error:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver did not start", self.target)
            self.update(Resolution((), f"the resolver did not start: {error!r}"))
        self._wake()
        self._watch_idling()
        if self._unmatched:
            loop.call_later(UNMATCHED_S, _look_for_unmatched, weakref.ref(self))

    def check_loop(self) -> None:
        """Raise ``UsageError`` in another loop than the channel's, as long as that exists and the channel is open."""
        loop = self._loop
        if loop is not None and loop is not get_running_loop() and not loop.is_closed() and not self._closed:
            raise self._elsewhere()

    def _elsewhere(self) -> Exception:
        error: Exception = _grpcio.UsageError(
            f"channel {self.target}: it belongs to the event loop that used it first; use and close it there, or make"
            " one channel per loop"
        )
        return error

    def _check_fork(self) -> None:
        if fork.lost():
            raise _grpcio.UsageError(f"channel {self.target}: {fork.FORKED}")

    def let_go(self) -> bool:
        """Before a fork: whether it is closed. What it has open is its own loop's to close."""
        return self._closed

    def forked(self, why: str) -> None:
        """This is a forked child: refuse everything, and leave the parent's connections alone."""
        if not self._closing:
            self._refusal = f"channel {self.target}: {why}"
        self._closing = self._closed = True

    def _close_subchannel(self, candidate: Candidate) -> None:
        if candidate.handle is None:
            return
        task = candidate.handle.close()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def closing(self) -> None:
        """Take no more calls."""
        self._closing = True

    def closed(self) -> bool:
        """Whether `closing` or `close` was called."""
        return self._closing

    def over(self) -> bool:
        """Whether `close` was called: there will be no other attempt."""
        return self._closed

    def close(self) -> None:
        """Close everything now; `wait_closed` waits for what ends a moment later."""
        if self._closed:
            return
        self._closing = self._closed = True
        self.metrics.close()
        if self._look_up_timer is not None:
            self._look_up_timer.cancel()
        if self.methods:
            self.tell_unmatched(self._unmatched)
        for candidate in (*self.balancer.candidates, *self.balancer.leaving):
            self._close_subchannel(candidate)
        try:
            closing = self._resolver.close()
        except Exception:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver's close() raised", self.target)
            closing = None
        if inspect.isawaitable(closing):
            loop = self._loop
            if loop is not None and not loop.is_closed():
                self._ending.add(asyncio.ensure_future(closing, loop=loop))
            elif inspect.iscoroutine(closing):  # never started, or its loop is gone: nothing to wait for
                closing.close()
        self._wake()

    async def wait_closed(self) -> None:
        """Wait until the tasks of a closed channel have ended."""
        if self._ending and self._loop is get_running_loop():  # what ends elsewhere cannot be waited for
            await asyncio.gather(*self._ending, return_exceptions=True)

    # ---- connectivity and looking inside ----

    def check_connectivity_state(self, try_to_connect: bool) -> int:
        """The whole set's state, as grpcio numbers it: as it was before this call made it connect."""
        if self._closed:
            return _LEVELS[Connectivity.SHUTDOWN]
        state = Connectivity.IDLE if self._loop is None else self.balancer.state()
        if try_to_connect:
            self._start()
            if self._asleep:
                self._wake_up()
        return _LEVELS[state]

    async def watch_connectivity_state(self, last_observed: int, deadline: float | None) -> bool:
        """Wait until the state is another than ``last_observed``; False at the deadline (wall clock)."""
        if self._closing:
            raise _grpcio.UsageError(self._refusal)
        self.check_loop()
        until = _grpcio.on_monotonic_clock(deadline)
        while self.check_connectivity_state(False) == last_observed:
            if not await self._change(until):
                return False
        return True

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """See `Channel.change_weights`."""
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights is {checks.shown(weights)}; expected weights by endpoint id")
        for name, weight in weights.items():
            checks.whole(f"weights[{checks.shown(name)}]", weight, most=MOST_WEIGHT)
        self.balancer.change_weights(weights)
        self.in_loop(lambda _: self._wake(), None)  # an endpoint that counted for nothing may have room

    def snapshot(self) -> Snapshot:
        """See `Channel.snapshot`."""
        from lb.core.snapshot import snapshot  # for those who look inside

        now = time.monotonic()
        return snapshot(self.balancer, self._budget.balance(now), now)


def _keep_pulse(_: None) -> None:
    pulse.current().keep()


def _look_for_calls(channel: weakref.ref[LogicalChannel]) -> None:
    alive = channel()
    if alive is not None:
        alive.look_for_calls()


def _ask_line(reference: weakref.ref[LogicalChannel]) -> None:
    channel = reference()
    if channel is not None:
        channel.ask_line()


def _look_up_again(reference: weakref.ref[LogicalChannel], passed_s: float) -> None:
    channel = reference()
    if channel is not None and any(c.connectivity is not Connectivity.READY for c in channel.balancer.candidates):
        channel.look_up_again(2 * passed_s)


def _look_for_unmatched(reference: weakref.ref[LogicalChannel]) -> None:
    channel = reference()
    if channel is not None:
        channel.look_for_unmatched()


def _sweep(reference: weakref.ref[LogicalChannel]) -> None:
    channel = reference()
    if channel is not None and channel.sweep():
        asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, _sweep, reference)


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
