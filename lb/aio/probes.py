"""What core tells of a connection only in answer to a call: two calls of our own, which no server ever answers.

Both take the ``cygrpc.AioChannel`` of the connection.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import grpc

from lb.aio import _grpcio
from lb.core import words

T = TypeVar("T")

_WHY_S = 0.5


async def why_failing(lower: Any) -> str:
    """Core's words for why it cannot connect; empty when it does not say. The call cannot be sent meanwhile."""
    call = lower.call(b"/lb.Subchannel/Why", None, None, False, 0)
    try:
        async with asyncio.timeout(_WHY_S):
            await call.unary_unary(b"", ())
    except (TimeoutError, _grpcio.InternalError):
        return ""
    finally:
        if not call.done():
            call.cancel("not needed")
    details: str = _grpcio.status_now(call).details() or ""
    return details


async def closing(lower: Any) -> bool:
    """Whether core itself gives back what is sent on this connection, as it does after a GOAWAY.

    The call is cancelled in the step that begins it. What comes over the network is slower than that: if it
    does not end as cancelled, but in the words of a closing connection, these are core's own.
    """
    call = lower.call(b"/lb.Subchannel/Closing", None, None, False, 0)
    work = call.unary_unary(b"", ())
    try:
        waits_for = work.send(None)
        call.cancel("not needed")
        await _rest(work, waits_for)
    except (StopIteration, asyncio.CancelledError, _grpcio.InternalError):
        if not call.done():
            raise
    status = _grpcio.status_now(call)
    return (
        _grpcio.STATUS_CODES[status.code()] is grpc.StatusCode.UNAVAILABLE
        and not _grpcio.of_server(call)
        and words.meaning(status.details() or "") is words.Meaning.GIVEN_BACK
    )


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Await a coroutine whose first step was taken by hand; that step returned what it waits for."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            work.throw(error)
            raise
        try:
            waits_for = work.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
