"""What the parts of a call need of each other, and what all of them need of grpcio's lower layer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.call import Call, Shared
from lb.core.pulse import Pulse
from lb.core.upkeep import Upkeep
from lb.telemetry.metrics import Metrics
from lb.telemetry.spans import Spans

Metadata = tuple[Any, ...]
"""Pairs of key and value, as grpcio's lower layer takes and gives them."""


class LowerCall(Protocol):
    """A call of grpcio's lower layer: one attempt on one connection. ``cygrpc._AioCall`` is one.

    What it ended with is read by `lb.aio._grpcio.status_now` and `headers_now`, without waiting.
    """

    def unary_unary(self, request: bytes | None, metadata: Metadata, context: Any = None) -> Coroutine[Any, Any, Any]:
        """Send the request; the response, or None when it did not end OK."""

    def stream_unary(
        self, metadata: Metadata, metadata_sent: Callable[[], None], context: Any = None
    ) -> Coroutine[Any, Any, Any]:
        """The response, or None when it did not end OK. ``metadata_sent``: messages may be sent."""

    def initiate_unary_stream(
        self, request: bytes | None, metadata: Metadata, context: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Send the request; returns with the headers."""

    def initiate_stream_stream(
        self, metadata: Metadata, metadata_sent: Callable[[], None], context: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Begin; returns with the headers."""

    def send_serialized_message(self, message: bytes) -> Awaitable[None]:
        """Send one message of a stream."""

    def send_receive_close(self) -> Awaitable[None]:
        """Say that no message follows."""

    def receive_serialized_message(self) -> Awaitable[Any]:
        """The next message, or EOF."""

    def initial_metadata(self) -> Awaitable[Metadata]:
        """The response headers, once they are here; empty also for a status that came without."""

    def status(self) -> Awaitable[Any]:
        """The status, once it is here."""

    def done(self) -> bool:
        """Whether it has its status."""

    def cancel(self, details: str) -> None:
        """End it with CANCELLED, at once."""


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
    def measure_sizes(self) -> bool:
        """Whether messages are counted in bytes."""

    @property
    def record_type(self) -> type[Call]:
        """The core's record of a call (`lb.sync` has one with a lock)."""

    @property
    def headers_alone_s(self) -> float:
        """Core hands over the (empty) headers of a status without headers so many seconds before the status itself."""

    @property
    def unbegun(self) -> set[Any]:
        """Calls that no task has begun to carry out."""

    def in_loop(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call a function in the channel's event loop; from any thread."""

    @property
    def methods(self) -> Mapping[bytes, Shared]:
        """What all calls of a method share, of those methods that were called before."""

    def method(self, method: bytes) -> Shared:
        """The same, of any method."""

    def keep_up(self, upkeep: Upkeep) -> None:
        """Do what core says is to be done for the set after an attempt."""

    def attempt_answered(self, attempt: Attempt) -> None:
        """A stream's first response came."""

    def report(self, attempt: Attempt, value: bytes) -> None:
        """Hand a server's load report to the policy, which reads them."""

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


class Carrier(Protocol):
    """What carries out a call, as its attempts see it."""

    @property
    def channel(self) -> Owner:
        """Its channel."""

    @property
    def record(self) -> Call:
        """The core's record of it."""

    @property
    def method(self) -> bytes:
        """``/package.Service/Method``."""

    @property
    def metadata(self) -> Metadata:
        """What the caller sends."""

    @property
    def credentials(self) -> Any:
        """The call's own credentials, or None."""

    @property
    def registered(self) -> bool:
        """Whether the stub registered the method."""

    @property
    def span(self) -> Any:
        """The call's span, or the headers in its stead; None: neither."""

    def done(self) -> bool:
        """Whether the call has its final status."""

    @property
    def replayable(self) -> bool:
        """Whether the whole request is still at hand."""

    def rivals(self, lower: LowerCall) -> int:
        """How many attempts run beside this one that were not given up."""
