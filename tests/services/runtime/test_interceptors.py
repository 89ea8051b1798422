"""What stands around every handler: trailing id, statuses, counting, refusal; alone and with server spans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import lb
from lb.server.gate import Gate, Meter
from services.runtime.errors import bad_request, detail
from services.runtime.interceptors import Boundary
from tests.services.conftest import refused
from tests.support.wait import until

TRAILERS = (("mesh-instance-id", "i-1"),)
# More than flow control lets through to a reader that does not read.
BIG = b"x" * 1_000_000
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@dataclass
class Rig:
    """A server with one service of all four kinds, whose behaviour each test gives."""

    meter: Meter
    gate: Gate
    channel: grpc.aio.Channel
    spans: InMemorySpanExporter
    behave: Callable[[Any], Any] = lambda context: None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    flood: int = 0

    def call(self, kind: str) -> Any:
        """Start a call of one kind; its requests are one or two empty messages."""
        multicallable = getattr(self.channel, kind)(f"/test.Service/{kind}")
        return multicallable(iter([b"", b""]) if kind.startswith("stream") else b"")


@asynccontextmanager
async def rig(traced: bool) -> AsyncIterator[Rig]:
    """A server with our interceptors, and OpenTelemetry's between them when ``traced``."""
    spans = InMemorySpanExporter()
    meter = Meter()
    gate = Gate(meter, TRAILERS)
    interceptors: list[Any] = [gate, Boundary(TRAILERS), lb.aio.incoming()]
    provider = TracerProvider(shutdown_on_exit=False)
    if traced:
        provider.add_span_processor(SimpleSpanProcessor(spans))
        interceptors.insert(1, aio_server_interceptor(provider))  # type: ignore[no-untyped-call]
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
    made: Rig

    async def unary(request: Any, context: Any) -> bytes:
        if hasattr(request, "__aiter__"):
            async for _ in request:
                pass
        made.reached.set()
        await asyncio.ensure_future(_value(made.behave(context)))
        return b"answer"

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        for _ in range(made.flood):
            yield BIG
        yield await unary(request, context)

    handlers = {
        kind: getattr(grpc, f"{kind}_rpc_method_handler")(stream if kind.endswith("stream") else unary)
        for kind in KINDS
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            made = Rig(meter, gate, channel, spans)
            yield made
    finally:
        await server.stop(None)
        provider.shutdown()


async def _value(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


async def answers(call: Any) -> list[bytes]:
    """All answers of a call of any kind."""
    if hasattr(call, "__aiter__"):
        return [answer async for answer in call]
    return [await call]


each_kind = pytest.mark.parametrize("kind", KINDS)
traced_or_not = pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])


@each_kind
@traced_or_not
async def test_the_id_is_in_the_trailers(kind: str, traced: bool) -> None:
    """Every kind of call brings the id at its end, beside what the handler set, and no headers of ours."""
    async with rig(traced) as server:
        server.behave = lambda context: context.set_trailing_metadata((("own", "1"),))
        call = server.call(kind)
        assert (await answers(call))[-1] == b"answer"
        assert list(await call.trailing_metadata()) == [*TRAILERS, ("own", "1")]
        assert list(await call.initial_metadata()) == []
        await asyncio.wait_for(server.meter.idle(), 30)  # the handler ends after its status
        assert (server.meter.calls_total, server.meter.in_flight) == (1, 0)
        if traced:
            await asyncio.wait_for(server.meter.idle(), 30)  # the gate is outside of the span
            (span,) = server.spans.get_finished_spans()
            assert span.name == f"/test.Service/{kind}"


@each_kind
@traced_or_not
async def test_a_call_error_becomes_the_status(kind: str, traced: bool) -> None:
    """A CallError ends the call with its code, details and the id; metadata set before stays; the span has the code."""

    def behave(context: Any) -> None:
        context.set_trailing_metadata((("own", "1"),))
        raise bad_request([("a.b", "is wrong")])

    async with rig(traced) as server:
        server.behave = behave
        error = await refused(server.call(kind))
        found = detail(error, BadRequest)
        assert found is not None
        assert [violation.field for violation in found.field_violations] == ["a.b"]
        trailers = list(error.trailing_metadata())
        assert TRAILERS[0] in trailers
        assert ("own", "1") in trailers
        if traced:
            await asyncio.wait_for(server.meter.idle(), 30)  # the gate is outside of the span
            (span,) = server.spans.get_finished_spans()
            assert span.attributes is not None
            assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@each_kind
@traced_or_not
async def test_an_unexpected_error_tells_nothing(kind: str, traced: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns INTERNAL and no more; the error is counted as an ended call."""

    def behave(context: Any) -> None:
        raise RuntimeError("password=hunter2")

    async with rig(traced) as server:
        server.behave = behave
        error = await refused(server.call(kind))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in str(error)
        assert TRAILERS[0] in list(error.trailing_metadata())
        await asyncio.wait_for(server.meter.idle(), 30)  # the handler ends after its status
        assert (server.meter.calls_total, server.meter.in_flight) == (1, 0)


@each_kind
@traced_or_not
async def test_an_abort_of_the_handler_stands(kind: str, traced: bool) -> None:
    """A handler that aborts itself is obeyed, with the id beside its own metadata."""
    async with rig(traced) as server:
        server.behave = lambda context: context.abort(grpc.StatusCode.ABORTED, "own words", (("own", "1"),))
        error = await refused(server.call(kind))
        assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "own words")
        assert list(error.trailing_metadata()) == [*TRAILERS, ("own", "1")]


@each_kind
async def test_draining_refuses(kind: str) -> None:
    """While draining a call is UNAVAILABLE with push-back 0, is not counted, and names the instance."""
    async with rig(False) as server:
        server.gate.shut()
        # Nothing is written: grpcio's own client takes a write to a call that was refused for INTERNAL.
        multicallable = getattr(server.channel, kind)(f"/test.Service/{kind}")
        error = await refused(multicallable() if kind.startswith("stream") else multicallable(b""))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert set(error.trailing_metadata()) == {*TRAILERS, ("grpc-retry-pushback-ms", "0")}
        assert server.meter.calls_total == 0


@each_kind
@traced_or_not
async def test_cancellation_is_counted_and_quiet(kind: str, traced: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A call cancelled in the handler ends it: nothing stays in flight and nothing is logged as an error."""
    async with rig(traced) as server:
        server.behave = lambda context: asyncio.Event().wait()
        call = server.call(kind)
        await asyncio.wait_for(server.reached.wait(), 30) if not kind.endswith("stream") else await call.read()
        await asyncio.wait_for(server.reached.wait(), 30)
        assert server.meter.in_flight == 1
        call.cancel()
        await asyncio.wait_for(server.meter.idle(), 30)
        assert server.meter.calls_total == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_a_stream_cancelled_while_it_sends(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream cancelled while a message waits to be sent closes its span in the task that opened it."""
    async with rig(True) as server:
        server.flood = 20
        call = server.call(kind)
        assert await call.read() == b"first"
        assert server.meter.in_flight == 1
        call.cancel()
        await asyncio.wait_for(server.meter.idle(), 30)

        async def ended() -> bool:
            return len(server.spans.get_finished_spans()) == 1

        await until(ended, within_s=30, what="the span ended")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_unknown_method_is_unimplemented() -> None:
    """A method that nobody serves is UNIMPLEMENTED, not an error of ours."""
    async with rig(True) as server:
        nothing: Any = server.channel.unary_unary("/test.Service/nothing")
        error = await refused(nothing(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
