"""Reports of a server's load in trailing metadata, as `lb.server.LoadTrailers`, for a ``grpc.server``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from lb.server.gate import not_grpcs_own
from lb.server.orca import LoadReporter, check_reporter, counting
from lb.shared import threads as kinds
from lb.shared.handlers import Behavior, Handlers, behavior_of

if TYPE_CHECKING:
    from lb.shared.handlers import Handler


class LoadTrailers(grpc.ServerInterceptor):
    """Puts a reporter's reports into the trailing metadata of calls that end well. `lb.server.cost` works in handlers.

    Args:
        reporter: what is reported; it belongs to this interceptor alone.
        counts: which methods (``/package.Service/Method``) are counted and carry a report. By default all but gRPC's
            own.
    """

    def __init__(self, reporter: LoadReporter, *, counts: Callable[[str], bool] | None = None) -> None:
        check_reporter("LoadTrailers.reporter", reporter)
        self._reporter = reporter
        self._counts = counts or not_grpcs_own
        self._handlers = Handlers(self._around)
        self._lock = kinds.lock()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        return handler if handler is None or not self._counts(method) else self._handlers.wrapped(method, handler)

    def _around(self, method: str, handler: Handler) -> Behavior:
        behavior = behavior_of(handler)

        @functools.wraps(behavior)  # some of grpcio's switches are attributes of the function
        def handle(request: Any, context: Any, *send: Any) -> Any:
            costs = counting()
            try:
                answer = behavior(request, context, *send)
            except BaseException:
                self._ended(failed=True)
                raise
            if handler.response_streaming and not send:
                return self._streamed(answer, context, costs)
            self._ended(failed=False)
            self._report(context, costs)
            return answer

        return handle

    def _streamed(self, answers: Iterator[Any], context: Any, costs: dict[str, float]) -> Iterator[Any]:
        failed = True
        try:
            yield from answers
            failed = False
        finally:
            self._ended(failed=failed)
        self._report(context, costs)

    def _ended(self, *, failed: bool) -> None:
        with self._lock:
            self._reporter.ended(failed=failed)

    def _report(self, context: Any, costs: dict[str, float]) -> None:
        with self._lock:
            trailers = self._reporter.trailers(costs)
        if trailers:
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), *trailers))

    def __repr__(self) -> str:
        return f"<LoadTrailers {self._reporter!r}>"
