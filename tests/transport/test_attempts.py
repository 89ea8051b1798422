"""``lb.attempts(call)`` and ``channel.snapshot()``: what became of a call, and why."""

from __future__ import annotations

from typing import Any

import grpc

import lb
from lb.testing import Backend
from lb.testing.backend import fail
from tests.transport.kit import US, UU, channel_to, failure


class Awaiting(grpc.aio.UnaryUnaryClientInterceptor):
    """Waits for the response, as interceptors that look at it do."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """As grpcio asks for it."""
        call = await continuation(details, request)
        return await call


class Wrapping(grpc.aio.UnaryStreamClientInterceptor):
    """Hands the responses through a generator of its own."""

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """As grpcio asks for it."""
        call = await continuation(details, request)

        async def responses() -> Any:
            async for message in call:
                yield message

        return responses()


async def test_attempts_under_an_interceptor_that_awaits_the_response(backend: Backend) -> None:
    """They are found though the interceptor returned a response, or raised the call's error."""
    async with channel_to(backend, interceptors=[Awaiting()]) as channel:
        call = UU.start(channel)
        await call
        assert [attempt.endpoint_id for attempt in lb.attempts(call)] == [backend.address]
        backend.script(fail())
        call = UU.start(channel)
        await failure(call)
        assert len(lb.attempts(call)) == 1


async def test_attempts_under_an_interceptor_that_wraps_the_responses(backend: Backend) -> None:
    """They are found though the interceptor returned an iterator of its own."""
    async with channel_to(backend, interceptors=[Wrapping()]) as channel:
        call = US.start(channel)
        assert await US.responses(call) == US.echo()
        assert len(lb.attempts(call)) == 1
