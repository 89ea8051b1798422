"""The connection to one endpoint: a grpcio channel of its own, and a watch on its state."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from lb.aio import _grpcio
from lb.core import words
from lb.core.candidate import Candidate, Connectivity
from lb.core.settings import SERVICE_CONFIG_OPTION, Settings

Report = Callable[[Candidate, Connectivity, str], None]

# DNS must not bring a retryPolicy of its own.
# Core's own retries would cost 7 % of every call. What they did for calls that no server has seen
# (GOAWAY races) is told from the status, see `lb.core.words`.
_DEFAULTS = (("grpc.service_config_disable_resolution", 1), ("grpc.enable_retries", 0))

_WHY_S = 0.5
_NUDGE_S = 0.1
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
    """The user's channel options, with ours where the user said nothing.

    A service config among them is ours to follow: core gets the part that only it can do.
    """
    kept = [
        (name, value) for name, value in options if name != SERVICE_CONFIG_OPTION or not isinstance(value, (str, bytes))
    ]
    given = {name for name, _ in kept}
    ours: list[tuple[str, Any]] = [*_DEFAULTS, *settings.connection.options()]
    if authority:
        ours.append(("grpc.default_authority", authority))
    config = settings.core_config()
    if config is not None:
        ours.append((SERVICE_CONFIG_OPTION, config))
    return (*kept, *((name, value) for name, value in ours if name not in given))


class Subchannel:
    """One endpoint's connection. Made and used inside the channel's event loop.

    The one place where a connection is made: credentials of an endpoint's own belong here, too.
    An endpoint whose connection fails is not picked, and says why.
    """

    def __init__(
        self,
        candidate: Candidate,
        options: tuple[tuple[str, Any], ...],
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
        report: Report,
    ) -> None:
        self._candidate = candidate
        self._report = report
        self._closed = False
        self._handles: dict[bytes, int] = {}
        self._channel = self._connect(candidate.endpoint.address, options, credentials, compression)
        self._lower = _grpcio.lower(self._channel)
        # In a context of its own: the caller that made the channel start may be in the middle of a trace.
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"lb: watch {candidate.endpoint.id}", context=contextvars.Context()
        )

    def _connect(
        self,
        address: str,
        options: tuple[tuple[str, Any], ...],
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
    ) -> grpc.aio.Channel:
        if credentials is None:
            return _grpcio.insecure_channel(address, options, compression)
        return _grpcio.secure_channel(address, credentials, options, compression)

    def call(
        self, method: bytes, deadline: float | None, credentials: Any, wait_for_ready: bool | None, registered: bool
    ) -> Any:
        """A call of grpcio's lower layer on this connection."""
        handle = 0
        if registered:
            handle = self._handles.get(method, 0)
            if not handle:
                handle = self._handles[method] = self._lower.get_registered_call_handle(method)
        return self._lower.call(method, deadline, credentials, wait_for_ready, handle)

    def connected(self) -> bool:
        """Whether the connection stands at this moment."""
        return not self._closed and self._channel.get_state() is grpc.ChannelConnectivity.READY

    def close(self) -> asyncio.Task[None] | None:
        """Close the connection; returns the watching task while it still has to end."""
        if self._closed:
            return None
        self._closed = True
        if self._task.get_loop().is_closed():
            return None
        self._task.cancel()
        self._lower.close()
        return self._task

    async def _run(self) -> None:
        channel = self._channel
        explained = False
        state = channel.get_state(try_to_connect=True)
        # Failing before it was told to connect: core can not make such a channel, the address is no address.
        # It never answers who watches one, and then grpcio waits for that at the end of the process.
        impossible = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        while not self._closed:  # in `lb.sync` closing ends the wait, not the task
            trouble = ""
            if state is grpc.ChannelConnectivity.READY:
                explained = False
            elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not explained:
                # Before the state is told, so that the calls that waited for it fail with the reason.
                explained = True
                trouble = await self._why()
                if channel.get_state() is grpc.ChannelConnectivity.READY:
                    state = grpc.ChannelConnectivity.READY
                    continue
            self._tell(STATES[state], trouble)
            if impossible:
                return
            await self._left(state)
            lost = state is grpc.ChannelConnectivity.READY
            # An idle connection (the server's GOAWAY, its maximum age) is opened again at once.
            state = channel.get_state(try_to_connect=True)
            if lost:  # told even if another one stands by now: what comes of calls may depend on it
                self._tell(Connectivity.IDLE, "")

    def _tell(self, state: Connectivity, trouble: str) -> None:
        """Report it, unless this connection was closed meanwhile: the endpoint may have another by now."""
        if not self._closed:
            self._report(self._candidate, state, trouble)

    async def _left(self, state: grpc.ChannelConnectivity) -> None:
        """Wait until the connection is in another state.

        An idle one may have stood for a moment and be idle again, all before core was asked to watch it:
        so it is told to connect again and again.
        """
        idle = state is grpc.ChannelConnectivity.IDLE
        while not await self._lower.watch_connectivity_state(state.value[0], time.time() + _NUDGE_S if idle else None):
            self._channel.get_state(try_to_connect=True)

    async def _why(self) -> str:
        """Why connecting fails. Core tells it to calls only, so one is made that can not be sent."""
        if self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return ""
        call = self._lower.call(b"/lb.Subchannel/Why", None, None, False, 0)
        try:
            async with asyncio.timeout(_WHY_S):
                await call.unary_unary(b"", ())
        except (TimeoutError, _grpcio.InternalError):
            return ""
        finally:
            if not call.done():
                call.cancel("not needed")
        details: str = call._status.details() or ""
        if words.meaning(details) is not words.Meaning.NEVER_CONNECTED:
            return ""
        # "...; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect...": who reads it knows the address.
        return _ADDRESS.sub("", details.rpartition("last error: ")[2])
