"""Handlers of every form that grpcio takes, behind each interceptor for asyncio and in a whole server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import grpc
import pytest

import lb.aio
from lb.core.orca import decode
from lb.core.outcome import REPORT_KEY
from lb.server import Admission, Around, Behavior, Limits, LoadReporter, LoadTrailers, Server, behavior_of, cost
from lb.server.gate import Gate, Meter
from lb.testing import FakeClock
from tests.support.wait import eventually

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
STREAMING = ("unary_stream", "stream_stream")


class Own(Around):
    """One as a user writes it."""

    def around(self, method: str, handler: Any) -> Behavior:
        """Change nothing."""
        behavior = behavior_of(handler)

        async def unary(request: Any, context: Any) -> Any:
            return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response

        return stream if handler.response_streaming else unary


class Plain(Around):
    """One whose functions are no coroutines, though what they return is."""

    def around(self, method: str, handler: Any) -> Behavior:
        """Change nothing."""
        behavior = behavior_of(handler)
        return lambda request, context: behavior(request, context)


def reports() -> LoadTrailers:
    """Reports of load, with each answer."""
    clock = FakeClock()
    return LoadTrailers(LoadReporter(clock=clock, cpu=lambda: 0.0))


STANDS: dict[str, Callable[[], Any]] = {
    "none": lambda: grpc.aio.server(),
    "incoming": lambda: grpc.aio.server(interceptors=[lb.aio.incoming()]),
    "admission": lambda: grpc.aio.server(interceptors=[Admission(Limits(timeout_s=60.0))]),
    "reports": lambda: grpc.aio.server(interceptors=[reports()]),
    "gate": lambda: grpc.aio.server(interceptors=[Gate(Meter())]),
    "own": lambda: grpc.aio.server(interceptors=[Own()]),
    "plain": lambda: grpc.aio.server(interceptors=[Plain()]),
    "all": lambda: grpc.aio.server(interceptors=[Own(), Admission(), reports(), lb.aio.incoming()]),
    "server": lambda: Server("test", listen=None),
    "server without limits": lambda: Server("test", listen=None, limits=False),
    "server with others": lambda: Server("test", listen=None, interceptors=[Own()], inner=[Plain()]),
}


class Written:
    """``async def``: what streams responses writes them, also from another task."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def unary(self, request: Any, context: Any) -> bytes:
        """What was asked, and what `fails` says."""
        return await self._asked(request, context)

    async def stream(self, request: Any, context: Any) -> None:
        """Three responses."""
        await context.write(b"first")
        await asyncio.create_task(context.write(b"second"))
        await context.write(await self._asked(request, context))

    async def hold(self, request: Any, context: Any) -> None:
        """One response, and no end."""
        await context.write(b"first")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def _asked(self, request: Any, context: Any) -> bytes:
        asked: bytes = request if isinstance(request, bytes) else b"".join([each async for each in request])
        context.set_trailing_metadata((("who", "handler"),))
        cost("rows", 2.0)
        if asked == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "not here", (("why", "test"),))
        if asked == b"raise":
            raise ValueError("broken")
        return asked


class Threaded:
    """``def``, and generators: grpcio runs them in threads."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.ended = threading.Event()

    def unary(self, request: Any, context: Any) -> bytes:
        """What was asked, and what `fails` says."""
        context.add_callback(self.ended.set)
        return self._asked(request, context)

    def stream(self, request: Any, context: Any) -> Iterator[bytes]:
        """Three responses."""
        context.add_callback(self.ended.set)
        yield b"first"
        yield b"second"
        yield self._asked(request, context)

    def hold(self, request: Any, context: Any) -> Iterator[bytes]:
        """More responses than a client reads."""
        try:
            while True:
                yield b"first"
        finally:
            self.closed.set()

    def _asked(self, request: Any, context: Any) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        asked: bytes = request if isinstance(request, bytes) else b"".join(request)
        context.set_trailing_metadata((("who", "handler"),))
        cost("rows", 2.0)
        if asked == b"abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "not here", (("why", "test"),))
        if asked == b"raise":
            raise ValueError("broken")
        return asked


FORMS: dict[str, Callable[[], Any]] = {"written": Written, "threads": Threaded}


async def serve(stack: AsyncExitStack, server: Any, handlers: Any) -> Any:
    """Serve ``handlers`` there; a channel to them, of grpcio's own."""
    made: dict[str, Any] = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(handlers.stream if kind in STREAMING else handlers.unary)
        for kind in KINDS
    }
    hold: Any = handlers.hold
    made["hold"] = grpc.unary_stream_rpc_method_handler(hold)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", made)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))


async def asked(channel: Any, kind: str, request: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """The responses to a call of this kind, and its trailing metadata."""

    async def requests() -> AsyncIterator[bytes]:
        yield request[:2]
        yield request[2:]

    call = getattr(channel, kind)(f"/a.B/{kind}")(requests() if kind.startswith("stream") else request, timeout=60)
    responses = [each async for each in call] if kind in STREAMING else [await call]
    return responses, {str(key): value for key, value in await call.trailing_metadata()}


@pytest.mark.parametrize("stand", STANDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_calls_are_answered(stand: str, form: str, kind: str) -> None:
    """Responses, trailing metadata, statuses: as without any interceptor."""
    async with AsyncExitStack() as stack:
        channel = await serve(stack, STANDS[stand](), FORMS[form]())
        expected = [b"first", b"second", b"question"] if kind in STREAMING else [b"question"]
        for _ in range(2):
            responses, trailing = await asked(channel, kind, b"question")
            assert responses == expected
            assert trailing["who"] == "handler"
            if stand in ("reports", "all"):
                assert decode(trailing[REPORT_KEY]).request_cost == {"rows": 2.0}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(channel, kind, b"abort")
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
        assert ("why", "test") in [*caught.value.trailing_metadata()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(channel, kind, b"raise")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert "broken" in (caught.value.details() or "")


@pytest.mark.parametrize("stand", STANDS)
async def test_a_stream_that_is_written_ends_with_its_client(stand: str) -> None:
    """The handler is cancelled."""
    async with AsyncExitStack() as stack:
        handlers = Written()
        channel = await serve(stack, STANDS[stand](), handlers)
        call = channel.unary_stream("/a.B/hold")(b"")
        assert await call.read() == b"first"
        call.cancel()
        await asyncio.wait_for(handlers.cancelled.wait(), 30)


@pytest.mark.parametrize("stand", [stand for stand in STANDS if stand not in ("none", "incoming")])
async def test_a_generator_in_threads_is_closed_when_its_client_is_gone(stand: str) -> None:
    """And no thread is left with it. (grpcio itself leaves a thread waiting for ever.)"""
    async with AsyncExitStack() as stack:
        handlers = Threaded()
        channel = await serve(stack, STANDS[stand](), handlers)
        call = channel.unary_stream("/a.B/hold")(b"")
        assert await call.read() == b"first"
        call.cancel()
        await eventually(handlers.closed.is_set, "it is closed")


async def test_a_thread_is_told_the_end_of_its_call() -> None:
    """By ``add_callback``; and its place is given back, whatever comes of the call."""
    async with AsyncExitStack() as stack:
        admission, handlers = Admission(), Threaded()
        channel = await serve(stack, grpc.aio.server(interceptors=[admission]), handlers)
        for kind in KINDS:
            for request in (b"question", b"abort"):
                handlers.ended.clear()
                await asyncio.gather(asked(channel, kind, request), return_exceptions=True)
                await eventually(handlers.ended.is_set, "it is told")
                await eventually(lambda: admission.places.load == 0, "the place is given back")
