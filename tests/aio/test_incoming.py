"""Deadline and cancellation of an incoming call go on to the calls that its handler makes."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import lb
import lb.sync
from lb.shared import scopes
from lb.shared.scopes import Scope
from lb.testing import Backend
from lb.testing.backend import SERVICE, hang, hold
from lb.testing.backend import Gate as Held
from tests.aio.kit import KINDS, UU, Kind, channel_to, eventually, failure, in_flight

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


# ---- the interceptor itself ----


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
