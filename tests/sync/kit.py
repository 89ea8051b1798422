"""What the tests of `lb.sync` share: a scripted server with threads, the four kinds of call, channels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc

import lb
from lb.testing.backend import STREAM_STREAM, STREAM_UNARY, UNARY_STREAM, UNARY_UNARY
from tests.support import calls
from tests.support.calls import COPIES, IDEMPOTENT, NO_BREAKER, REQUESTS, connected, in_flight, target

__all__ = ["IDEMPOTENT", "NO_BREAKER", "REQUESTS", "in_flight", "target"]

HANGS_S = 60.0
"""A wait of that length hangs: the test fails."""
NAME_KEY = "lb-backend"
TURN = "turn-"
"""The authority of calls of one test on a server that several share, with the number of `Server.turn`."""


@dataclass
class Received:
    """One call as a server saw it."""

    method: str
    metadata: dict[str, str | bytes]
    requests: list[bytes] = field(default_factory=list)
    time_remaining: float | None = None


Step = Callable[[Any], None]
"""What a server does before it answers: it may abort, wait, or send headers."""


def fail(code: grpc.StatusCode, details: str = "scripted", **trailing: str) -> Step:
    """End the call with this status."""

    def step(context: Any) -> None:
        context.set_trailing_metadata(tuple((k.replace("_", "-"), v) for k, v in trailing.items()))
        context.abort(code, details)

    return step


def wait_for(event: threading.Event) -> Step:
    """Hold the call until the event is set, or the call is cancelled."""

    def step(context: Any) -> None:
        deadline = time.monotonic() + HANGS_S
        while not event.wait(0.01) and context.is_active() and time.monotonic() < deadline:
            pass

    return step


def headers(*pairs: tuple[str, str]) -> Step:
    """Send initial metadata early."""
    return lambda context: context.send_initial_metadata(pairs)


class Server:
    """A ``grpc.server`` that echoes, unless its script says otherwise. One step of it is used by each call."""

    def __init__(
        self,
        name: str = "a",
        *,
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        workers: int = 6,
    ) -> None:
        self.name = name
        self.received: list[Received] = []
        self.always: Step | None = None
        self.turn = 0
        """Counts the tests that share this server."""
        self._script: list[Step | None] = []
        self._lock = threading.Lock()
        self._pool = futures.ThreadPoolExecutor(workers)
        self._server = grpc.server(
            self._pool, handlers=[_Handler(self)], options=(("grpc.so_reuseport", 0),), compression=None
        )
        where = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(where)
        else:
            self.port = self._server.add_secure_port(where, credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()
        # All its threads now: one that begins in a test would look as if that test had left it behind.
        everyone = threading.Barrier(workers + 1)
        for _ in range(workers):
            self._pool.submit(everyone.wait, HANGS_S)
        everyone.wait(HANGS_S)

    def reset(self) -> None:
        """Forget what was received and scripted, for the next test."""
        with self._lock:
            self.turn += 1
            self._script.clear()
            self.received = []
            self.always = None

    def script(self, *steps: Step | None) -> None:
        """What the next calls meet; None is an echo."""
        with self._lock:
            self._script.extend(steps)

    def stop(self) -> None:
        """End it at once; its calls are cancelled."""
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _next(self) -> Step | None:
        with self._lock:
            return self._script.pop(0) if self._script else self.always

    def _begin(self, method: str, context: Any) -> Received:
        turn = authority_of(context).removeprefix(TURN)
        if turn.isdigit() and int(turn) != self.turn:
            context.abort(grpc.StatusCode.CANCELLED, "sent by a test that is over, and must not disturb this one")
        metadata = {key: value for key, value in context.invocation_metadata()}
        received = Received(method, metadata, time_remaining=context.time_remaining())
        with self._lock:
            self.received.append(received)
        step = self._next()
        if step is not None:
            step(context)
        context.set_trailing_metadata(((NAME_KEY, self.name),))
        return received

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        """The request."""
        self._begin(UNARY_UNARY, context).requests.append(request)
        return request

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        """The request, three times."""
        self._begin(UNARY_STREAM, context).requests.append(request)
        yield from [request] * COPIES

    def stream_unary(self, requests: Iterator[bytes], context: Any) -> bytes:
        """All requests in one."""
        received = self._begin(STREAM_UNARY, context)
        received.requests.extend(requests)
        return b"".join(received.requests)

    def stream_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Each request."""
        received = self._begin(STREAM_STREAM, context)
        for request in requests:
            received.requests.append(request)
            yield request


def authority_of(context: Any) -> str:
    """What a call named as its host; grpcio has no public word for it."""
    host: bytes = context._rpc_event.call_details.host
    return host.decode()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: Server) -> None:
        self._methods: dict[str, Any] = {
            UNARY_UNARY: grpc.unary_unary_rpc_method_handler(server.unary_unary),
            UNARY_STREAM: grpc.unary_stream_rpc_method_handler(server.unary_stream),
            STREAM_UNARY: grpc.stream_unary_rpc_method_handler(server.stream_unary),
            STREAM_STREAM: grpc.stream_stream_rpc_method_handler(server.stream_stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """By method."""
        return self._methods.get(handler_call_details.method)


class Kind(calls.Kind):
    """One of the four kinds of call, as threads make it."""

    def start(self, channel: Any, requests: Sequence[Any] = REQUESTS, **options: Any) -> Any:
        """Begin a call; a call object for each kind."""
        stub = self.stub(channel)
        begin = stub if self.streams_responses else stub.future
        return begin(self.argument(requests), **options)

    def finish(self, call: Any) -> list[bytes]:
        """All responses of a begun call; raises as the call does."""
        return list(call) if self.streams_responses else [call.result(timeout=HANGS_S)]

    def run(self, channel: Any, requests: Sequence[Any] = REQUESTS, **options: Any) -> list[bytes]:
        """The call from beginning to end, as a user writes it: blocking where there is one response."""
        answer = self.stub(channel)(self.argument(requests), **options)
        return list(answer) if self.streams_responses else [answer]


UU, US, SU, SS = KINDS = Kind.all()


def channel_to(*servers: Server, **settings: Any) -> Any:
    """An `lb.sync` channel to these; a breaker only where the test gives one."""
    settings.setdefault("breaker", NO_BREAKER)
    return lb.sync.channel(target(*servers), **settings)


def eventually(condition: Callable[[], object], what: str = "", within_s: float = HANGS_S) -> None:
    """Wait until ``condition()`` is true. Raises ``TimeoutError`` naming ``what``."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what or condition}")
        time.sleep(0.002)


def ready(channel: Any, count: int) -> None:
    """Wait until so many endpoints are connected."""
    grpc.channel_ready_future(channel).result(timeout=HANGS_S)
    eventually(
        lambda: connected(channel) >= count,
        f"{count} endpoints are connected",
    )


def failure(function: Callable[[], Any]) -> Any:
    """The ``grpc.RpcError`` that it raises."""
    try:
        answer = function()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error, but {answer!r}")


def lb_threads() -> list[str]:
    """The names of the library's own threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lb:")]
