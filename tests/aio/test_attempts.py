"""``lb.attempts(call)`` and ``channel.snapshot()``: what became of a call, and why."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import grpc
import pytest
from tenacity import stop_after_attempt, wait_none

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS, fail
from tests.aio.kit import US, UU, Kind, channel_to, failure


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


async def test_attempts_of_the_error_that_was_raised(backend: Backend, kind: Kind) -> None:
    """The error tells them, too, also from under an interceptor; it can be copied and pickled as grpcio's."""
    backend.always(fail())
    retry = lb.Retry(idempotent=METHODS, stop=stop_after_attempt(2), wait=wait_none())
    async with channel_to(backend, retry=retry, interceptors=[Awaiting()]) as channel:
        error = await failure(kind.start(channel))
        assert [(attempt.number, attempt.address) for attempt in lb.attempts(error)] == [
            (1, backend.address),
            (2, backend.address),
        ]
        again = pickle.loads(pickle.dumps(error))
        assert (again.code(), again.details()) == (error.code(), error.details())
        assert again.debug_error_string() == error.debug_error_string() == copy.deepcopy(error).debug_error_string()
        assert lb.attempts(again) == []
    assert lb.attempts(ValueError()) == []


async def test_attempts_of_what_is_no_call(backend: Backend) -> None:
    """A response, most likely: the error says what to give instead. What is a call, but not of ours, has none."""
    async with channel_to(backend) as channel, grpc.aio.insecure_channel(backend.address) as theirs:
        response = await UU.stub(channel)(b"x")
        for what in (response, None, channel):
            with pytest.raises(TypeError, match=r"attempts\(\) was given .*; expected what a call gave"):
                lb.attempts(what)
        call = UU.start(theirs)
        await call
        assert lb.attempts(call) == []
        backend.script(fail())
        error = await failure(UU.start(channel))
        assert len(lb.attempts(error)) == 1
        assert lb.attempts(asyncio.CancelledError()) == []
