"""What a server with threads promises about calls that come too late, calls of handlers, and calls that fail."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest

import lb.shared.scopes
import lb.sync
from lb.core.orca import KEYS
from lb.server import Limits, LoadReporter, Rate, cost
from lb.server.threads import Admission, Server
from lb.server.threads.leaving import Gate
from lb.shared.handlers import behavior_of
from lb.testing import Backend
from tests.support.wait import eventually

WITHIN_S = 60.0


def handlers(**methods: Any) -> list[grpc.GenericRpcHandler]:
    """Handlers of one request and one response each."""
    made: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    return [grpc.method_handlers_generic_handler("test.Service", made)]


def test_a_call_that_comes_too_late_waits_for_no_thread() -> None:
    """It is refused while the only thread is at work: it shall go to another server at once."""
    begun, go = threading.Event(), threading.Event()

    def wait(request: bytes, context: Any) -> bytes:
        begun.set()
        assert go.wait(WITHIN_S)
        return request

    admission = Admission(threads=1)
    gate = Gate(admission.pool)
    server = grpc.server(admission.pool, interceptors=[gate, admission])
    server.add_generic_rpc_handlers(handlers(Wait=wait))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/test.Service/Wait")
            waiting = call.future(b"x", timeout=WITHIN_S)
            assert begun.wait(WITHIN_S)
            gate.shut()
            with pytest.raises(grpc.RpcError) as caught:
                call(b"x", timeout=WITHIN_S / 4)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            go.set()
            assert waiting.result() == b"x"
    finally:
        go.set()
        server.stop(None).wait()
        admission.pool.shutdown()


async def test_the_calls_of_a_handler_inherit() -> None:
    """The deadline and the priority of the call that it answers, with nothing said in the handler."""
    async with Backend() as backend:
        with lb.sync.channel(f"static:///{backend.address}") as onward, Server("test") as server:

            def forward(request: bytes, context: Any) -> bytes:
                echo: Any = onward.unary_unary("/lb.testing.Echo/UnaryUnary")
                answer: bytes = echo(request)
                return answer

            server.add_generic_rpc_handlers(handlers(Forward=forward))
            server.start()
            async with grpc.aio.insecure_channel(server.address) as channel:
                call: Any = channel.unary_unary("/test.Service/Forward")
                assert await call(b"x", timeout=WITHIN_S, metadata=[("lb-priority", "critical")]) is not None
        (received,) = backend.received
    assert received.timeout_s is not None
    assert WITHIN_S / 2 < received.timeout_s < WITHIN_S + 1
    assert received.metadata["lb-priority"] == "critical"


class Counting(LoadReporter):
    """A reporter that remembers how calls ended."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[bool] = []

    def ended(self, *, failed: bool) -> None:
        """Remember it."""
        self.failed.append(failed)
        super().ended(failed=failed)


async def test_a_call_that_fails_counts_as_one() -> None:
    """In the reports of load, also if its handler aborts."""
    reporter = Counting()

    def work(request: bytes, context: Any) -> bytes:
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such row")
        return request

    with Server("test", load=reporter) as server:
        server.add_generic_rpc_handlers(handlers(Work=work))
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            call: Any = channel.unary_unary("/test.Service/Work")
            assert call(b"x", timeout=WITHIN_S) == b"x"
            await eventually(lambda: reporter.failed == [False])
            with pytest.raises(grpc.RpcError):
                call(b"fail", timeout=WITHIN_S)
            await eventually(lambda: reporter.failed == [False, True])


class Within(grpc.ServerInterceptor):
    """An interceptor that notes which kind of handler it is handed, and what surrounds it in the handler's thread."""

    def __init__(self, name: str, events: list[str]) -> None:
        self._name = name
        self._events = events

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Note it, and go on; a refusal takes a stream."""
        handler = continuation(handler_call_details)
        refused = handler.request_streaming
        self._events.append(f"{self._name}: {'a refusal' if refused else 'the handler'}")
        if refused:
            return handler
        behavior = behavior_of(handler)

        def handle(request: bytes, context: Any) -> bytes:
            cost(self._name, 1)
            self._events.append(f"{self._name}: {'inherits' if lb.shared.scopes.current() else 'inherits nothing'}")
            answer: bytes = behavior(request, context)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


def test_the_order_of_interceptors() -> None:
    """From outside to inside: the user's, admission, reports of load, the inner ones, and what is inherited."""
    events: list[str] = []
    reporter = Counting()
    begun, go = threading.Event(), threading.Event()

    def wait(request: bytes, context: Any) -> bytes:
        events.append(f"handler: {'inherits' if lb.shared.scopes.current() else 'inherits nothing'}")
        begun.set()
        assert go.wait(WITHIN_S)
        return request

    with Server(
        "test",
        limits=Limits(rate=Rate(0.001, burst=1)),
        interceptors=[Within("outer", events)],
        inner=[Within("inner", events)],
        load=reporter,
        drain_wait_s=0,
    ) as server:
        server.add_generic_rpc_handlers(handlers(Wait=wait))
        server.start()
        try:
            with grpc.insecure_channel(server.address) as channel:
                call: Any = channel.unary_unary("/test.Service/Wait")
                waiting = call.future(b"x", timeout=WITHIN_S)
                assert begun.wait(WITHIN_S)
                assert events == [
                    "inner: the handler",
                    "outer: the handler",
                    "outer: inherits nothing",
                    "inner: inherits nothing",
                    "handler: inherits",
                ]
                events.clear()
                refused = call.future(b"x", timeout=WITHIN_S)
                assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                # Admission refuses what the inner ones have made; those around it see the refusal.
                assert events == ["inner: the handler", "outer: a refusal"]
                go.set()
                assert waiting.result() == b"x"
                told = b"".join(pair[1] for pair in waiting.trailing_metadata() if pair[0] in KEYS)
                assert b"inner" in told
                assert b"outer" not in told
        finally:
            go.set()
    assert reporter.failed == [False]
