"""Deadline and cancellation of an incoming call go on to the calls that its handler makes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import lb
import lb.sync
from lb.shared import scopes
from lb.shared.handlers import Handlers
from lb.shared.scopes import Scope
from lb.testing import Backend
from lb.testing.backend import SERVICE, echo, hang, hold
from lb.testing.backend import Gate as Held
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, UU, Kind, channel_to, eventually, failure, in_flight

Handle = Callable[[Any, Any], Any]


def forward(kind: Kind, channel: Any, **options: Any) -> Handle:
    """A handler that hands its call on, over ``channel``."""
    stub = kind.stub(channel)

    async def one(request: Any, context: Any) -> bytes:
        answer: bytes = await stub(request, **options)
        return answer

    async def many(request: Any, context: Any) -> AsyncIterator[bytes]:
        async for answer in stub(request, **options):
            yield answer

    return many if kind.streams_responses else one


class Servers:
    """Starts ``grpc.aio`` servers with the interceptor, and channels; all end with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, kind: Kind, handle: Handle, **options: Any) -> str:
        """A server whose method of this kind is ``handle``; its address."""
        server = grpc.aio.server(interceptors=[lb.aio.incoming()], options=[("grpc.so_reuseport", 0)], **options)
        handler = getattr(grpc, f"{kind}_rpc_method_handler")(handle)
        name = kind.method.rpartition("/")[2]
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {name: handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return f"127.0.0.1:{port}"

    async def to(self, address: str, **settings: Any) -> Any:
        """An `lb` channel to one address."""
        return await self._stack.enter_async_context(lb.aio.channel(f"static:///{address}", **settings))

    async def chain(self, kind: Kind, c: Backend, **options: Any) -> Any:
        """A plain channel to A, which forwards to B, which forwards to ``c``; ``options`` are of A's calls."""
        b = await self.serve(kind, forward(kind, await self.to(c.address)))
        a = await self.serve(kind, forward(kind, await self.to(b), **options))
        return await self.client(a)

    async def client(self, address: str) -> Any:
        """A channel of grpcio's own."""
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(address))


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    """Whatever a test starts."""
    async with AsyncExitStack() as stack:
        yield Servers(stack)


# ---- the deadline ----


async def test_the_deadline_travels(servers: Servers, backend: Backend, kind: Kind) -> None:
    """C, called by B, called by A, is given what is left of what the client gave to A."""
    client = await servers.chain(kind, backend)
    assert await kind.run(client, timeout=30) == kind.echo()
    (received,) = backend.received
    assert received.timeout_s is not None
    assert 20 < received.timeout_s < 30.5  # grpc-timeout has three digits, rounded up


async def test_without_a_deadline_there_is_none(servers: Servers, backend: Backend, kind: Kind) -> None:
    """Nothing is made up."""
    client = await servers.chain(kind, backend)
    assert await kind.run(client) == kind.echo()
    assert backend.received[0].timeout_s is None


@pytest.mark.parametrize(("own", "given", "most"), [(30, 90, 30), (90, 30, 30), (30, None, 30)])
async def test_the_earlier_of_two_deadlines_holds(
    servers: Servers, backend: Backend, own: float, given: float | None, most: float
) -> None:
    """A's own timeout, or what is left of its caller's."""
    client = await servers.chain(UU, backend, timeout=own)
    await UU.run(client, timeout=given)
    (received,) = backend.received
    assert received.timeout_s is not None
    assert most - 15 < received.timeout_s < most + 0.5


async def test_a_deadline_that_has_passed_reaches_no_server(backend: Backend) -> None:
    """The call fails at once, though an endpoint is there; no attempt is made, nothing stays in flight."""
    async with channel_to(backend) as channel:
        await UU.run(channel)

        async def late() -> grpc.aio.AioRpcError:
            scopes.enter(Scope(-0.001))
            return await failure(UU.start(channel, timeout=30))

        error = await asyncio.create_task(late())
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "before the first attempt" in str(error.details())
        assert len(backend.received) == 1
        assert in_flight(channel) == 0


# ---- cancellation ----


async def test_cancelling_reaches_the_last_server(servers: Servers, backend: Backend, kind: Kind) -> None:
    """The client cancels its call to A; C, two servers further, is cancelled."""
    backend.script(hang())
    client = await servers.chain(kind, backend)
    call = kind.start(client)
    await backend.until(lambda: backend.in_flight == 1)
    call.cancel()
    await backend.until(lambda: backend.in_flight == 0)
    assert backend.received[0].cancelled


async def spawning(
    servers: Servers, channel: Any, *, ends: bool, detach: bool = False, outcomes: list[Any]
) -> tuple[Any, asyncio.Event]:
    """A client of a server that makes its call in a task of its own, and then ends or hangs."""
    spawned: set[asyncio.Task[Any]] = set()
    begun = asyncio.Event()

    async def work() -> None:
        try:
            outcomes.append(await UU.run(channel))
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            outcomes.append(error)

    async def handle(request: Any, context: Any) -> bytes:
        if detach:
            with lb.detached():
                spawned.add(asyncio.create_task(work()))
        else:
            spawned.add(asyncio.create_task(work()))
        begun.set()
        if not ends:
            await asyncio.Event().wait()
        return b"ended"

    return await servers.client(await servers.serve(UU, handle)), begun


async def test_what_the_handler_spawned_is_cancelled(servers: Servers, backend: Backend) -> None:
    """Also a call that nobody awaits in the handler ends with the incoming one."""
    backend.script(hang())
    outcomes: list[Any] = []
    async with channel_to(backend) as channel:
        client, _ = await spawning(servers, channel, ends=False, outcomes=outcomes)
        call = UU.start(client, timeout=30)
        await backend.until(lambda: backend.in_flight == 1)
        call.cancel()
        await backend.until(lambda: backend.in_flight == 0)
        assert backend.received[0].cancelled
        await eventually(lambda: len(outcomes) == 1)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert in_flight(channel) == 0


@pytest.mark.parametrize("how", ["detached", "propagate"])
async def test_what_is_detached_goes_on(servers: Servers, backend: Backend, how: str) -> None:
    """A detached block, or a channel that does not propagate, has neither deadline nor cancellation from its caller."""
    gate = Held()
    backend.script(hold(gate))
    outcomes: list[Any] = []
    async with channel_to(backend, propagate=how != "propagate") as channel:
        client, _ = await spawning(servers, channel, ends=False, detach=how == "detached", outcomes=outcomes)
        call = UU.start(client, timeout=30)
        await backend.until(lambda: backend.in_flight == 1)
        assert backend.received[0].timeout_s is None
        call.cancel()
        await failure_or_cancelled(call)
        gate.open()
        await eventually(lambda: outcomes == [UU.echo()])


async def failure_or_cancelled(call: Any) -> None:
    """Wait until a cancelled call has ended."""
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_what_a_handler_left_running_goes_on(servers: Servers, backend: Backend) -> None:
    """A handler that ended normally cancels nothing; its deadline holds."""
    gate = Held()
    backend.script(hold(gate))
    outcomes: list[Any] = []
    async with channel_to(backend) as channel:
        client, _ = await spawning(servers, channel, ends=True, outcomes=outcomes)
        assert await UU.run(client, timeout=30) == [b"ended"]
        await backend.until(lambda: backend.in_flight == 1)
        timeout = backend.received[0].timeout_s
        assert timeout is not None
        assert 20 < timeout < 30.5
        gate.open()
        await eventually(lambda: outcomes == [UU.echo()])


async def test_a_stream_is_noticed_while_it_writes(servers: Servers, backend: Backend) -> None:
    """A generator whose reader is gone stands at a yield; what it had spawned is cancelled all the same."""
    backend.script(hang())
    spawned: set[asyncio.Task[Any]] = set()
    kind = KINDS[1]

    async with channel_to(backend) as channel:

        async def handle(request: Any, context: Any) -> AsyncIterator[bytes]:
            spawned.add(asyncio.create_task(UU.run(channel)))
            while True:
                yield b"x" * 100_000

        client = await servers.client(await servers.serve(kind, handle))
        call = kind.start(client)
        assert await call.read()
        await backend.until(lambda: backend.in_flight == 1)
        call.cancel()
        await backend.until(lambda: backend.in_flight == 0)
        (task,) = spawned
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_stopped_server_cancels_too(servers: Servers, backend: Backend) -> None:
    """A server that stops without grace cancels what its handlers had begun."""
    backend.script(hang())
    outcomes: list[Any] = []
    async with channel_to(backend) as channel, AsyncExitStack() as stack:
        client, _ = await spawning(Servers(stack), channel, ends=False, outcomes=outcomes)
        call = UU.start(client)
        await backend.until(lambda: backend.in_flight == 1)
        await stack.aclose()
        await backend.until(lambda: backend.in_flight == 0)
        await failure_or_cancelled(call)
        await eventually(lambda: len(outcomes) == 1)


async def test_after_cancellation_no_call_begins(backend: Backend, kind: Kind) -> None:
    """What a cancelled handler still tries fails at once as cancelled, and reaches no server."""
    async with channel_to(backend) as channel:
        await kind.run(channel)

        async def late() -> None:
            scope = Scope(None)
            scopes.enter(scope)
            scope.cancel()
            call = kind.start(channel)
            with pytest.raises(asyncio.CancelledError):
                await kind.responses(call)
            assert call.cancelled()
            assert await call.details() == scopes.CANCELLED

        await asyncio.create_task(late())
        assert len(backend.received) == 1
        assert in_flight(channel) == 0


async def test_a_scope_may_be_cancelled_in_another_thread(backend: Backend) -> None:
    """The call ends in its own loop."""
    backend.script(hang())
    scope = Scope(None)
    async with channel_to(backend) as channel:

        async def work() -> None:
            scopes.enter(scope)
            await UU.run(channel)

        task = asyncio.create_task(work())
        await backend.until(lambda: backend.in_flight == 1)
        thread = threading.Thread(target=scope.cancel)
        thread.start()
        with pytest.raises(asyncio.CancelledError):
            await task
        thread.join()
        await backend.until(lambda: backend.received[0].cancelled)


async def test_ended_calls_leave_nothing_in_the_scope(backend: Backend) -> None:
    """A stream's handler may make any number of calls: the scope forgets those that are gone."""
    scope = Scope(None)
    async with channel_to(backend) as channel:

        async def work() -> None:
            scopes.enter(scope)
            for _ in range(20):
                await UU.run(channel)

        await asyncio.create_task(work())
    gc.collect()
    assert repr(scope) == "<Scope no deadline calls=0>"


# ---- the scope itself ----


class Noted:
    """An outgoing call that counts how often it was told."""

    def __init__(self) -> None:
        self.told = 0

    def incoming_cancelled(self) -> None:
        """Count."""
        self.told += 1


def test_a_scope_holds_no_call() -> None:
    """It tells those that are there, and those that come later; it keeps none alive."""
    scope = Scope(10)
    first, gone = Noted(), Noted()
    scope.add(first)
    scope.add(gone)
    del gone
    assert "calls=1" in repr(scope)
    scope.cancel()
    late = Noted()
    scope.add(late)
    assert (first.told, late.told) == (1, 1)
    assert "cancelled" in repr(scope)


@pytest.mark.parametrize("remaining", [None, 9.2e18, 1e10])
def test_a_deadline_in_centuries_is_none(remaining: float | None) -> None:
    """That is how grpcio's threads tell a call without one."""
    scope = Scope(remaining)
    assert scope.deadline is None
    assert scope.bound(None) is None
    assert scope.bound(5.0) == 5.0


def test_the_earlier_deadline_is_taken() -> None:
    """On the monotonic clock, which nobody sets."""
    scope = Scope(10)
    now = time.monotonic()
    inherited = scope.bound(None)
    assert inherited is not None
    assert now + 9 < inherited < now + 11
    assert scope.bound(now + 5) == now + 5
    bound = scope.bound(now + 50)
    assert bound is not None
    assert bound < now + 11


def test_detached_blocks_nest() -> None:
    """The scope is there again behind the block, also when it is left by an error."""
    scope = Scope(None)

    def body() -> None:
        scopes.enter(scope)
        with lb.detached():
            with lb.detached():
                assert scopes.current() is None
            assert scopes.current() is None
        assert scopes.current() is scope
        with contextlib.suppress(ZeroDivisionError), lb.detached():
            raise ZeroDivisionError
        assert scopes.current() is scope

    contextvars.copy_context().run(body)


def test_a_handler_is_wrapped_once_for_as_long_as_it_is_the_same() -> None:
    """By method and identity; its serializers stay."""
    handlers = Handlers(lambda method, handler: lambda request, context: None)
    grpcio: Any = grpc
    first = grpcio.unary_unary_rpc_method_handler(lambda r, c: b"", len, repr)
    second = grpcio.stream_stream_rpc_method_handler(lambda r, c: b"")
    wrapped: Any = handlers.wrapped("/a/b", first)
    assert handlers.wrapped("/a/b", first) is wrapped
    serializers: tuple[Any, ...] = (len, repr)
    assert (wrapped.request_deserializer, wrapped.response_serializer) == serializers
    other = handlers.wrapped("/a/b", second)
    assert other.stream_stream is not None
    assert other.request_streaming
    assert other.response_streaming
    for n in range(5000):
        handlers.wrapped(f"/a/{n}", first)
    assert len(handlers._wrapped) <= 4096


async def test_the_kind_of_function_stays() -> None:
    """Interceptors outside, and grpcio, look at it: coroutine, generator, or neither."""

    async def coroutine(request: Any, context: Any) -> bytes:
        return b""

    async def generator(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b""

    def plain(request: Any, context: Any) -> bytes:
        return b""

    interceptor = lb.aio.incoming()
    grpcio: Any = grpc
    for function, check in ((coroutine, inspect.iscoroutinefunction), (generator, inspect.isasyncgenfunction)):
        handler = grpcio.unary_stream_rpc_method_handler(function)
        wrapped: Any = await interceptor.intercept_service(_found(handler), _details("/a/b"))
        assert wrapped is not None
        assert wrapped.unary_stream is not function
        assert check(wrapped.unary_stream)
    handler = grpcio.unary_unary_rpc_method_handler(plain)
    wrapped = await interceptor.intercept_service(_found(handler), _details("/a/c"))
    assert wrapped is not None
    assert wrapped.unary_unary is plain
    assert await interceptor.intercept_service(_found(None), _details("/a/d")) is None


def _found(handler: Any) -> Callable[[Any], Awaitable[Any]]:
    async def continuation(details: Any) -> Any:
        return handler

    return continuation


def _details(method: str) -> Any:
    return SimpleNamespace(method=method, invocation_metadata=())


async def test_a_writing_handler(servers: Servers, backend: Backend) -> None:
    """A stream of responses may also be written by a coroutine."""
    kind = KINDS[1]
    async with channel_to(backend) as channel:

        async def handle(request: Any, context: Any) -> None:
            await context.write(await UU.stub(channel)(request))

        client = await servers.client(await servers.serve(kind, handle))
        assert await kind.run(client, timeout=30) == [b"one"]
        assert backend.received[0].timeout_s is not None


# ---- threads ----


class Threaded:
    """A ``grpc.server`` with the interceptor; its handlers show their scopes."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.noted: list[Noted] = []
        self.reached = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self._threads = ThreadPoolExecutor(4)
        self._server = grpc.server(self._threads, interceptors=[lb.sync.incoming()], options=[("grpc.so_reuseport", 0)])
        handlers = {
            kind.method.rpartition("/")[2]: getattr(grpc, f"{kind}_rpc_method_handler")(
                self._many if kind.streams_responses else self._one
            )
            for kind in KINDS
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Threaded:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.stop(None).wait(5)
        self._threads.shutdown()

    def _one(self, request: Any, context: Any) -> bytes:
        scope = scopes.current()
        assert scope is not None
        noted = Noted()
        scope.add(noted)
        self.scopes.append(scope)
        self.noted.append(noted)
        self.reached.set()
        self.release.wait(HANGS_S)
        self.ended.set()
        return b"answer"

    def _many(self, request: Any, context: Any) -> Any:
        answer = self._one(request, context)
        yield answer
        assert scopes.current() is self.scopes[-1]
        yield answer


async def test_threads_the_deadline(kind: Kind) -> None:
    """The scope of a handler in a thread has the call's deadline, and each call one of its own."""
    with Threaded() as server:
        server.release.set()
        async with grpc.aio.insecure_channel(server.address) as client:
            # Without requests: grpcio's writer would turn an end that it runs into to INTERNAL.
            requests = () if kind.streams_requests else REQUESTS
            await kind.run(client, requests, timeout=30)
            await kind.run(client, requests)
        first, second = server.scopes
        assert first.deadline is not None
        assert 20 < first.deadline - time.monotonic() < 30.5
        assert second.deadline is None
        assert [noted.told for noted in server.noted] == [0, 0]
    assert scopes.current() is None


async def test_threads_cancellation(kind: Kind) -> None:
    """The client cancels: the calls of the running handler are cancelled at once, while it still runs."""
    with Threaded() as server:
        async with grpc.aio.insecure_channel(server.address) as client:
            call = kind.start(client)
            await eventually(server.reached.is_set)
            call.cancel()
            await eventually(lambda: server.noted[0].told == 1)
            assert not server.ended.is_set()


async def test_threads_a_reader_that_leaves() -> None:
    """A stream that is cancelled between two answers ends its scope, too."""
    kind = KINDS[1]
    with Threaded() as server:
        async with grpc.aio.insecure_channel(server.address) as client:
            call = kind.start(client)
            await eventually(server.reached.is_set)
            call.cancel()
            server.release.set()
            await eventually(lambda: server.noted[0].told >= 1)


async def test_threads_an_ended_handler_cancels_nothing() -> None:
    """Once the handler is through, the end of its call is none of its calls' business."""
    with Threaded() as server:
        server.release.set()
        async with grpc.aio.insecure_channel(server.address) as client:
            assert await UU.run(client) == [b"answer"]
            await eventually(server.ended.is_set)
    assert not server.scopes[0].cancelled


async def test_threads_unknown_methods() -> None:
    """What is not served is UNIMPLEMENTED, as ever."""
    with Threaded() as server:
        async with grpc.aio.insecure_channel(server.address) as client:
            unknown: Any = client.unary_unary("/no.Such/Method")
            error = await failure(unknown(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_from_threads_to_the_next_server(backend: Backend, kind: Kind) -> None:
    """A handler in a thread calls through an `lb` channel for threads: less time, and cancelled with its caller."""
    backend.script(echo(), hang())
    with lb.sync.channel(f"static:///{backend.address}") as channel:
        stub = kind.stub(channel)
        threads = ThreadPoolExecutor(2)
        server = grpc.server(threads, interceptors=[lb.sync.incoming()], options=[("grpc.so_reuseport", 0)])
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        handlers = {kind.method.rpartition("/")[2]: make(lambda request, context: stub(request))}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as client:
                assert await kind.run(client, timeout=30) == kind.echo()
                timeout = backend.received[0].timeout_s
                assert timeout is not None
                assert 20 < timeout < 30.5
                call = kind.start(client, timeout=30)
                await backend.until(lambda: backend.in_flight == 1)
                call.cancel()
                await backend.until(lambda: backend.in_flight == 0)
                assert backend.received[1].cancelled
        finally:
            server.stop(None).wait(5)
            threads.shutdown()
