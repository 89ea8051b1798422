"""Admission of calls to a ``grpc.aio.server``: an interceptor that refuses before any work is done.

::

    call ─► rate ─► a place, or the queue for one ─► time left? ─► handler
              │               │                          │
              ▼               ▼                          ▼
      RESOURCE_EXHAUSTED  UNAVAILABLE, push-back   DEADLINE_EXCEEDED

A call has its place until it has ended; one with a stream of responses until its first response, since it may last for
hours. The rules are in `lb.core.serving`.

A place is given back when the handler ends, however it ends. Until the handler begins, it belongs to the task in which
grpcio carries the call out, and is given back when that task ends: the request may never come.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.headers import last_value
from lb.core.serving.admission import Refusal
from lb.core.serving.settings import Limits
from lb.server.gate import not_grpcs_own
from lb.server.overtime import Entry, Overtime
from lb.server.places import Place, Places, keep
from lb.server.refusals import Trailers, trailers
from lb.server.turns import Turns
from lb.shared.asynchronous import behavior_of
from lb.shared.handlers import Around, Behavior
from lb.shared.scopes import priority_in

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_place: ContextVar[Place] = ContextVar("lb.server.place")
_refusal: ContextVar[Refusal] = ContextVar("lb.server.refusal")


class Admission(Around):
    """Refuses what a server cannot do in time.

    It should be the first interceptor, or right behind one that only counts. Calls of ``grpc.``'s own services, such as
    health checks and reflection, are always admitted.

    Args:
        limits: what the server takes on.
        counts: which methods (``/package.Service/Method``) are subject to it. By default all but gRPC's own.
        trailers: trailing metadata of what it refuses, such as the server's id.
        rng: source of the jitter of push-back.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        counts: Callable[[str], bool] | None = None,
        trailers: Sequence[tuple[str, str | bytes]] = (),
        rng: Random | None = None,
    ) -> None:
        super().__init__()
        self.places = Places(limits, rng=rng)
        """Who runs, who waits, who is refused."""
        self.rules = self.places.rules
        self._client_key = self.rules.client_key
        self._counts = counts or not_grpcs_own
        self._trailers = tuple(trailers)
        self.refuses = _refusing(self._trailers)
        """The handler of a call that it does not admit."""
        self._turns = Turns()
        timeout_s = self.rules.limits.timeout_s
        self._overtime = None if timeout_s is None else Overtime(timeout_s)
        self._timeout_s = math.inf if timeout_s is None else timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        served = self._handlers.of(handler_call_details.method, handler)
        if served is handler:
            return handler
        admitted = self.admits(handler_call_details)
        if admitted is None:
            admitted = await self.admits_after_waiting(handler_call_details)
        return served if admitted else self.refuses

    def concerns(self, method: str) -> bool:
        """See ``counts``."""
        return self._counts(method)

    def admits(self, details: grpc.HandlerCallDetails) -> bool | None:
        """Whether a call that has arrived may go on. Then it has a place, else `refuses`; None: it has to wait."""
        places = self.places
        self._turns.came()
        client = last_value(details.invocation_metadata, self._client_key) if self._client_key is not None else ""
        found = places.at_once(details.method, client, places.clock())
        return None if found is None else _settled(found)

    async def admits_after_waiting(self, details: grpc.HandlerCallDetails) -> bool:
        """The same for a call that has to wait, after that."""
        places, priority = self.places, priority_in(details.invocation_metadata)
        return _settled(await places.after_waiting(details.method, priority, places.clock()))

    def around(self, method: str, handler: Handler) -> Behavior:
        """What happens to a call that was admitted."""
        behavior = behavior_of(handler)
        rules, overtime, timeout_s = self.rules, self._overtime, self._timeout_s
        times, turns, extra = rules.times(method), self._turns, self._trailers

        def start(context: Any) -> Entry | Refusal | None:
            """A call's limit, if its client has set none so early; a refusal, if it cannot be answered in time."""
            left_s = context.time_remaining()
            if left_s is not None:
                if (refusal := rules.hopeless(times, left_s)) is not None:
                    return refusal
                if left_s <= timeout_s:
                    return None
            return None if overtime is None else overtime.begin()

        async def unary(request: Any, context: Any) -> Any:
            place = _place.get()
            place.begun()
            try:
                if turns.late:
                    await turns.turn()
                entry = start(context)
                if entry is None:
                    response = await behavior(request, context)
                elif isinstance(entry, Refusal):
                    await context.abort(entry.code, entry.details, (*extra, *trailers(entry)))
                else:
                    assert overtime is not None
                    response = await overtime.answer(entry, context, behavior(request, context))
                if not context.code():
                    place.answered()
                return response
            finally:
                place.over()

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            place = _place.get()
            place.begun()
            entry: Entry | Refusal | None = None
            try:
                if turns.late:
                    await turns.turn()
                entry = start(context)
                if isinstance(entry, Refusal):
                    await context.abort(entry.code, entry.details, (*extra, *trailers(entry)))
                    return
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        place.answered()
                        if entry is None or overtime is None:
                            yield response
                            continue
                        entry.writing = True
                        yield response
                        entry.writing = False
                        if entry.over:
                            await overtime.abort(entry, context)
            except asyncio.CancelledError:
                if overtime is not None and isinstance(entry, Entry) and entry.over:
                    await overtime.abort(entry, context)
                raise
            finally:
                place.over()
                if overtime is not None and isinstance(entry, Entry):
                    overtime.end(entry)

        return stream if handler.response_streaming else unary

    def __repr__(self) -> str:
        overtime = "" if self._overtime is None else f" {self._overtime!r}"
        return f"<Admission {self.rules!r}{overtime}>"


def _settled(found: Place | Refusal) -> bool:
    """Whether the call that runs here has got a place. The task gives it back if the handler never begins."""
    if isinstance(found, Refusal):
        _refusal.set(found)
        return False
    _place.set(found)
    task = asyncio.current_task()
    assert task is not None
    keep(found, task)
    return True


def _refusing(extra: Trailers) -> Handler:
    """What ends a call without waiting for a request or reading it."""

    async def refuse(_: Any, context: Any) -> AsyncIterator[Any]:
        refusal = _refusal.get()
        context.set_code(refusal.code)
        context.set_details(refusal.details)
        context.set_trailing_metadata((*extra, *trailers(refusal)))
        return
        yield  # interceptors around it expect an async generator where responses are streamed

    # A unary handler would wait for the request, and send an empty response before the status.
    made: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return made
