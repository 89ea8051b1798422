"""`incoming`: as in `lb.aio`, for a ``grpc.server`` with threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from lb.shared.handlers import Behavior, Handlers, behavior_of
from lb.shared.scopes import Bound, Scope, current, enter, priority_in

if TYPE_CHECKING:
    from lb.shared.handlers import Handler


def incoming() -> grpc.ServerInterceptor:
    """An interceptor for ``grpc.server``: calls that a handler makes inherit deadline, cancellation and
    priority of its own call.

    It does for threads what `lb.aio.incoming` does for asyncio. Calls in threads that a handler starts do not inherit,
    unless the handler runs them in ``contextvars.copy_context()``.
    """
    return _Incoming()


class _Incoming(grpc.ServerInterceptor):
    def __init__(self) -> None:
        self._handlers = Handlers(_wrap)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call."""
        handler = continuation(handler_call_details)
        return None if handler is None else self._handlers.wrapped(handler_call_details.method, handler)


class _Running:
    """Whether a handler is still at work: only then its calls are cancelled with the incoming one."""

    __slots__ = ("_ended", "_scope")

    def __init__(self, context: Any) -> None:
        # grpcio runs interceptor and handler of a call in a context of that call's own.
        self._scope = Scope(context.time_remaining(), priority_in(context.invocation_metadata()))
        bound = current()
        if isinstance(bound, Bound):  # an interceptor outside of this one has set a limit
            self._scope.deadline = bound.bound(self._scope.deadline)
        self._ended = False
        enter(self._scope)
        if not context.add_callback(self.call_ended):
            self._scope.cancel()  # ended before it began

    def ended(self) -> None:
        """The handler is through."""
        self._ended = True

    def call_ended(self) -> None:
        """The incoming call is over, in whichever way; grpcio tells it in a thread of its own."""
        if not self._ended:
            self._scope.cancel()


def _wrap(method: str, handler: Handler) -> Behavior:
    behavior = behavior_of(handler)

    @functools.wraps(behavior)  # some of grpcio's switches are attributes of the function
    def handle(request: Any, context: Any, *send: Any) -> Any:
        running = _Running(context)
        try:
            answer = behavior(request, context, *send)
        except BaseException:
            running.ended()
            raise
        if isinstance(answer, Iterator):
            return _generate(answer, running)
        running.ended()
        return answer

    return handle


def _generate(answers: Iterator[Any], running: _Running) -> Iterator[Any]:
    try:
        yield from answers
    except GeneratorExit:  # nobody wants the rest: the call was cancelled
        running.call_ended()
        raise
    finally:
        running.ended()
