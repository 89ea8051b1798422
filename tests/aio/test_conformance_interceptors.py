"""Interceptors, in all worlds: what they may see, change, return and raise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lb.testing.backend import Gate, fail, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, SS, US, UU, Kind, each, eventually, failure
from tests.aio.worlds import ONE_RESPONSE, REQUEST_STREAMS, RESPONSE_STREAMS, Side

INVALID = grpc.StatusCode.INVALID_ARGUMENT
BASES = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}


def interceptor(kind: Kind, body: Any) -> Any:
    """One of that kind; ``body(continuation, details, request)`` is what it does."""

    async def intercept(self: Any, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await body(continuation, client_call_details, request)

    return type("Interceptor", (BASES[kind.name],), {f"intercept_{kind.name}": intercept})()


async def passing(continuation: Any, details: Any, request: Any) -> Any:
    """Changes nothing."""
    return await continuation(details, request)


async def test_what_an_interceptor_is_told(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Method, timeout, metadata, credentials and wait_for_ready as the caller gave them, and the request."""
    seen: list[Any] = []

    async def look(continuation: Any, details: Any, request: Any) -> Any:
        seen.append((details, request))
        return await continuation(details, request)

    async with side.to(await fleet(side.backends), interceptors=[interceptor(kind, look)]) as channel:
        call = kind.start(channel, timeout=20, metadata=(("x-a", "1"),), wait_for_ready=True)
        assert await kind.responses(call) == kind.echo()
        for other in KINDS:
            assert await other.run(channel) == other.echo()
    details, request = seen[0]
    assert len(seen) == 2  # it was asked for its own kind alone
    assert isinstance(details, grpc.aio.ClientCallDetails)
    assert details.method in (kind.method, kind.method.encode())
    assert (details.timeout, details.credentials, details.wait_for_ready) == (20, None, True)
    assert details.metadata is not None
    assert tuple(details.metadata) == (("x-a", "1"),)
    assert kind.streams_requests or request == REQUESTS[0]


async def test_order_there_and_back(side: Side, fleet: Fleet, kind: Kind) -> None:
    """The first in the list is the outermost."""
    seen: list[str] = []

    def named(name: str) -> Any:
        async def body(continuation: Any, details: Any, request: Any) -> Any:
            seen.append(f"{name} before")
            call = await continuation(details, request)
            seen.append(f"{name} after")
            return call

        return interceptor(kind, body)

    async with side.to(await fleet(side.backends), interceptors=[named("one"), named("two")]) as channel:
        assert await kind.run(channel) == kind.echo()
    assert seen == ["one before", "two before", "two after", "one after"]


async def test_what_an_interceptor_may_change(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Method, metadata, timeout and request reach the server as it left them."""
    backends = await fleet(side.backends)

    async def change(continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("x-by", "interceptor"))
        changed = details._replace(method=kind.method.encode(), metadata=metadata, timeout=60)
        return await continuation(changed, each((b"new",)) if kind.streams_requests else b"new")

    async with side.to(backends, interceptors=[interceptor(kind, change)]) as channel:
        stub = getattr(channel, kind.name)("/lb.testing.Echo/Nowhere")
        call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0], metadata=(("x-a", "1"),))
        assert await kind.responses(call) == kind.echo((b"new",))
    (received,) = [received for backend in backends for received in backend.received]
    assert received.messages == [b"new"]
    assert (received.metadata["x-a"], received.metadata["x-by"]) == ("1", "interceptor")
    assert received.timeout_s is not None
    assert 30 < received.timeout_s < 61


@pytest.mark.parametrize("kind", [UU], ids=str)
async def test_an_interceptor_that_answers(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Nothing is sent; the call is done, OK, and has no metadata."""
    backends = await fleet(side.backends)

    async def cached(continuation: Any, details: Any, request: Any) -> Any:
        return b"cached"

    outer = interceptor(kind, passing)
    async with side.to(backends, interceptors=[outer, interceptor(kind, cached)]) as channel:
        call = kind.start(channel)
        assert await kind.responses(call) == [b"cached"]
        assert call.done()
        assert not call.cancelled()
        assert call.cancel() is False
        assert await call.code() is grpc.StatusCode.OK
        assert await call.details() == ""
        assert await call.initial_metadata() is None
        assert await call.trailing_metadata() is None
    assert not any(backend.received for backend in backends)


@RESPONSE_STREAMS
async def test_responses_through_an_iterator_of_its_own(side: Side, fleet: Fleet, kind: Kind) -> None:
    """What it yields is what the caller reads, by iteration and by hand."""

    async def wrap(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)

        async def louder() -> AsyncIterator[bytes]:
            async for message in call:
                yield message.upper()

        return louder()

    async with side.to(await fleet(side.backends), interceptors=[interceptor(kind, wrap)]) as channel:
        call = kind.start(channel)
        assert await kind.responses(call) == [message.upper() for message in kind.echo()]
        assert await call.code() is grpc.StatusCode.OK
        call = kind.start(channel)
        assert [await call.read() for _ in range(3)] == [message.upper() for message in kind.echo()]
        assert await call.read() is grpc.aio.EOF


@ONE_RESPONSE
async def test_an_interceptor_that_retries(side: Side, fleet: Fleet, kind: Kind) -> None:
    """A retry of the interceptor's own: the first call fails, the second's answer is the caller's."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(fail(INVALID))
    codes: list[Any] = []

    async def again(continuation: Any, details: Any, request: Any) -> Any:
        first = await continuation(details, () if kind.streams_requests else request)
        codes.append(await first.code())
        for backend in backends:
            backend.always(None)
        second = await continuation(details, each(REQUESTS) if kind.streams_requests else request)
        codes.append(await second.code())
        return second

    async with side.to(backends, interceptors=[interceptor(kind, again)]) as channel:
        call = kind.start(channel)
        assert await kind.responses(call) == kind.echo()
        assert await call.code() is grpc.StatusCode.OK
    assert codes == [INVALID, grpc.StatusCode.OK]
    assert sum(len(backend.received) for backend in backends) == 2


async def test_an_interceptor_that_raises(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Comes out of the call as it is; nothing is sent."""
    backends = await fleet(side.backends)

    async def broken(continuation: Any, details: Any, request: Any) -> Any:
        raise LookupError("no token")

    async with side.to(backends, interceptors=[interceptor(kind, broken)]) as channel:
        call = kind.start(channel)
        with pytest.raises(LookupError, match="no token"):
            await kind.responses(call)
    assert not any(backend.received for backend in backends)


async def test_a_failure_through_an_interceptor(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Code, words and trailers on the error and on the call, as without one."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(fail(INVALID, "no such thing", trailing_metadata=(("x-why", "because"),)))
    async with side.to(backends, interceptors=[interceptor(kind, passing)]) as channel:
        call = kind.start(channel, () if kind.streams_requests else REQUESTS)
        error = await failure(call)
        assert error.code() is await call.code() is INVALID
        assert error.details() == await call.details() == "no such thing"
        assert (await call.trailing_metadata())["x-why"] == "because"
        assert call.done()
        assert not call.cancelled()


async def test_done_callbacks_through_an_interceptor(side: Side, fleet: Fleet, kind: Kind) -> None:
    """Each is called once, at the end, also one that is added late."""
    gate = Gate()
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hold(gate))
    async with side.to(backends, interceptors=[interceptor(kind, passing)]) as channel:
        call = kind.start(channel)
        seen: list[str] = []
        call.add_done_callback(lambda c: seen.append(f"early {c.done()}"))
        await eventually(lambda: any(backend.received for backend in backends))
        assert seen == []
        gate.open()
        await kind.responses(call)
        assert await call.code() is grpc.StatusCode.OK
        call.add_done_callback(lambda c: seen.append(f"late {c.done()}"))
        await eventually(lambda: len(seen) == 2)
    assert sorted(seen) == ["early True", "late True"]


@pytest.mark.parametrize("sent", [False, True], ids=["before sending", "after sending"])
async def test_cancel_while_an_interceptor_waits(side: Side, fleet: Fleet, kind: Kind, sent: bool) -> None:
    """CANCELLED at once; what was sent is cancelled at the server as well."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hang())
    reached = asyncio.Event()

    async def waiting(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request) if sent else None
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            if call is not None:  # who forgets it leaves it running, in grpcio too
                call.cancel()

    async with side.to(backends, interceptors=[interceptor(kind, waiting)]) as channel:
        call = kind.start(channel, () if kind.streams_requests else REQUESTS)
        await reached.wait()
        if sent and kind is UU:
            await eventually(lambda: any(backend.received for backend in backends))
        assert not call.done()
        assert call.cancel() is True
        with pytest.raises(asyncio.CancelledError):
            await kind.responses(call)
        assert call.cancelled()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await eventually(lambda: not any(backend.in_flight for backend in backends), "the servers were told")


@pytest.mark.parametrize("kind", [UU, SS, US], ids=str)
async def test_an_interceptor_that_cancels(side: Side, fleet: Fleet, kind: Kind) -> None:
    """The caller's call is cancelled."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hang())

    async def cancelling(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        call.cancel()
        return call

    async with side.to(backends, interceptors=[interceptor(kind, cancelling)]) as channel:
        call = kind.start(channel, () if kind.streams_requests else REQUESTS)
        with pytest.raises(asyncio.CancelledError):
            await kind.responses(call)
        assert call.cancelled()


@REQUEST_STREAMS
async def test_writing_through_an_interceptor(side: Side, fleet: Fleet, kind: Kind) -> None:
    """By hand, in order; afterwards a write is an error, and mixing with an iterator, too."""
    backends = await fleet(side.backends)
    async with side.to(backends, interceptors=[interceptor(kind, passing)] * 2) as channel:
        call = kind.stub(channel)()
        for request in REQUESTS:
            await call.write(request)
        await call.done_writing()
        assert await kind.responses(call) == kind.echo()
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"late")
        mixed = kind.start(channel)
        with pytest.raises(grpc.aio.UsageError):
            await mixed.write(b"x")
        with pytest.raises(grpc.aio.UsageError):
            await mixed.done_writing()
        mixed.cancel()


@pytest.mark.parametrize("method", [UU.method, None, 7], ids=["text", "None", "number"])
async def test_a_method_that_is_no_bytes(side: Side, fleet: Fleet, method: Any) -> None:
    """``TypeError`` with grpcio's words, from awaiting the call."""

    async def change(continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(method=method), request)

    async with side.to(await fleet(side.backends), interceptors=[interceptor(UU, change)]) as channel:
        with pytest.raises(TypeError, match="expected bytes"):
            await UU.run(channel)


async def test_closing_a_channel_with_intercepted_calls(side: Side, fleet: Fleet, kind: Kind) -> None:
    """They are cancelled, and the server is told."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hang())
    channel = side.to(backends, interceptors=[interceptor(kind, passing)])
    call = kind.start(channel, () if kind.streams_requests else REQUESTS)
    await eventually(lambda: any(backend.received for backend in backends))
    await channel.close()
    assert call.cancelled()
    await eventually(lambda: not any(backend.in_flight for backend in backends), "the servers were told")


async def test_what_an_interceptor_left_running_ends(side: Side, fleet: Fleet, kind: Kind) -> None:
    """A call that it made and forgot is not known to the channel; it ends with its server, and waits for no other."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hang())
    left: list[Any] = []

    async def forgetful(continuation: Any, details: Any, request: Any) -> Any:
        left.append(await continuation(details, request))
        await asyncio.Event().wait()

    channel = side.to(backends, interceptors=[interceptor(kind, forgetful)])
    call = kind.start(channel, () if kind.streams_requests else REQUESTS)
    await eventually(lambda: any(backend.in_flight for backend in backends))
    call.cancel()
    await channel.close()
    for backend in backends:
        await backend.stop()
    async with asyncio.timeout(HANGS_S):
        assert await left[0].code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
