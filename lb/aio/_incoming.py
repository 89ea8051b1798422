"""`incoming`: a server's interceptor that hands deadline and cancellation on to outgoing calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from lb.shared.handlers import Around, Behavior, behavior_of
from lb.shared.scopes import Scope, enter

if TYPE_CHECKING:
    from lb.shared.handlers import Handler


def incoming() -> grpc.aio.ServerInterceptor:
    """An interceptor for ``grpc.aio.server``: calls made through `lb` channels in a handler inherit from its call.

    No such call outlives the deadline of the incoming one; when that is cancelled, by its client or its
    deadline, the calls that still run are cancelled, too. Blocks of `lb.detached`, and channels made with
    ``propagate=False``, have no part in it. The interceptor may stand anywhere among the interceptors; last,
    next to the handlers, costs the least. Handlers that are no ``async def`` run in other threads
    and are left alone.
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
    scope = Scope(context.time_remaining())
    enter(scope)
    # Not the context's own done callback: it can not tell a cancelled call, and makes a cycle of what it holds.
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(partial(_ended, scope))


def _ended(scope: Scope, task: asyncio.Task[Any]) -> None:
    # grpcio cancels the handler's task when its call is cancelled, and then ends it normally.
    if task.cancelling():
        scope.cancel()
