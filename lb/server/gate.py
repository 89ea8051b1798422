"""The gate of a server: it counts calls, refuses them while the server drains, and drives a handler's stream.

It is the outermost interceptor, so that a stream's generator is always closed in the task that ran it. A generator that
is left to the garbage collector ends in another context, where OpenTelemetry's span cannot be detached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.outcome import PUSHBACK_KEY
from lb.server.leaving import enter
from lb.shared.asynchronous import behavior_of
from lb.shared.handlers import Around, Behavior

if TYPE_CHECKING:
    from lb.shared.handlers import Handler


def not_grpcs_own(method: str) -> bool:
    """Whether a method is not one of gRPC's own services, such as health and reflection."""
    return not method.startswith("/grpc.")


class Meter:
    """Counts the calls of a server, as far as they count."""

    def __init__(self) -> None:
        self.calls_total = 0
        """How many have ended."""
        self.in_flight = 0
        """How many run."""
        self._idle: asyncio.Event | None = None

    def begin(self) -> None:
        """A call came in."""
        self.in_flight += 1

    def end(self) -> None:
        """It ended, however."""
        self.in_flight -= 1
        self.calls_total += 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        if self.in_flight:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()

    def __repr__(self) -> str:
        return f"<Meter calls={self.calls_total} in_flight={self.in_flight}>"


class Gate(Around):
    """Counts calls, and refuses them once it is shut: UNAVAILABLE with push-back 0, so another server is asked at once.

    ``counts`` are the methods that it concerns; ``trailers`` go with each refusal.
    """

    def __init__(
        self,
        meter: Meter,
        trailers: Sequence[tuple[str, str | bytes]] = (),
        *,
        counts: Callable[[str], bool] = not_grpcs_own,
    ) -> None:
        super().__init__()
        self._meter = meter
        self._counts = counts
        self._shut = asyncio.Event()
        self._trailers = (*trailers, (PUSHBACK_KEY, "0"))

    def shut(self) -> None:
        """Refuse new calls from now on, and tell those that run."""
        self._shut.set()

    def concerns(self, method: str) -> bool:
        """See ``counts``."""
        return self._counts(method)

    def around(self, method: str, handler: Handler) -> Behavior:
        """The gate, and the handler behind it."""
        behavior = behavior_of(handler)
        meter, shut = self._meter, self._shut

        async def unary(request: Any, context: Any) -> Any:
            if shut.is_set():
                await self._refuse(context)
            meter.begin()
            enter(shut)
            try:
                return await behavior(request, context)
            finally:
                meter.end()

        async def stream(request: Any, context: Any) -> None:
            if shut.is_set():
                await self._refuse(context)
            meter.begin()
            enter(shut)
            try:
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except grpc.aio.InternalError as error:
                # A write that fails has lost its reader. grpcio may not know yet that the call was
                # cancelled, and would log an error for what any client may do.
                raise asyncio.CancelledError from error
            finally:
                meter.end()

        return stream if handler.response_streaming else unary

    async def _refuse(self, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the instance is shutting down", self._trailers)
