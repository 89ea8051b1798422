"""How a handler with threads learns that its server drains, and how a draining server refuses.

::

    def Watch(self, request, context):
        leaving = lb.server.threads.draining()
        while not leaving.wait(1):
            yield news()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.outcome import PUSHBACK_KEY
from lb.server.gate import not_grpcs_own
from lb.server.threads.pool import Pool

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_leaving: ContextVar[threading.Event | None] = ContextVar("lb.server.threads.leaving", default=None)


def draining() -> threading.Event:
    """An event that is set once the server that carries out this call takes no more calls. Ask for it in a handler.

    A stream that ends then costs nothing: its client opens another one, on another server.

    Raises:
        RuntimeError: this is no call of a `lb.server.threads.Server`.
    """
    leaving = _leaving.get()
    if leaving is None:
        raise RuntimeError("lb.server.threads.draining() is for handlers of lb.server.threads.Server")
    return leaving


class Gate(grpc.ServerInterceptor):
    """Refuses calls once it is shut: UNAVAILABLE with push-back 0, so that another server is asked at once."""

    def __init__(
        self, pool: Pool, trailers: Sequence[tuple[str, str | bytes]] = (), counts: Callable[[str], bool] | None = None
    ) -> None:
        self._pool = pool
        self._counts = counts or not_grpcs_own
        self._shut = threading.Event()
        self._trailers = (*trailers, (PUSHBACK_KEY, "0"))
        refuse: Any = grpc.stream_stream_rpc_method_handler(self._refuse)
        self._refusing: Handler = refuse

    def shut(self) -> None:
        """Refuse new calls from now on, and tell those that run."""
        self._shut.set()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call, in its one thread."""
        if self._counts(handler_call_details.method):
            if self._shut.is_set():
                self._pool.expect("refusals")
                return self._refusing
            _leaving.set(self._shut)
        return continuation(handler_call_details)

    def _refuse(self, _: Any, context: Any) -> Iterator[Any]:
        context.set_trailing_metadata(self._trailers)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the instance is shutting down")
        yield
