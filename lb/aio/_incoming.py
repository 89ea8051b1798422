"""`incoming`: a server's interceptor that hands deadline, cancellation and priority on to outgoing calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from lb.shared.handlers import Around, Behavior, behavior_of
from lb.shared.scopes import DEFAULT, Bound, Scope, current, enter, priority_in

if TYPE_CHECKING:
    from lb.core.serving.priority import Priority
    from lb.shared.handlers import Handler

_priority: ContextVar[Priority] = ContextVar("lb.aio.priority", default=DEFAULT)


def incoming() -> grpc.aio.ServerInterceptor:
    """An interceptor for ``grpc.aio.server``: calls that a handler makes inherit deadline, cancellation and priority of
    its own call.

    This is for calls through channels of `lb`. None of them outlives the deadline of the incoming call. When the
    incoming call is cancelled, by its client or its deadline, those that still run are cancelled, too. If it came with
    a priority (metadata ``lb-priority``), they have the same one, unless their own metadata say otherwise. Nothing of
    this applies to calls in a block of `lb.detached`, to channels with ``propagate=False``, or to handlers that are not
    ``async def``. The interceptor costs least as the last one, next to the handlers.
    """
    return Incoming()


class Incoming(Around):
    """See `incoming`."""

    def look(self, details: grpc.HandlerCallDetails) -> None:
        """A call has arrived. Its metadata are looked at now: a handler's context reads them from core once more."""
        priority = priority_in(details.invocation_metadata)
        if priority is not DEFAULT:
            _priority.set(priority)

    def around(self, method: str, handler: Handler) -> Behavior:
        """A function of the same kind, for others may look at it."""
        behavior = behavior_of(handler)

        async def answer(request: Any, context: Any) -> Any:
            task = asyncio.current_task()
            scope = _enter(context, task)
            try:
                return await behavior(request, context)
            finally:
                # grpcio cancels the handler's task when its call is cancelled, and then ends it normally.
                if task is not None and task.cancelling():
                    scope.cancel()

        async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
            task = asyncio.current_task()
            scope = _enter(context, task)
            try:
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
            finally:
                if task is not None and task.cancelling():
                    scope.cancel()

        if inspect.iscoroutinefunction(behavior):
            return answer
        return generate if inspect.isasyncgenfunction(behavior) else behavior


def _enter(context: Any, task: asyncio.Task[Any] | None) -> Scope:
    scope = Scope(context.time_remaining(), _priority.get())
    bound = current()
    if isinstance(bound, Bound) and bound.task is task:  # an interceptor outside of this one has set a limit
        scope.deadline = bound.bound(scope.deadline)
    enter(scope)
    return scope
