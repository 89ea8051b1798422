"""A server with threads and admission, whose handlers wait until they are let go; and calls of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from lb.server import Concurrency, Limits
from lb.server.threads import Admission
from tests.support.wait import eventually

WITHIN_S = 60.0
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
ENDS = ("well", "raises", "aborts", "status")


def fixed(limit: int, **others: Any) -> Limits:
    """So many at once."""
    return Limits(concurrency=Concurrency(limit=limit, adaptive=False, queue=0), **others)


class Service:
    """A method of each kind, whose request says how it ends, and what the tests want to know of them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.calls = 0
        self.entered = 0
        """How many handlers of a stream of requests began, maybe without any."""

    def _do(self, word: bytes, context: Any) -> None:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        self.begun.release()
        if word == b"wait":
            assert self.go.wait(WITHIN_S)
        elif word == b"raises":
            raise RuntimeError("as it was asked to")
        elif word == b"aborts":
            context.abort(grpc.StatusCode.DATA_LOSS, "as it was asked to")
        elif word == b"status":
            context.set_code(grpc.StatusCode.DATA_LOSS)

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        """One for one."""
        self._do(request, context)
        return request

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        """Two for one; ``first`` answers once, and goes on after ``go``."""
        if request == b"first":
            yield request
            assert self.go.wait(WITHIN_S)
        else:
            self._do(request, context)
            yield request
        yield request

    def stream_unary(self, requests: Iterator[bytes], context: Any) -> bytes:
        """One for many."""
        self.entered += 1
        for request in requests:
            self._do(request, context)
        return b"done"

    def stream_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """As many as came."""
        self.entered += 1
        for request in requests:
            self._do(request, context)
            yield request


class Serving:
    """A running server with its admission, and a channel to it."""

    def __init__(self, service: Service, admission: Admission, channel: grpc.Channel) -> None:
        self.service = service
        self.admission = admission
        self.channel = channel

    def call(self, kind: str, word: bytes, *, method: str = "", **named: Any) -> Any:
        """A call: a future, or an iterator of responses."""
        made: Any = getattr(self.channel, kind)(f"/test.Service/{method or kind}")
        request: Any = iter([word]) if kind.startswith("stream") else word
        return made(request, **named) if kind.endswith("stream") else made.future(request, **named)

    def outcome(self, kind: str, word: bytes, **named: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
        """How a call ends, and its trailing metadata."""
        call = self.call(kind, word, **({"timeout": WITHIN_S} | named))
        with suppress(grpc.RpcError):
            list(call) if kind.endswith("stream") else call.result()
        return call.code(), {pair[0]: pair[1] for pair in call.trailing_metadata() or ()}

    async def idle(self) -> None:
        """Every place, and every thread, was given back."""
        await eventually(lambda: "0 of" in repr(self.admission).split("threads=")[1], "every thread is back")
        assert self.admission.load == 0.0


@contextmanager
def serving(
    limits: Limits | None = None,
    *,
    threads: int = 8,
    outer: Any = (),
    inner: Any = (),
    more: Any = None,
    clock: Any = time.monotonic,
    trailers: Any = (),
    **options: Any,
) -> Iterator[Serving]:
    """A server with threads. ``more`` are handlers by name."""
    service, admission = Service(), Admission(limits, threads=threads, clock=clock, trailers=trailers)
    server = grpc.server(
        admission.pool, interceptors=[*outer, admission, *inner], options=[("grpc.so_reuseport", 0)], **options
    )
    methods: dict[str, Any] = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(service, kind)) for kind in KINDS
    }
    methods |= more or {}
    methods["own"] = grpc.unary_unary_rpc_method_handler(service.unary_unary)
    for name in ("test.Service", "grpc.Own"):
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Serving(service, admission, channel)
    finally:
        service.go.set()
        server.stop(None).wait()
        admission.pool.shutdown()


class Breaks(grpc.ServerInterceptor):
    """An interceptor around admission that raises after it."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Raises where the metadata say so."""
        handler = continuation(handler_call_details)
        if any(key == "break" for key, _ in handler_call_details.invocation_metadata):
            raise RuntimeError("as it was asked to")
        return handler


def begin(at: Serving, calls: int = 1) -> list[Any]:
    """So many calls that wait for ``go``, all of them in their handlers."""
    made = [at.call("unary_unary", b"wait", timeout=WITHIN_S) for _ in range(calls)]
    for _ in made:
        assert at.service.begun.acquire(timeout=WITHIN_S)
    return made
