"""Interceptors see the call that the user made, once, however many attempts it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import answered_by, fail, hang
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, IDEMPOTENT, REQUESTS, UU, First, Kind, channel_to, failure, in_flight, ready


class Seen:
    """What an interceptor notes."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls: list[str] = []
        self.ended: list[Any] = []

    async def _pass(self, continuation: Any, details: Any, request: Any) -> Any:
        method = details.method if isinstance(details.method, str) else details.method.decode()
        self.calls.append(method)
        metadata = grpc.aio.Metadata(*tuple(details.metadata or ()), (f"x-by-{self.name or 'me'}", "1"))
        call = await continuation(details._replace(metadata=metadata), request)
        call.add_done_callback(self.ended.append)
        return call


class ForUU(Seen, grpc.aio.UnaryUnaryClientInterceptor):
    """Unary-unary."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Note it."""
        return await self._pass(continuation, client_call_details, request)


class ForUS(Seen, grpc.aio.UnaryStreamClientInterceptor):
    """Unary-stream."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Note it."""
        return await self._pass(continuation, client_call_details, request)


class ForSU(Seen, grpc.aio.StreamUnaryClientInterceptor):
    """Stream-unary."""

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """Note it."""
        return await self._pass(continuation, client_call_details, request_iterator)


class ForSS(Seen, grpc.aio.StreamStreamClientInterceptor):
    """Stream-stream."""

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """Note it."""
        return await self._pass(continuation, client_call_details, request_iterator)


class ForAll(ForUU, ForUS, ForSU, ForSS):
    """One class of all four kinds."""


def one_of_each() -> list[Any]:
    """Four interceptors."""
    return [ForUU(), ForUS(), ForSU(), ForSS()]


async def test_each_kind_sees_its_calls_once(fleet: Fleet, kind: Kind) -> None:
    """Two attempts, one call: the interceptor of that kind is asked once and sees the final status."""
    one, two = await fleet(2)
    interceptors = one_of_each()
    async with channel_to(one, two, policy=First(), retry=IDEMPOTENT, interceptors=interceptors) as channel:
        await ready(channel, 2)
        one.always(fail())
        call = kind.start(channel)
        assert await kind.responses(call) == kind.echo()
        assert answered_by(await call.trailing_metadata()) == "b"
        assert len(lb.attempts(call)) == 2
        assert in_flight(channel) == 0
    assert [i.calls for i in interceptors if i.calls] == [[kind.method]]
    assert [[await call.code() for call in i.ended] for i in interceptors if i.ended] == [[grpc.StatusCode.OK]]
    assert [b.received[0].metadata["x-by-me"] for b in (one, two)] == ["1", "1"]
    assert two.received[0].messages == kind.sent()


async def test_one_class_of_all_kinds_serves_all(backend: Backend, kind: Kind) -> None:
    """Grpcio would register it for the first kind alone, and never call it for the others."""
    interceptor = ForAll()
    async with channel_to(backend, interceptors=[interceptor]) as channel:
        assert await kind.run(channel) == kind.echo()
    assert interceptor.calls == [kind.method]


async def test_the_first_in_the_list_is_outermost(backend: Backend, kind: Kind) -> None:
    """As in grpcio: what it adds comes first."""
    interceptors = [ForAll("first"), ForAll("second")]
    async with channel_to(backend, interceptors=interceptors) as channel:
        assert await kind.run(channel) == kind.echo()
    keys = [key for key in backend.received[0].metadata if key.startswith("x-by")]
    assert keys == ["x-by-first", "x-by-second"]


async def test_a_final_failure_reaches_them_once(backend: Backend, kind: Kind) -> None:
    """After the last attempt, with its status."""
    backend.always(fail(details="away"))
    interceptor = ForAll()
    async with channel_to(backend, retry=IDEMPOTENT, interceptors=[interceptor]) as channel:
        error = await failure(kind.start(channel))
        assert in_flight(channel) == 0
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "away")
    assert [await call.code() for call in interceptor.ended] == [grpc.StatusCode.UNAVAILABLE]
    assert len(backend.received) == 4


async def test_an_interceptor_may_answer_by_itself(backend: Backend) -> None:
    """No attempt is made."""

    class Cached(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            return b"cached"

    async with channel_to(backend, interceptors=[Cached()]) as channel:
        call = UU.start(channel)
        assert await call == b"cached"
        assert lb.attempts(call) == []
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    assert backend.received == []


async def test_an_interceptor_that_raises_ends_the_call(backend: Backend, kind: Kind) -> None:
    """Its own error comes out; nothing is in flight."""

    class Raising(ForAll):
        async def _pass(self, continuation: Any, details: Any, request: Any) -> Any:
            raise LookupError("no token")

    async with channel_to(backend, interceptors=[Raising()]) as channel:
        with pytest.raises(LookupError, match="no token"):
            await kind.run(channel)
        assert in_flight(channel) == 0
    assert backend.received == []


async def test_a_call_that_an_interceptor_forgot_ends_with_its_channel(backend: Backend, kind: Kind) -> None:
    """The channel does not know it. When its attempt fails after closing, it does not wait for another for ever."""
    backend.always(hang())
    left: list[Any] = []

    class Forgetful(ForAll):
        async def _pass(self, continuation: Any, details: Any, request: Any) -> Any:
            left.append(await continuation(details, request))
            await asyncio.Event().wait()

    channel = channel_to(backend, retry=IDEMPOTENT, interceptors=[Forgetful()])
    call = kind.start(channel, () if kind.streams_requests else REQUESTS)
    await backend.until(lambda: backend.in_flight == 1)
    call.cancel()
    await channel.close()
    await backend.stop()
    async with asyncio.timeout(HANGS_S):
        assert await left[0].code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert in_flight(channel) == 0
