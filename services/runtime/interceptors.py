"""What stands around every handler of a server.

::

    call ─► Gate ─► OpenTelemetry's server span ─► Boundary ─► lb's `incoming` ─► handler

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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
import structlog

from services.runtime.errors import CallError, Trailers, refused

INSTANCE_KEY = "mesh-instance-id"
"""Key of the serving instance's id in the trailing metadata."""

_GRPC_OWN = "/grpc."
_RUNTIME = "/mesh.runtime."

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the types alone
Details = grpc.HandlerCallDetails
Continuation: TypeAlias = "Callable[[Details], Awaitable[Handler | None]]"
Behavior = Callable[[Any, Any], Any]

# (the request is a stream, the response is a stream): what makes such a handler
_MAKE: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


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


class Gate(grpc.aio.ServerInterceptor):
    """Counts, refuses while draining, and closes streams where they ran."""

    def __init__(self, meter: Meter, trailers: Trailers) -> None:
        self.draining = False
        self._meter = meter
        error = refused("the instance is shutting down")
        self._refusal = (error.code, error.message, (*trailers, *error.trailers))

    async def intercept_service(self, continuation: Continuation, handler_call_details: Details) -> Handler | None:
        """Called by grpcio for each call."""
        handler = await continuation(handler_call_details)
        if handler is None or not is_business(handler_call_details.method):
            return handler
        if self.draining:
            return replaced(handler, self._refuse, self._refuse)
        behavior = behavior_of(handler)
        meter = self._meter

        async def unary(request: Any, context: Any) -> Any:
            meter.begin()
            try:
                return await behavior(request, context)
            finally:
                meter.end()

        async def stream(request: Any, context: Any) -> None:
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

        return replaced(handler, unary, stream)

    async def _refuse(self, request: Any, context: Any) -> None:
        await context.abort(*self._refusal)


class Boundary(grpc.aio.ServerInterceptor):
    """Adds the instance's id to the trailing metadata; turns exceptions into statuses."""

    def __init__(self, trailers: Trailers) -> None:
        self._trailers = trailers
        # A method's handler is always the same object's, so it is wrapped once.
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(self, continuation: Continuation, handler_call_details: Details) -> Handler | None:
        """Called by grpcio for each call."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(_GRPC_OWN):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
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

        return replaced(handler, unary, stream)


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


def behavior_of(handler: Handler) -> Behavior:
    """The function behind a handler of any kind."""
    behavior: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return cast("Behavior", behavior)


def replaced(handler: Handler, unary: Behavior, stream: Behavior) -> Handler:
    """The same kind of handler around another function."""
    make = _MAKE[handler.request_streaming, handler.response_streaming]
    behavior = stream if handler.response_streaming else unary
    replaced: Handler = make(behavior, handler.request_deserializer, handler.response_serializer)
    return replaced
