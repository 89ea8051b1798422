"""The outermost interceptor of a server for asyncio: what it makes of a stream whose reader is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lb.server.gate import Gate, Meter


class Gone:
    """A context whose client is gone, which grpcio notices at the second write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.error = grpc.aio.InternalError("cannot write")

    async def write(self, response: bytes) -> None:
        """Take one response."""
        if self.written:
            raise self.error
        self.written.append(response)


async def test_a_write_that_fails_is_a_call_that_was_cancelled() -> None:
    """No error is logged for that, and what it was stays to be seen; the handler is closed, the call counted."""
    closed: list[str] = []

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"news"
        finally:
            closed.append("closed")

    meter = Meter()
    gate, context = Gate(meter), Gone()
    handler: Any = grpc.unary_stream_rpc_method_handler(watch)
    with pytest.raises(asyncio.CancelledError) as caught:
        await gate.around("/test.Service/Watch", handler)(b"", context)
    assert caught.value.__cause__ is context.error
    assert (context.written, closed, meter.in_flight, meter.calls_total) == ([b"news"], ["closed"], 0, 1)


async def test_an_error_of_the_handler_is_its_own() -> None:
    """Only a write that fails says that the reader is gone."""

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"news"
        raise ValueError("not today")

    handler: Any = grpc.unary_stream_rpc_method_handler(watch)
    with pytest.raises(ValueError, match="not today"):
        await Gate(Meter()).around("/test.Service/Watch", handler)(b"", Gone())
