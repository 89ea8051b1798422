"""Admission of calls to a ``grpc.aio.server``: an interceptor that refuses before any work is done.

::

    call ─► rate ─► a place, or the queue for one ─► time left? ─► handler
              │               │                          │
              ▼               ▼                          ▼
      RESOURCE_EXHAUSTED  UNAVAILABLE, push-back   DEADLINE_EXCEEDED

A call has its place until it has ended; one with a stream of responses until its first response, since it may last for
hours. The rules are in `lb.core.serving`.

A place belongs to the task in which grpcio carries the call out, and is given back when that task ends, whatever ends
it: the request may never come, and then no handler runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.serving.admission import Refusal
from lb.core.serving.priority import PRIORITY_KEY, priority_of
from lb.core.serving.settings import Limits
from lb.server.places import Place, Places
from lb.server.refusals import trailers
from lb.shared.handlers import Behavior, Handlers, behavior_of

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_place: ContextVar[Place | None] = ContextVar("lb.server.place", default=None)


class Admission(grpc.aio.ServerInterceptor):
    """Refuses what a server cannot do in time.

    It should be the first interceptor, or right behind one that only counts. Calls of ``grpc.``'s own services, such as
    health checks and reflection, are always admitted.

    Args:
        limits: what the server takes on.
        counts: which methods (``/package.Service/Method``) are subject to it. By default all but gRPC's own.
        rng: source of the jitter of push-back.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        counts: Callable[[str], bool] | None = None,
        rng: Random | None = None,
    ) -> None:
        self.places = Places(limits, rng=rng)
        """Who runs, who waits, who is refused."""
        self.rules = self.places.rules
        self._counts = counts or _not_grpcs_own
        self._handlers = Handlers(self._around)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not self._counts(method):
            return handler
        places = self.places
        now = places.clock()
        metadata = handler_call_details.invocation_metadata
        found = places.at_once(method, _value(metadata, self.rules.client_key), now)
        if found is None:
            found = await places.after_waiting(method, priority_of(_value(metadata, PRIORITY_KEY)), now)
        if isinstance(found, Refusal):
            return _refuses(found)
        _place.set(found)
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(found.over)
        return self._handlers.wrapped(method, handler)

    def _around(self, method: str, handler: Handler) -> Behavior:
        behavior = behavior_of(handler)
        rules = self.rules
        times = rules.times(method)

        async def start(context: Any) -> None:
            left_s = context.time_remaining()
            if left_s is not None and (refusal := rules.hopeless(times, left_s)) is not None:
                await context.abort(refusal.code, refusal.details, trailers(refusal))

        async def unary(request: Any, context: Any) -> Any:
            await start(context)
            response = await behavior(request, context)
            place = _place.get()
            if place is not None and not context.code():
                place.answered()
            return response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await start(context)
            place = _place.get()
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    if place is not None:
                        place.answered()
                        place = None
                    yield response

        return stream if handler.response_streaming else unary

    def __repr__(self) -> str:
        return f"<Admission {self.rules!r}>"


def _value(metadata: Any, key: str | None) -> str:
    """The last value of a key; empty when there is none."""
    found = ""
    if key is not None:
        for name, value in metadata:
            if name == key:
                found = value
    return found


def _refuses(refusal: Refusal) -> Handler:
    """A handler that ends the call so, without waiting for a request or reading it."""

    async def refuse(_: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(refusal.code, refusal.details, trailers(refusal))
        yield  # interceptors around it expect an async generator where responses are streamed

    made: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return made


def _not_grpcs_own(method: str) -> bool:
    return not method.startswith("/grpc.")
