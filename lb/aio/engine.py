"""What carries out a channel's calls, in place of grpcio's ``cygrpc.AioChannel``.

::

    Source ──endpoints──► Balancer ──► Connections      who there is, and the connection to each
                             ▲
    call ──► Methods ──► LogicalCall ──pick, end──┘     what holds for its method, and its attempts
               │
               ├─► Unbegun                              until its task has taken its first step
               └─► Waiting                              while there is no endpoint, or no place

    Idling                                              no calls: no connections

Each part has a small state of its own, and nothing else writes to it. The engine makes the parts, passes on to one
what another reports, and belongs to one event loop from its first use on. `lb.sync` runs the same engine in its
background thread, made of parts that threads may use as well (`Parts`).
"""

from __future__ import annotations

import logging
import time
from asyncio import get_running_loop
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.aio import _grpcio, pulse
from lb.aio.calls import LogicalCall, remember_maker
from lb.aio.connections import Connections
from lb.aio.departures import Departures
from lb.aio.execution import Execution
from lb.aio.home import Home
from lb.aio.idling import Idling
from lb.aio.methods import Methods
from lb.aio.records import new_record
from lb.aio.returns import Returns
from lb.aio.source import Reports, Source, origin_of
from lb.aio.subchannel import STATES, Subchannel, subchannel_options
from lb.aio.unary import UnaryCall
from lb.aio.unbegun import Unbegun
from lb.aio.waiting import Waiting
from lb.core import checks
from lb.core.balancer import Balancer
from lb.core.call import Call, Shared
from lb.core.candidate import Connectivity
from lb.core.endpoint import MOST_WEIGHT, Resolution, Resolver
from lb.core.settings import Settings
from lb.core.throttle import ThrottleState
from lb.core.unpicked import RESOLVER_GRACE_S
from lb.shared import fork
from lb.telemetry.metrics import Metrics
from lb.telemetry.spans import Spans

if TYPE_CHECKING:
    from lb.core.snapshot import Snapshot

_log = logging.getLogger("lb.channel")

_CORE_ANSWERS_S = 0.02

# How core numbers the states.
_LEVELS: dict[Connectivity, int] = {ours: theirs.value[0] for theirs, ours in STATES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The classes of an engine's parts, as far as asyncio and threads differ in them."""

    balancer: type[Balancer] = Balancer
    record: type[Call] = Call
    subchannel: Callable[..., Any] = Subchannel
    headers_alone_s: float = 0.02
    """Core hands over the (empty) headers of a status without headers so many seconds before the status itself."""


ASYNCIO = Parts()


class Engine:
    """Owns the balancer and all parts of a channel.

    Nothing starts before the first use; that also decides the event loop that it belongs to.
    """

    def __init__(
        self,
        target: str | Resolver,
        *,
        settings: Settings,
        credentials: grpc.ChannelCredentials | None,
        options: tuple[tuple[str, Any], ...],
        compression: grpc.Compression | None,
        intercepted: bool = False,
        parts: Parts = ASYNCIO,
        started: Callable[[Engine], object] = fork.remember,
    ) -> None:
        """``intercepted``: there are interceptors above it. ``started`` is told of the first use."""
        origin = origin_of(target, options)
        options = origin.options
        self._home = Home(origin.name)
        self._home.check_fork()
        _grpcio.check_arguments(origin.name, options, credentials, compression)
        self.target = origin.name
        self.settings = settings
        self.propagate = settings.propagate
        for note in settings.config.notes:  # what was ignored in it
            _log.info("%s: %s", self.target, note)
        self._budget = settings.budget.new_state()
        self.balancer = parts.balancer(
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
        self.waiting = Waiting()
        """The calls that wait for a change, or in line for a place."""
        self._methods = Methods(self.target, settings, self.balancer, self._budget, self.metrics)
        self.methods: Mapping[bytes, Shared] = self._methods.known
        """What all calls of a method share, of those methods that were called before."""
        self._unbegun = Unbegun()
        self.unbegun = self._unbegun.calls
        """Calls that no task has begun to carry out."""
        self._source = Source(origin, self.balancer)
        self._connections = Connections(
            self.target,
            settings,
            self.balancer,
            parts.subchannel,
            subchannel_options(options, origin.authority, settings),
            credentials,
            compression,
            self._connection_changed,
        )
        self._idling = Idling(settings.connection.idle_s, self.balancer, self._connections, self._source, self.waiting)
        returns = Returns(self.target, self.balancer, self.metrics, self._home, self._connections, self.waiting.line)
        # What a call asks for as often as that: no frame of ours in between.
        self.keep_up = returns.keep_up
        self.attempt_answered = returns.answered
        self.place = self.waiting.line.place
        self.next_in_line = self.waiting.line.next
        self.in_loop = self._home.in_loop
        self.method = self._methods.find
        self.report = returns.reported
        self.record_type = parts.record
        self.headers_alone_s = parts.headers_alone_s
        self.measure_sizes = settings.measure_sizes
        self.departures = Departures()
        """The calls that go without a task."""
        self._only_general = intercepted or settings.measure_sizes
        self._secure = credentials is not None
        self._intercepted = intercepted
        self._started = started
        self.pulse = self.balancer.pulse
        """For how long the loop was held, once there is one."""
        self._refusal = _grpcio.CHANNEL_CLOSED
        self._closing = False
        self._closed = False

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
            _grpcio.check_call_credentials(credentials, secure=self._secure)
        if self._home.loop is not get_running_loop():
            self.start()
        if self._idling.asleep:
            self._idling.wake_up()
        call = self.new_call(method, deadline, credentials, wait_for_ready, registered_call_handle != 0)
        if self._intercepted:
            remember_maker(call)
        self._unbegun.add(call)
        return call

    def new_call(
        self, method: bytes, deadline: float | None, credentials: Any, wait_for_ready: bool | None, registered: bool
    ) -> LogicalCall:
        """A call that has begun: its first attempt is chosen and opened, or what it waits for is known."""
        now = time.monotonic()
        deadline = _grpcio.on_monotonic_clock(deadline)
        record, span, scope = new_record(self, self.method(method), deadline, wait_for_ready, now)
        execution = Execution(self, method, record, credentials=credentials, registered=registered, span=span)
        call = LogicalCall(execution)
        if scope is not None:
            execution.inherited = scope
            scope.add(call)
        if not call.done():  # the incoming call may be cancelled already
            execution.begin(now)
        return call

    def unary_call(
        self,
        stub: _grpcio.UnaryUnary,
        request: Any,
        timeout: float | None,
        metadata: tuple[Any, ...],
        credentials: Any,
        wait_for_ready: bool | None,
    ) -> UnaryCall | None:
        """Start a call with one request and one response. None: it has to go the general way, by `call`.

        So go the first call of a method or after idling, and those that need what only the general way has.
        """
        known = self.methods.get(stub.method)
        if (
            known is None
            or self._home.loop is not get_running_loop()
            or self._idling.asleep
            or self._closing
            or self._only_general
            or self.balancer.needs_metadata
        ):
            return None
        if credentials is not None:
            _grpcio.check_call_credentials(credentials, secure=self._secure)
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        record, span, scope = new_record(self, known, deadline, wait_for_ready, now)
        if scope is not None:
            metadata = scope.headers(metadata)
        call = UnaryCall(self, stub, request, metadata, credentials, record, span)
        self.departures.running.add(call)
        if scope is not None:
            scope.add(call)
        if not call.done():  # the incoming call may be cancelled already
            call.start(now)
        return call

    def get_registered_call_handle(self, method: bytes) -> int:
        """Not a handle (those belong to one connection), only "it is registered"."""
        self._methods.register(method)
        return 1

    def keep_pulse(self) -> None:
        """Watch for what holds the loop, from now on for a while; from any thread."""
        if self._home.loop is not None:
            self.pulse.expect(time.monotonic())
            self.in_loop(_keep_pulse, None)

    # ---- calls that wait ----

    async def changed(self, deadline: float | None) -> bool:
        """Wait until endpoints or connections changed; False when the deadline came first."""
        if self._idling.asleep and not self._closed:  # it fell asleep while the call waited for something else
            self._idling.wake_up()
        return await self.waiting.change(deadline)

    # ---- what the resolver and the connections say, in the loop ----

    def _updated(self, resolution: Resolution) -> None:
        """There is a new set of endpoints."""
        if self._closed:
            return
        changes = self.balancer.update(resolution)
        if not self._source.fixed:
            self.metrics.resolver_answered(time.monotonic())
        if not self._idling.asleep:
            for candidate in changes.added:
                self._connections.open(candidate)
        for candidate in changes.closable:
            self._connections.close(candidate)
        self.waiting.wake()

    def _resolver_failed(self, message: str) -> None:
        """The resolver cannot read its source."""
        if not self.balancer.resolver_error and self._home.loop is not None:
            self._home.loop.call_later(RESOLVER_GRACE_S, self.waiting.wake)
        self.balancer.resolver_failed(message, time.monotonic())
        self.metrics.resolver_failed()
        self.waiting.wake()  # what waits takes the message along

    def _connection_changed(self, look_again: bool) -> None:
        """A connection was made or lost, or cannot be made."""
        if look_again:
            self._source.look_again()
        self.waiting.wake()

    # ---- the loop ----

    def start(self) -> None:
        """Begin to resolve and connect, in the running loop, unless it has begun there. Raises as `Home.enter`."""
        if not self._home.enter():
            return
        beat = pulse.current()
        self.pulse = beat.pulse
        self.balancer.go_by(beat.pulse)
        beat.keep()
        self._started(self)
        self._source.start(Reports(self.in_loop, self._updated, self._resolver_failed, self.metrics.resolver_answered))
        self.waiting.wake()
        self._idling.watch()
        self._methods.watch_unmatched()

    def check_loop(self) -> None:
        """Raise ``UsageError`` in another loop than the channel's, as long as that exists and the channel is open."""
        if not self._closed:
            self._home.check()

    # ---- life ----

    def fall_asleep(self) -> bool:
        """Close the connections until the next call; False when a call runs or waits."""
        return self._home.loop is None or self._idling.fall_asleep()

    def let_go(self) -> bool:
        """Before a fork: close the connections until the next call. False: grpcio's thread goes on."""
        if not self._closed and self._home.ask(self.fall_asleep):
            # Core answers the watches on them in threads of its own, and one that has no answer at a fork may crash
            # the child (as a call of `grpc.aio` that runs may). Nothing tells when it has.
            time.sleep(_CORE_ANSWERS_S)
        return self._closed or not fork.polled()

    def resume(self) -> None:
        """After a fork, in the parent: the next call opens the connections."""

    def rest(self) -> None:
        """Before a fork while blocking calls of `lb.sync` run: leave core without a watch, until `go_on`."""
        self._connections.rest()

    def go_on(self) -> None:
        """Watch again."""
        if not self._closed:
            self._connections.go_on()

    def forked(self, why: str) -> None:
        """This is a forked child: refuse everything, and leave the parent's connections alone."""
        if not self._closing:
            self._refusal = f"channel {self.target}: {why}"
        self._closing = self._closed = True

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
        self._idling.stop()
        self._methods.close()
        for candidate in (*self.balancer.candidates, *self.balancer.leaving):
            self._connections.close(candidate)
        self._connections.ending(self._source.close())
        self.waiting.wake()

    async def wait_closed(self) -> None:
        """Wait until the tasks of a closed channel have ended."""
        if self._home.loop is get_running_loop():  # what ends elsewhere cannot be waited for
            await self._connections.wait_closed()

    # ---- connectivity and looking inside ----

    def check_connectivity_state(self, try_to_connect: bool) -> int:
        """The whole set's state, as grpcio numbers it: as it was before this call made it connect."""
        if self._closed:
            return _LEVELS[Connectivity.SHUTDOWN]
        state = Connectivity.IDLE if self._home.loop is None else self.balancer.state()
        if try_to_connect:
            self.start()
            if self._idling.asleep:
                self._idling.wake_up()
        return _LEVELS[state]

    async def watch_connectivity_state(self, last_observed: int, deadline: float | None) -> bool:
        """Wait until the state is another than ``last_observed``; False at the deadline (wall clock)."""
        if self._closing:
            raise _grpcio.UsageError(self._refusal)
        self.check_loop()
        until = _grpcio.on_monotonic_clock(deadline)
        while self.check_connectivity_state(False) == last_observed:
            if not await self.waiting.change(until):
                return False
        return True

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """See `lb.aio.Channel.change_weights`."""
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights is {checks.shown(weights)}; expected weights by endpoint id")
        for name, weight in weights.items():
            checks.whole(f"weights[{checks.shown(name)}]", weight, most=MOST_WEIGHT)
        self.balancer.change_weights(weights)
        self.in_loop(lambda _: self.waiting.wake(), None)  # an endpoint that counted for nothing may have room

    def snapshot(self) -> Snapshot:
        """See `lb.aio.Channel.snapshot`."""
        from lb.core.snapshot import snapshot  # for those who look inside

        now = time.monotonic()
        return snapshot(self.balancer, self._budget.balance(now), now)


def _keep_pulse(_: None) -> None:
    pulse.current().keep()
