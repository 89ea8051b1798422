"""The connection to one endpoint: a grpcio channel of its own, and a watch on its state."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import grpc

from lb.aio import _grpcio, probes, wakeups
from lb.aio.health import watch_health
from lb.core import words
from lb.core.candidate import Candidate, Connectivity
from lb.core.connection import Pace
from lb.core.settings import SERVICE_CONFIG_OPTION, Settings


class Report(Protocol):
    """Receives each change of a connection."""

    def __call__(
        self, candidate: Candidate, state: Connectivity, trouble: str, *, again: bool = False, unserved: bool = False
    ) -> None:
        """``trouble`` is why it failed, if it did.

        ``again``: the same was reported before, and since then it was connected only for a moment.
        ``unserved``: it is connected, and the endpoint does not know the service whose health is watched.
        """


# DNS must not bring a retryPolicy of its own.
# Core's own retries would cost 7 % of every call. They also repeat calls that no server has seen (GOAWAY races); we
# recognise such calls by their status, see `lb.core.words`.
# Idling is ours, too (`Connection.idle_s`); core's own, after 30 minutes, would cost 2 % of every call.
_DEFAULTS = (
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
)

_WHY_EVERY_S = 5.0
"""How old the reason shown for an unreachable endpoint may be."""
_NUDGE_S = 0.1
_ASK_EVERY_S = 1.0
_SETTLE_S = 0.05
# Options that set the name that a certificate must have, in this order.
_TLS_NAMES = {
    "grpc.ssl_target_name_override": "as grpc.ssl_target_name_override says",
    "grpc.default_authority": "the target's name, or what grpc.default_authority says",
}
_INHERITED_S = 1.0
"""A failure that comes sooner may come from another channel of the process that waits to connect again."""
_ENDS_SOON = "its connections end as soon as they are made"
_ALONE_OPTION = "lb.subchannel"
"""Core has no such option. It is set because channels whose options differ share no connection."""
_ALONE = itertools.count(1)

_IDLE = grpc.ChannelConnectivity.IDLE
_READY = grpc.ChannelConnectivity.READY
_FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_ADDRESS = re.compile(r"^(?:UNKNOWN|UNAVAILABLE): (?:ipv[46]:\S+: )?")

STATES = {
    grpc.ChannelConnectivity.IDLE: Connectivity.IDLE,
    grpc.ChannelConnectivity.CONNECTING: Connectivity.CONNECTING,
    grpc.ChannelConnectivity.READY: Connectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE: Connectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN: Connectivity.SHUTDOWN,
}


def subchannel_options(
    options: Sequence[tuple[str, Any]], authority: str, settings: Settings
) -> tuple[tuple[str, Any], ...]:
    """The user's channel options, and ours where the user set nothing.

    We follow a service config among them ourselves. Core gets only the part that we cannot do.
    """
    kept = [
        (name, value) for name, value in options if name != SERVICE_CONFIG_OPTION or not isinstance(value, (str, bytes))
    ]
    given = {name for name, _ in kept}
    ours: list[tuple[str, Any]] = [*_DEFAULTS, *settings.connection.options()]
    if authority and "grpc.ssl_target_name_override" not in given:  # core takes that for the authority, too
        ours.append(("grpc.default_authority", authority))
    config = settings.core_config()
    if config is not None:
        ours.append((SERVICE_CONFIG_OPTION, config))
    return (*kept, *((name, value) for name, value in ours if name not in given))


def connect(
    address: str,
    options: tuple[tuple[str, Any], ...],
    credentials: grpc.ChannelCredentials | None,
    compression: grpc.Compression | None,
) -> grpc.aio.Channel:
    """A channel of grpcio's own to one address."""
    if credentials is None:
        return _grpcio.insecure_channel(address, options, compression)
    return _grpcio.secure_channel(address, credentials, options, compression)


class Subchannel:
    """One endpoint's connection. Made and used inside the channel's event loop.

    Channels of a process with the same address and options share core's connection, as grpcio's do, and its pause
    after a failure. A new channel must not fail because of what another one met before. So if the first answer is a
    failure, this asks once more, with a connection of its own.
    """

    def __init__(
        self,
        candidate: Candidate,
        options: tuple[tuple[str, Any], ...],
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
        report: Report,
        pace: Pace,
        health: str | None = None,
        connect: Callable[..., grpc.aio.Channel] = connect,
    ) -> None:
        """``health``: the service that is watched on the endpoint's health service; None: none.

        ``connect`` makes grpcio's channel, given address, options, credentials and compression. It is called here,
        and again if a connection of its own is needed.
        """
        self._candidate = candidate
        self._options = options
        self._credentials = credentials
        self._compression = compression
        self._report = report
        self._pace = pace
        self._health = health
        self._connect = connect
        self._closed = False
        self._over: asyncio.Event | None = None
        """Set once it is closed; made at the first pause: it would be a fortieth of the memory of an endpoint."""
        self._watch: asyncio.Task[None] | None = None
        self._losses = 0
        """How often the connection was seen to end."""
        self._answers = 0
        """How many calls the endpoint had answered when this connection began."""
        self._asking: asyncio.Task[None] | None = None
        self._ask_again_at = 0.0
        self._open(options)
        self._task = self._begin(self._run(), "watch")

    def _begin(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        # In a context of its own: the caller that made the channel start may be in the middle of a trace.
        return asyncio.get_running_loop().create_task(
            work, name=f"lb: {what} {self._candidate.endpoint.id}", context=contextvars.Context()
        )

    def _open(self, options: tuple[tuple[str, Any], ...]) -> None:
        self._channel = self._connect(self._candidate.endpoint.address, options, self._credentials, self._compression)
        self._lower = _grpcio.lower(self._channel)
        self._handles: dict[bytes, int] = {}
        wakeups.take_all()

    def call(
        self, method: bytes, deadline: float | None, credentials: Any, wait_for_ready: bool | None, registered: bool
    ) -> Any:
        """A call of grpcio's lower layer on this connection."""
        handle = 0
        if registered:
            handle = self._handles.get(method, 0)
            if not handle:
                handle = self._handles[method] = self._lower.get_registered_call_handle(method)
            if handle:
                method = _grpcio.name_of_registered(method)
        return self._lower.call(method, deadline, credentials, wait_for_ready, handle)

    def connected(self, *, blocking: bool = False) -> bool:
        """Whether the connection stands at this moment. (``blocking`` calls may have one of their own in `lb.sync`.)"""
        return not self._closed and self._channel.get_state() is grpc.ChannelConnectivity.READY

    def close(self) -> asyncio.Task[None] | None:
        """Close the connection; returns the watching task while it still has to end."""
        if self._closed:
            return None
        self._closed = True
        if self._task.get_loop().is_closed():
            self._lower.close()
            return None
        self._task.cancel()
        if self._asking is not None:
            self._asking.cancel()
        self._lower.close()
        return self._task

    def end(self, within_s: float) -> asyncio.Task[None] | None:
        """As `close`, but its watch ends by itself, as it does once core has no call of it left.

        Were the watch cancelled, core would answer it later, and then its loop may be closed. After ``within_s``
        seconds it is cancelled all the same.
        """
        if self._closed:
            return None
        self._closed = True
        if self._over is not None:
            self._over.set()
        if self._asking is not None:
            self._asking.cancel()
        watched = self._watch is not None
        if not watched:
            self._lower.close()
        self._task.add_done_callback(_forget)
        return self._task.get_loop().create_task(self._ended(within_s, close=watched), name="lb: end of a watch")

    async def _ended(self, within_s: float, *, close: bool) -> None:
        if close:  # a call of the health watch would keep the connection
            await self._end_watch()
            self._lower.close()
        await asyncio.wait((self._task,), timeout=within_s)
        self._task.cancel()

    def doubt(self) -> None:
        """A status says that this connection is closing, but it seems to be connected: check it. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._task.get_loop().call_soon_threadsafe(self._begin_asking)

    def _begin_asking(self) -> None:
        if self._closed or self._asking is not None or time.monotonic() < self._ask_again_at:
            return
        if self._candidate.load.samples != self._answers:
            return  # it has answered: it was not closing from its beginning
        self._asking = self._begin(self._ask(), "ask")

    async def _ask(self) -> None:
        """Find out whether the connection is closing. Only core's answer to a call of our own tells that.

        Core never tells its watchers of a GOAWAY that comes in one segment with the server's SETTINGS (seen with
        1.85): to them it stays connected until the server closes it, and meanwhile each call fails.
        """
        try:
            losses = self._losses
            if not (await probes.closing(self._lower) and await probes.closing(self._lower)):
                self._ask_again_at = time.monotonic() + _ASK_EVERY_S
            elif self._stuck(losses):
                pause_s = self._pace.ended(0.0, answered=False)
                self._tell_end(pause_s)  # it is lost: the calls that wait to know go elsewhere
                await self._pause(max(_SETTLE_S, pause_s))
                if self._stuck(losses):
                    self._task.cancel()
                    self._connect_alone()
                    self._task = self._begin(self._run(), "watch")
        finally:
            self._asking = None

    def _stuck(self, losses: int) -> bool:
        """Whether core's watch has not noticed the end of the connection."""
        return self._losses == losses and self.connected()

    async def _run(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        # It fails before it was told to connect: the address is not valid, and core cannot make such a channel.
        # Core never answers a watch on one, and grpcio would wait for that answer at the end of the process.
        impossible = state is _FAILING
        alone = impossible
        made_at = ready_at = time.monotonic()
        load = self._candidate.load
        self._answers = load.samples
        while not self._closed:  # in `lb.sync` closing ends the wait, not the task
            trouble = ""
            trusted = True
            if state is _READY:
                alone = True
                ready_at = time.monotonic()
                trusted = not self._pace.short or not await self._leaves(state, self._pace.doubt_s)
            elif state is _FAILING:
                if not alone:
                    alone = True
                    if time.monotonic() - made_at < _INHERITED_S:
                        self._connect_alone()
                        state = self._channel.get_state(try_to_connect=True)
                        continue
                # First the reason, then the state: calls that wait for the state fail with the reason.
                trouble = await self._why()
                if self._channel.get_state() is _READY:
                    state = _READY
                    continue
            if trusted and state is _READY and self._health is not None:
                await self._while_healthy(self._health)
            elif trusted:
                self._tell(STATES[state], trouble)
                if impossible:
                    return
                await self._left(state)
            lost = state is _READY
            self._losses += lost
            pause_s = 0.0
            if self._channel.get_state() is _IDLE:  # there was a connection, whether we saw it or not, and it has ended
                stood_s = time.monotonic() - ready_at if lost else 0.0
                pause_s = self._pace.ended(stood_s, answered=load.samples != self._answers)
                self._answers = load.samples
            if lost or pause_s:  # also if it is connected again by now: what is decided about calls may depend on it
                self._tell_end(pause_s)
            if pause_s:
                await self._pause(pause_s)
            # An idle connection (the server's GOAWAY, its maximum age) is opened again.
            state = self._channel.get_state(try_to_connect=True)

    def _tell(self, state: Connectivity, trouble: str = "", *, again: bool = False, unserved: bool = False) -> None:
        """Report it, unless this was closed meanwhile: the endpoint may have another connection by now."""
        if not self._closed:
            self._report(self._candidate, state, trouble, again=again, unserved=unserved)

    def _tell_end(self, pause_s: float) -> None:
        """Report that a connection has ended, and for how long there will be no other."""
        if pause_s and self._pace.short > 1:
            self._tell(Connectivity.TRANSIENT_FAILURE, _ENDS_SOON, again=self._pace.short > 2)
        else:
            self._tell(Connectivity.IDLE)

    def _connect_alone(self) -> None:
        """Connect with arguments that no other channel of the process has, and so with a connection of its own."""
        self._lower.close()
        self._open((*self._options, (_ALONE_OPTION, next(_ALONE))))

    async def _while_healthy(self, service: str) -> None:
        """Report what the endpoint's health service says, for as long as it is connected."""
        self._watch = asyncio.get_running_loop().create_task(
            watch_health(self._channel, service, self.connected, self._tell),
            name=f"lb: health of {self._candidate.endpoint.id}",
        )
        try:
            await self._left(_READY)
        finally:
            await self._end_watch()

    async def _end_watch(self) -> None:
        """End the watch on the health service, and drop it: its last error would keep the call, and so core's call."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait((watch,))

    async def _left(self, state: grpc.ChannelConnectivity) -> None:
        """Wait until the connection is in another state, or it is time to ask again why it fails.

        An idle one may have been connected for a moment and be idle again before core was asked to watch it. So it
        is told to connect again and again.
        """
        look_s = _NUDGE_S if state is _IDLE else _WHY_EVERY_S if state is _FAILING else None
        while not await self._leaves(state, look_s):
            if state is _FAILING:  # core stays in this state while it tries again and again
                return
            self._channel.get_state(try_to_connect=True)

    async def _leaves(self, state: grpc.ChannelConnectivity, within_s: float | None) -> bool:
        """Wait until the connection is in another state; False when that takes longer than ``within_s`` seconds."""
        deadline = None if within_s is None else time.time() + within_s
        left: bool = await self._lower.watch_connectivity_state(state.value[0], deadline)
        return left

    async def _pause(self, pause_s: float) -> None:
        """Wait, unless it is closed meanwhile."""
        if self._closed:
            return
        over = self._over = self._over or asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await over.wait()

    async def _why(self) -> str:
        """Why connecting fails. Core tells only calls, so one is made that cannot be sent."""
        if self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return ""
        details = await probes.why_failing(self._lower)
        if words.meaning(details) is not words.Meaning.NEVER_CONNECTED:
            return ""
        # "...; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect...": the reader knows the address.
        why = _ADDRESS.sub("", details.rpartition("last error: ")[2])
        options = dict(self._options)
        whence = next((name for name in _TLS_NAMES if options.get(name)), "")
        return words.handshake(
            why,
            secure=self._credentials is not None,
            name=options[whence] if whence else self._candidate.endpoint.address.rpartition(":")[0],
            whence=_TLS_NAMES.get(whence, "the target's host; the option grpc.ssl_target_name_override names another"),
        )


def _forget(task: asyncio.Task[None]) -> None:
    """It may well end by an error: it finds its channel closed."""
    if not task.cancelled():
        task.exception()
