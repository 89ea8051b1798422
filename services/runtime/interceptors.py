"""What stands around every handler of a server.

::

    call ─► Gate ─► OpenTelemetry's server span ─► lb's `LoadTrailers` ─► Boundary ─► lb's `incoming` ─► handler

The *gate* counts calls, refuses them while the instance drains, and drives a handler's stream. It is
the outermost, so that a stream's generator is always closed in the task that ran it: a generator that is
left to the garbage collector ends in another context, where the span cannot be detached.
The *boundary* puts the instance's id into the trailing metadata and turns exceptions into statuses.
It stands within the span, so that the span sees the status.

Nothing here sends initial metadata: headers commit a call and forbid its retry.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from lb.server import Around, Behavior, behavior_of
from services.runtime.errors import CallError, Trailers, refused

INSTANCE_KEY = "mesh-instance-id"
"""Key of the serving instance's id in the trailing metadata."""

_GRPC_OWN = "/grpc."
_RUNTIME = "/mesh.runtime."

log = structlog.get_logger()

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in the types alone


def is_business(method: str) -> bool:
    """Whether a method (``/package.Service/Method``) is a service's own: not health, reflection or Describe."""
    return not method.startswith((_GRPC_OWN, _RUNTIME))


class Meter:
    """Counts the calls of business methods."""

    def __init__(self) -> None:
        self.calls_total = 0
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """A call came in."""
        self.in_flight += 1
        self._idle.clear()

    def end(self) -> None:
        """It ended, however."""
        self.in_flight -= 1
        self.calls_total += 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        await self._idle.wait()

    def __repr__(self) -> str:
        return f"<Meter calls={self.calls_total} in_flight={self.in_flight}>"


class Gate(Around):
    """Counts, refuses while draining, and closes streams where they ran."""

    def __init__(self, meter: Meter, trailers: Trailers) -> None:
        super().__init__()
        self.draining = False
        self._meter = meter
        error = refused("the instance is shutting down")
        self._refusal = (error.code, error.message, (*trailers, *error.trailers))

    def concerns(self, method: str) -> bool:
        """Only business methods are counted, and refused."""
        return is_business(method)

    def around(self, method: str, handler: Handler) -> Behavior:
        """The gate, and the handler behind it."""
        behavior = behavior_of(handler)
        meter = self._meter

        async def unary(request: Any, context: Any) -> Any:
            if self.draining:
                await context.abort(*self._refusal)
            meter.begin()
            try:
                return await behavior(request, context)
            finally:
                meter.end()

        async def stream(request: Any, context: Any) -> None:
            if self.draining:
                await context.abort(*self._refusal)
            meter.begin()
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


class Boundary(Around):
    """Adds the instance's id to the trailing metadata; turns exceptions into statuses."""

    def __init__(self, trailers: Trailers) -> None:
        super().__init__()
        self._trailers = trailers

    def concerns(self, method: str) -> bool:
        """GRPC's own services know nothing of ours."""
        return not method.startswith(_GRPC_OWN)

    def around(self, method: str, handler: Handler) -> Behavior:
        """The boundary, and the handler within. Raises ``TypeError`` for a handler that would run in a thread."""
        behavior = behavior_of(handler)
        trailers = self._trailers
        generates = inspect.isasyncgenfunction(behavior)
        if not generates and (handler.response_streaming or not inspect.iscoroutinefunction(behavior)):
            raise TypeError(f"{method}: the handler must be an async function, or an async generator when it streams")

        async def unary(request: Any, context: Any) -> Any:
            context.set_trailing_metadata(trailers)
            try:
                return await behavior(request, _Context(context, trailers))
            except Exception as error:
                await _abort(method, error, context, trailers)
                raise

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            context.set_trailing_metadata(trailers)
            try:
                async with aclosing(behavior(request, _Context(context, trailers))) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                await _abort(method, error, context, trailers)
                raise

        return stream if handler.response_streaming else unary


class _Context:
    """A servicer context whose trailing metadata always has the instance's id."""

    __slots__ = ("_context", "_trailers")

    def __init__(self, context: Any, trailers: Trailers) -> None:
        self._context = context
        self._trailers = trailers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata((*self._trailers, *trailing_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        # Without metadata of its own, abort sends what was set before, and that has the id.
        own = (*self._trailers, *trailing_metadata) if trailing_metadata else ()
        await self._context.abort(code, details, own)

    async def abort_with_status(self, status: Any) -> None:
        await self.abort(status.code, status.details, status.trailing_metadata)


async def _abort(method: str, error: Exception, context: Any, trailers: Trailers) -> None:
    """End the call with the status that an exception stands for. Returns when it has ended already."""
    if isinstance(error, grpc.aio.BaseError):
        return  # the handler called abort itself, or the peer is gone
    if isinstance(error, CallError):
        set_before = [pair for pair in context.trailing_metadata() or () if pair not in trailers]
        await context.abort(error.code, error.message, (*trailers, *set_before, *error.trailers))
    log.error("call failed unexpectedly", method=method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error; the instance has logged it")
