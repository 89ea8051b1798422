"""A server's handlers with something around each call, as `lb.aio.incoming` and `lb.sync.incoming` need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in the types alone

_MOST_METHODS = 4096
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Handlers:
    """Handlers in a scope: made once for each method, whose handler is nearly always the same object."""

    def __init__(self, wrap: Callable[[Any], Any]) -> None:
        """``wrap`` is given a handler's function and returns the one that opens a scope around it."""
        self._wrap = wrap
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def wrapped(self, method: str, handler: Handler) -> Handler:
        """The handler to serve ``method`` with, in the place of ``handler``."""
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            if len(self._wrapped) >= _MOST_METHODS:  # a proxy may meet any number of them
                self._wrapped.clear()
            known = self._wrapped[method] = (handler, self._made(handler))
        return known[1]

    def _made(self, handler: Handler) -> Handler:
        kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behavior = self._wrap(getattr(handler, kind))
        made: Handler = make(behavior, handler.request_deserializer, handler.response_serializer)
        return made
