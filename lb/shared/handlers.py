"""A server's handlers with something around each call: what every interceptor of a server needs."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in the types alone

Behavior = Callable[[Any, Any], Any]
"""The function of a handler: takes the request, or an iterator of requests, and the context."""

T = TypeVar("T")

_MOST_METHODS = 4096
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Kept(Generic[T]):
    """What is made of the handler of a method: made once, since the handler is nearly always the same object."""

    def __init__(self, make: Callable[[str, Handler], T]) -> None:
        self._make = make
        self._first: dict[str, tuple[Handler, T]] = {}
        self._others: dict[str, tuple[Handler, T]] = {}
        """Methods have two handlers where an interceptor behind this one refuses calls."""

    def of(self, method: str, handler: Handler) -> T:
        """What was made of ``handler``."""
        known = self._first.get(method)
        if known is None:
            return self._add(self._first, method, handler)
        if known[0] is handler:
            return known[1]
        known = self._others.get(method)
        if known is None or known[0] is not handler:  # some interceptors make one for each call
            return self._add(self._others, method, handler)
        return known[1]

    def _add(self, among: dict[str, tuple[Handler, T]], method: str, handler: Handler) -> T:
        if len(among) >= _MOST_METHODS:  # a proxy may meet any number of them
            among.clear()
        made = self._make(method, handler)
        among[method] = (handler, made)
        return made


class Handlers:
    """Handlers with another function."""

    def __init__(self, wrap: Callable[[str, Handler], Behavior]) -> None:
        """``wrap`` is given a method and its handler, and returns the function to serve it with."""
        self._kept = Kept(lambda method, handler: made_of(handler, wrap(method, handler)))

    def wrapped(self, method: str, handler: Handler) -> Handler:
        """The handler to serve ``method`` with, in the place of ``handler``."""
        return self._kept.of(method, handler)


class Around(grpc.aio.ServerInterceptor, ABC):
    """An interceptor that puts a function around the handler of each method.

    ``around`` is called once per method, for all four kinds of call.
    """

    def __init__(self) -> None:
        self._handlers = Kept(functools.partial(surrounded, self))
        """What each method is served with: its own handler, if it is none of those that this concerns."""

    @abstractmethod
    def around(self, method: str, handler: Handler) -> Behavior:
        """The function to serve ``method`` with, which calls ``behavior_of(handler)``.

        It must be an ``async def``; where ``handler.response_streaming`` is set, it may be an async generator.
        """

    def concerns(self, method: str) -> bool:
        """Whether ``method`` (``/package.Service/Method``) gets the function. By default each does."""
        return True

    def look(self, details: grpc.HandlerCallDetails) -> None:
        """A call of such a method has arrived; its handler runs later, if at all. By default nothing is done."""

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
        if served is not handler:
            self.look(handler_call_details)
        return served


def surrounded(around: Around, method: str, handler: Handler) -> Handler:
    """The handler of ``method`` with ``around`` around it, if it concerns it."""
    if not around.concerns(method):
        return handler
    return made_of(handler, _recognised(handler, around.around(method, handler)))


def behavior_of(handler: Handler) -> Behavior:
    """The function inside a ``grpc.RpcMethodHandler`` of any kind, as its author wrote it."""
    behavior: Behavior = getattr(handler, _kind(handler))
    return behavior


def _recognised(handler: Handler, behavior: Behavior) -> Behavior:
    """What an `Around` has made, as grpcio recognises it: it would run a plain function in a thread."""
    known = inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)
    if known or behavior is behavior_of(handler):
        return behavior

    async def answer(request: Any, context: Any) -> Any:
        return await behavior(request, context)

    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                yield response

    return generate if handler.response_streaming else answer


def made_of(handler: Handler, behavior: Behavior) -> Handler:
    """A handler of the same kind with another function."""
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    made: Handler = make(behavior, handler.request_deserializer, handler.response_serializer)
    return made


def _kind(handler: Handler) -> str:
    return next(kind for kind in _KINDS if getattr(handler, kind) is not None)
