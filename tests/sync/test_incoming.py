"""Deadline and cancellation of an incoming call go on to the calls that its handler makes in its thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import pytest

import lb.sync
from lb.shared import scopes
from lb.shared.scopes import Scope
from lb.testing import Backend
from lb.testing.backend import SERVICE, echo, hang
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, UU, Kind, eventually, failure
from tests.shared.kit import Noted


class Threaded:
    """A ``grpc.server`` with the interceptor; its handlers show their scopes."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.noted: list[Noted] = []
        self.reached = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self.writing = False
        """Streams write on while it is set."""
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
        self.writing = False
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
        while self.writing:
            yield answer
        yield answer


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_the_deadline_travels(kind: Kind) -> None:
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


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_cancelling_reaches_the_calls_of_a_running_handler(kind: Kind) -> None:
    """The client cancels: the calls of the running handler are cancelled at once, while it still runs."""
    with Threaded() as server:
        async with grpc.aio.insecure_channel(server.address) as client:
            call = kind.start(client)
            await eventually(server.reached.is_set)
            call.cancel()
            await eventually(lambda: server.noted[0].told == 1)
            assert not server.ended.is_set()


async def test_a_stream_is_noticed_while_it_writes() -> None:
    """A stream that is cancelled between two answers ends its scope, too."""
    kind = KINDS[1]
    with Threaded() as server:
        server.writing = True
        async with grpc.aio.insecure_channel(server.address) as client:
            call = kind.start(client)
            await eventually(server.reached.is_set)
            call.cancel()
            server.release.set()
            await eventually(lambda: server.noted[0].told >= 1)
            server.writing = False


async def test_what_a_handler_left_running_goes_on() -> None:
    """Once the handler is through, the end of its call is none of its calls' business."""
    with Threaded() as server:
        server.release.set()
        async with grpc.aio.insecure_channel(server.address) as client:
            assert await UU.run(client) == [b"answer"]
            await eventually(server.ended.is_set)
    assert not server.scopes[0].cancelled


async def test_unknown_methods() -> None:
    """What is not served is UNIMPLEMENTED, as ever."""
    with Threaded() as server:
        async with grpc.aio.insecure_channel(server.address) as client:
            unknown: Any = client.unary_unary("/no.Such/Method")
            error = await failure(unknown(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_cancelling_reaches_the_last_server(kind: Kind) -> None:
    """A handler in a thread calls through an `lb` channel for threads: less time, and cancelled with its caller."""
    async with Backend() as backend:
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
