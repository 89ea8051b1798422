"""`incoming`: a server's interceptor that hands deadline, cancellation and priority on to outgoing calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from lb.shared.handlers import Around, Behavior, behavior_of
from lb.shared.scopes import Bound, Scope, current, enter, priority_in

if TYPE_CHECKING:
    from lb.shared.handlers import Handler


def incoming() -> grpc.aio.ServerInterceptor:
    """An interceptor for ``grpc.aio.server``: calls that a handler makes inherit deadline, cancellation and priority of
    its own call.

    This is for calls through channels of `lb`. None of them outlives the deadline of the incoming call. When the
    incoming call is cancelled, by its client or its deadline, those that still run are cancelled, too. If it came with
    a priority (metadata ``lb-priority``), they have the same one, unless their own metadata say otherwise. Nothing of
    this applies to calls in a block of `lb.detached`, to channels with ``propagate=False``, or to handlers that are not
    ``async def``. The interceptor costs least as the last one, next to the handlers.
    """
    return _Incoming()


class _Incoming(Around):
    def around(self, method: str, handler: Handler) -> Behavior:
        """A function of the same kind, for others may look at it."""
        behavior = behavior_of(handler)

        async def answer(request: Any, context: Any) -> Any:
            _enter(context)
            return await behavior(request, context)

        async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
            _enter(context)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

        if inspect.iscoroutinefunction(behavior):
            return answer
        return generate if inspect.isasyncgenfunction(behavior) else behavior


def _enter(context: Any) -> None:
    scope = Scope(context.time_remaining(), priority_in(context.invocation_metadata()))
    # Not the context's own done callback: it cannot tell a cancelled call, and makes a cycle of what it holds.
    task = asyncio.current_task()
    bound = current()
    if isinstance(bound, Bound) and bound.task is task:  # an interceptor outside of this one has set a limit
        scope.deadline = bound.bound(scope.deadline)
    enter(scope)
    if task is not None:
        task.add_done_callback(partial(_ended, scope))


def _ended(scope: Scope, task: asyncio.Task[Any]) -> None:
    # grpcio cancels the handler's task when its call is cancelled, and then ends it normally.
    if task.cancelling():
        scope.cancel()
