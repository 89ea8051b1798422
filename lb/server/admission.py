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
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.serving.admission import Admission as Rules
from lb.core.serving.admission import Refusal, Times
from lb.core.serving.intake import Intake, Waiting
from lb.core.serving.priority import PRIORITY_KEY, Priority, priority_of
from lb.core.serving.settings import Limits
from lb.server.refusals import trailers
from lb.shared.handlers import Behavior, Handlers, behavior_of

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_place: ContextVar[_Place | None] = ContextVar("lb.server.place", default=None)


class _Place:
    """What one call holds: one of the places of the server, until it gives it back."""

    __slots__ = ("_admission", "_since", "_times")

    def __init__(self, admission: Admission, times: Times, since: float) -> None:
        self._admission: Admission | None = admission
        self._times = times
        self._since = since

    def answered(self) -> None:
        """The call is about to end well, or has its first response."""
        if self._admission is not None:
            now = time.monotonic()
            took_s = now - self._since
            self._times.typical.observe(took_s)
            self._admission.free(took_s, now, self._times)
            self._admission = None

    def over(self, _: object) -> None:
        """Its task has ended."""
        if self._admission is not None:
            self._admission.free(None, time.monotonic(), self._times)
            self._admission = None


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
        self.rules = Rules(Limits() if limits is None else limits, Random() if rng is None else rng)
        self._counts = counts or _not_grpcs_own
        self._handlers = Handlers(self._around)
        self._alarm: asyncio.TimerHandle | None = None

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
        rules, now = self.rules, time.monotonic()
        rules.demand.asked(now)
        metadata = handler_call_details.invocation_metadata
        refusal = rules.over_rate(method, _value(metadata, rules.client_key), now)
        if refusal is not None:
            return _refuses(refusal)
        intake = rules.intake
        if intake is not None:
            if not intake.take() and not await self._wait(intake, priority_of(_value(metadata, PRIORITY_KEY)), now):
                return _refuses(rules.full(time.monotonic()))
            place = _Place(self, rules.times(method), time.monotonic())
            _place.set(place)
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(place.over)
        return self._handlers.wrapped(method, handler)

    async def _wait(self, intake: Intake, priority: Priority, now: float) -> bool:
        """Wait in the queue; whether the call has a place then."""
        waiting = intake.wait(priority, now)
        if waiting is None:
            return False
        if waiting.displaced is not None:
            _tell(waiting.displaced, admitted=False)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting.call = future
        self._watch(intake)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self._give_back(intake, time.monotonic())  # it had just got a place
            else:
                intake.leave(waiting)
            raise

    def _watch(self, intake: Intake) -> None:
        """Refuse calls when they have waited too long."""
        if self._alarm is None and (at := intake.expires_at()) is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, at - time.monotonic()), self._expire, intake)

    def _expire(self, intake: Intake) -> None:
        self._alarm = None
        for waiting in intake.expired(time.monotonic()):
            _tell(waiting, admitted=False)
        self._watch(intake)

    def free(self, took_s: float | None, now: float, times: Times) -> None:
        """A call has ended: well after ``took_s``, or (None) otherwise. Its place goes to the next."""
        intake = self.rules.intake
        assert intake is not None
        if took_s is not None:
            intake.learn(took_s, now, times.baseline)
        self._give_back(intake, now)

    def _give_back(self, intake: Intake, now: float) -> None:
        intake.give_back()
        while intake.waiting and (waiting := intake.next(now)) is not None:
            _tell(waiting, admitted=True)

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


def _tell(waiting: Waiting, *, admitted: bool) -> None:
    future = waiting.call
    assert isinstance(future, asyncio.Future)
    if not future.done():
        future.set_result(admitted)


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

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(refusal.code, refusal.details, trailers(refusal))

    made: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return made


def _not_grpcs_own(method: str) -> bool:
    return not method.startswith("/grpc.")
