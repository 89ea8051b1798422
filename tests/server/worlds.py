"""A server with admission, for asyncio or with threads, and clients of it: what is promised holds for both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

import lb.aio
import lb.server.threads
import lb.sync
from lb.server import Admission, Limits
from tests.support.wait import eventually

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
WITHIN_S = 60.0


class World:
    """A server with admission, whose methods wait until they are let go; and clients of it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.go = asyncio.Event()
        self.begun = 0
        """How many handlers have begun to work; those with a stream of responses have sent their first by then."""
        self.opened = 0
        """How many handlers with a stream of responses were entered."""
        self.first = b"first"
        """The first response of those."""
        self.read = 0
        """How many requests were deserialized."""
        self.cancelled = 0
        """How many handlers were cancelled."""
        self.work: Callable[[Any], Any] | None = None
        """What a handler does, instead of waiting for `go`."""
        self.admission: Any = None
        self.server: Any = None
        self.address = ""
        self.channel: Any = None

    async def open(self, limits: Limits, *interceptors: Any) -> None:
        """Serve, with ``interceptors`` behind admission."""
        self.admission = Admission(limits)
        self.server = grpc.aio.server(interceptors=[self.admission, *interceptors], options=[("grpc.so_reuseport", 0)])
        self.add(health.aio.HealthServicer())
        await self.server.start()
        self._stack.push_async_callback(self.stop)
        await self.connect()

    def add(self, servicer: Any) -> None:
        """Serve methods of each kind, and health."""
        made: dict[str, Any] = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                self._stream if kind.endswith("stream") else self._unary, request_deserializer=self._deserialize
            )
            for kind in KINDS
        }
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", made)])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def connect(self) -> None:
        """Make the channel of the clients."""
        # One of grpcio's own may call a stream of requests INTERNAL, whose next request the server did not wait for.
        channel = lb.aio.channel(f"static:///{self.address}", retry=False, breaker=False)
        self.channel = await self._stack.enter_async_context(channel)

    def _deserialize(self, request: bytes) -> bytes:
        self.read += 1
        return request

    async def _do(self, context: Any) -> None:
        self.begun += 1
        try:
            if self.work is None:
                await self.go.wait()
            else:
                await self.work(context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _unary(self, request: Any, context: Any) -> bytes:
        await self._do(context)
        return b"done"

    async def _stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        self.opened += 1
        yield self.first
        await self._do(context)
        yield b"last"

    def start(self, kind: str = "unary_unary", **options: Any) -> Any:
        """A call of this kind."""
        call: Any = getattr(self.channel, kind)(f"/a.B/{kind}")
        options.setdefault("timeout", 60)
        return call(requests() if kind.startswith("stream") else b"x", **options)

    async def run(self, kind: str = "unary_unary", **options: Any) -> list[bytes]:
        """The responses of such a call."""
        call = self.start(kind, **options)
        return [response async for response in call] if kind.endswith("stream") else [await call]

    async def refused(self, kind: str = "unary_unary", **options: Any) -> grpc.aio.AioRpcError:
        """The error of such a call."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.run(kind, **options)
        return caught.value

    async def load_is(self, load: float) -> None:
        """Wait until so much is in use: 2.0 is one call that runs and one that waits."""
        await eventually(lambda: self.load == load, f"a load of {load}")

    @property
    def load(self) -> float:
        """How much is in use."""
        load: float = self.admission.places.load
        return load

    async def stop(self) -> None:
        """End the server at once."""
        await self.server.stop(None)

    def end(self) -> None:
        """Let handlers end that nobody can cancel."""

    def incoming(self) -> Any:
        """The interceptor through which a handler's calls inherit."""
        return lb.aio.incoming()

    @property
    def times_over(self) -> bool:
        """Whether each call has ended, or had its time."""
        return "<Overtime 0 calls" in repr(self.admission)

    async def hold(self) -> asyncio.Task[list[bytes]]:
        """A call that has the only place."""
        task = asyncio.create_task(self.run())
        await eventually(lambda: self.begun, "the first call runs")
        return task

    async def still_serves(self) -> None:
        """No place was lost: the load is 0, and a call runs."""
        await self.load_is(0.0)
        self.work = None
        self.go.set()
        assert await self.run() == [b"done"]
        await self.load_is(0.0)


class ThreadedWorld(World):
    """The same with threads."""

    def __init__(self, stack: AsyncExitStack) -> None:
        super().__init__(stack)
        self.go: Any = threading.Event()

    async def open(self, limits: Limits, *interceptors: Any) -> None:
        """Serve, with ``interceptors`` behind admission."""
        self.admission = lb.server.threads.Admission(limits, threads=8)
        self.server = grpc.server(
            self.admission.pool, interceptors=[self.admission, *interceptors], options=[("grpc.so_reuseport", 0)]
        )
        self.add(health.HealthServicer())
        self.server.start()
        self._stack.callback(self.admission.pool.shutdown)
        self._stack.push_async_callback(self.stop)
        self._stack.callback(self.end)
        await self.connect()

    @property
    def load(self) -> float:
        """How much is in use."""
        load: float = self.admission.load
        return load

    async def stop(self) -> None:
        """End the server at once."""
        await asyncio.to_thread(self.server.stop(None).wait)

    def end(self) -> None:
        """Let handlers end: nobody can cancel them."""
        self.go.set()

    def incoming(self) -> Any:
        """The interceptor through which a handler's calls inherit."""
        return lb.sync.incoming()

    @property
    def times_over(self) -> bool:
        """Whether each call has ended, or had its time."""
        return "limited=0" in repr(self.admission)

    def _wait(self, context: Any) -> None:
        self.begun += 1
        if self.work is None:
            assert self.go.wait(WITHIN_S)
        else:
            with suppress(StopIteration):
                self.work(context).send(None)  # it waits for nothing
        self.cancelled += not context.is_active()

    def _unary(self, request: Any, context: Any) -> Any:
        self._wait(context)
        return b"done"

    def _stream(self, request: Any, context: Any) -> Iterator[bytes]:  # type: ignore[override]  # no coroutine
        self.opened += 1
        yield self.first
        self._wait(context)
        yield b"last"


async def requests() -> AsyncIterator[bytes]:
    """Some."""
    yield b"x"
    yield b"y"


async def no_request(until: Any) -> AsyncIterator[bytes]:
    """None, and no end either, until this event."""
    await eventually(until.is_set, "the test lets go", WITHIN_S)
    if not until.is_set():
        yield b""
