"""What stands right around every handler of the mesh.

::

    call ─► lb's gate ─► OpenTelemetry's server span ─► lb's admission, reports of load ─► Boundary ─► lb's `incoming`
         ─► handler

The *boundary* puts the instance's id into the trailing metadata and turns exceptions into statuses.
It stands within the span, so that the span sees the status.

Nothing here sends initial metadata: headers commit a call and forbid its retry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from lb.server import Around, Behavior, behavior_of
from services.runtime.errors import CallError, Trailers

INSTANCE_KEY = "mesh-instance-id"
"""Key of the serving instance's id in the trailing metadata."""

_GRPC_OWN = "/grpc."
_RUNTIME = "/mesh.runtime."

log = structlog.get_logger()

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in the types alone


def is_business(method: str) -> bool:
    """Whether a method (``/package.Service/Method``) is a service's own: not health, reflection or Describe."""
    return not method.startswith((_GRPC_OWN, _RUNTIME))


class Boundary(Around):
    """Adds the instance's id to the trailing metadata; turns exceptions into statuses."""

    def __init__(self, trailers: Trailers) -> None:
        super().__init__()
        self._trailers = trailers

    def concerns(self, method: str) -> bool:
        """GRPC's own services know nothing of ours."""
        return not method.startswith(_GRPC_OWN)

    def around(self, method: str, handler: Handler) -> Behavior:
        """The boundary, and the handler within."""
        behavior = behavior_of(handler)
        trailers = self._trailers

        async def unary(request: Any, context: Any) -> Any:
            context.set_trailing_metadata(trailers)
            try:
                return await behavior(request, _Context(context, trailers))
            except Exception as error:
                await _abort(method, error, context, trailers)
                raise

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            context.set_trailing_metadata(trailers)
            try:
                async with aclosing(behavior(request, _Context(context, trailers))) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                await _abort(method, error, context, trailers)
                raise

        return stream if handler.response_streaming else unary


class _Context:
    """A servicer context whose trailing metadata always has the instance's id."""

    __slots__ = ("_context", "_trailers")

    def __init__(self, context: Any, trailers: Trailers) -> None:
        self._context = context
        self._trailers = trailers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata((*self._trailers, *trailing_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        # Without metadata of its own, abort sends what was set before, and that has the id.
        own = (*self._trailers, *trailing_metadata) if trailing_metadata else ()
        await self._context.abort(code, details, own)

    async def abort_with_status(self, status: Any) -> None:
        await self.abort(status.code, status.details, status.trailing_metadata)


async def _abort(method: str, error: Exception, context: Any, trailers: Trailers) -> None:
    """End the call with the status that an exception stands for. Returns when it has ended already."""
    if isinstance(error, grpc.aio.BaseError):
        return  # the handler called abort itself, or the peer is gone
    if isinstance(error, CallError):
        set_before = [pair for pair in context.trailing_metadata() or () if pair not in trailers]
        await context.abort(error.code, error.message, (*trailers, *set_before, *error.trailers))
    log.error("call failed unexpectedly", method=method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error; the instance has logged it")
