"""Spans in by OTLP, traces out as JSON, from the gateway's own store and from Jaeger."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace import Status as SpanStatus
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.gateway import traces
from services.gateway.problems import Problem
from services.gateway.traces import JaegerTraces, Span, TraceStore, trace_json
from tests.services.gateway.conftest import Bench, serve
from tests.support import jaeger
from tests.support.wait import until

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def export(trace: int = 1, *spans: int, bad: bool = False) -> ExportTraceServiceRequest:
    """A request with these spans of one trace."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for span in spans or (1,):
        scope.spans.add(
            trace_id=b"" if bad else trace.to_bytes(16, "big"),
            span_id=span.to_bytes(8, "big"),
            name="x" * 100,
            start_time_unix_nano=10**18 + span,
            end_time_unix_nano=10**18 + span + 1500,
        )
    return request


def write_trace(endpoint: str, compression: Compression = Compression.Gzip) -> str:
    """Sends a trace of two spans as a service does; returns its id. Blocks."""
    resource = Resource.create({"service.name": "orders", "service.instance.id": "orders-1"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("root", kind=SpanKind.SERVER, attributes={"n": 1, "f": 0.5, "list": ["a", "b"]}):
        with tracer.start_as_current_span("child", kind=SpanKind.CLIENT) as child:
            child.set_status(SpanStatus(StatusCode.ERROR, "refused"))
        trace_id = child.get_span_context().trace_id
    provider.shutdown()
    return f"{trace_id:032x}"


def check_trace(trace: dict[str, Any], trace_id: str) -> None:
    """That what was written by ``write_trace`` was read."""
    assert trace["trace_id"] == trace_id
    root, child = trace["spans"]
    assert (root["name"], root["parent_id"], root["service"], root["status"]) == ("root", None, "orders", "unset")
    assert root["attributes"] == {
        "n": 1,
        "f": 0.5,
        "list": ["a", "b"],
        "span.kind": "server",
        "service.instance.id": "orders-1",
    }
    assert child["parent_id"] == root["span_id"]
    assert child["status"] == "error"
    assert child["attributes"]["otel.status_description"] == "refused"
    assert child["start"].endswith("Z")
    assert root["start"] <= child["start"]
    assert 0 <= child["duration_ms"] <= root["duration_ms"]


@pytest.mark.parametrize("compression", list(Compression))
async def test_what_the_exporter_sends_can_be_read(bench: Bench, compression: Compression) -> None:
    """OpenTelemetry's own exporter, packed or not, into the store and out by HTTP."""
    trace_id = await asyncio.to_thread(write_trace, f"http://127.0.0.1:{bench.port}", compression)
    answer = await bench.client.get(f"/api/traces/{trace_id.upper()}")
    assert answer.status_code == 200
    check_trace(answer.json(), trace_id)


async def test_ids_are_checked(bench: Bench) -> None:
    """400 for what is no trace id, 404 for one that is not known."""
    for trace_id in ("1", "0" * 32, "g" * 32, "1" * 33):
        assert (await bench.client.get(f"/api/traces/{trace_id}")).status_code == 400
    assert (await bench.client.get(f"/api/traces/{'1' * 32}")).status_code == 404


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        (PROTOBUF, b"\xff\xff\xff", 400),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, b"no gzip", 400),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, gzip.compress(b"x" * 1000)[:-10], 400),
        ({**PROTOBUF, "Content-Encoding": "br"}, b"", 415),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, gzip.compress(bytes(traces.LARGEST_UNPACKED + 1)), 413),
    ],
    ids=["json", "no protobuf", "no gzip", "cut off", "another coding", "too large"],
)
async def test_bad_exports_are_refused(bench: Bench, headers: dict[str, str], content: bytes, status: int) -> None:
    """Each with its status, and google.rpc.Status in the body as OTLP wants it. A bomb is not unpacked."""
    answer = await bench.client.post("/v1/traces", headers=headers, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert Status.FromString(answer.content).message
    assert not len(bench.store)


async def test_refused_spans_are_counted(bench: Bench) -> None:
    """A span without a proper id is refused, and the answer says how many were."""
    content = zlib.compress(export(1, 1, 2, bad=True).SerializeToString())
    answer = await bench.client.post("/v1/traces", headers={**PROTOBUF, "Content-Encoding": "deflate"}, content=content)
    assert answer.status_code == 200
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 2


async def test_the_oldest_trace_goes_first() -> None:
    """Never more traces, spans or bytes than allowed; what came first is forgotten first."""
    store = TraceStore(most_traces=3, most_spans=2, most_bytes=10**6)
    for trace in range(1, 6):
        assert store.add(export(trace)) == 0
    assert len(store) == 3
    assert await store.get(f"{2:032x}") == []
    assert len(await store.get(f"{3:032x}")) == 1
    assert store.add(export(5, 2, 3, 4)) == 2
    small = TraceStore(most_bytes=1000)
    for trace in range(1, 50):
        small.add(export(trace))
    assert 1 <= len(small) < 10
    assert len(await small.get(f"{49:032x}")) == 1


async def test_spans_are_sorted_by_start() -> None:
    """Whatever the order in which they came, and times are exact to the microsecond."""
    store = TraceStore()
    store.add(export(1, 3000, 1, 2000))
    trace_id = f"{1:032x}"
    spans: Any = trace_json(trace_id, await store.get(trace_id))["spans"]
    assert [int(span["span_id"], 16) for span in spans] == [1, 2000, 3000]
    assert [span["start"] for span in spans] == [f"2001-09-09T01:46:40.00000{n}Z" for n in (0, 2, 3)]
    assert spans[0]["duration_ms"] == 0.002


async def test_jaeger_that_is_away_or_strange() -> None:
    """Not there: 503; silent: 504; an answer that is none: 502 or 503; unknown: nothing. Never a hang."""
    answers: dict[str, Response] = {
        "a" * 32: JSONResponse({"error": {"httpCode": 404}}, 404),
        "b" * 32: JSONResponse({"result": []}),
        "c" * 32: JSONResponse({}, 500),
        "d" * 32: Response(b"no json"),
    }

    async def fake(scope: Any, receive: Any, send: Any) -> None:
        trace_id = Request(scope).url.path.rpartition("/")[2]
        if trace_id not in answers:
            await asyncio.Event().wait()
        await answers[trace_id](scope, receive, send)

    async with serve(fake) as port:
        client = JaegerTraces(f"http://127.0.0.1:{port}/", timeout_s=60)
        hasty = JaegerTraces(f"http://127.0.0.1:{port}/", timeout_s=0.2)
        assert await client.get("a" * 32) == []
        for trace_id, status in (("b" * 32, 502), ("c" * 32, 503), ("d" * 32, 502), ("e" * 32, 504)):
            with pytest.raises(Problem) as caught:
                await (hasty if status == 504 else client).get(trace_id)
            assert caught.value.status == status
        await hasty.close()
    with pytest.raises(Problem) as caught:
        await client.get("a" * 32)
    assert caught.value.status == 503
    await client.close()


@pytest.mark.jaeger
async def test_the_same_trace_from_a_real_jaeger() -> None:
    """What Jaeger's API answers is the same JSON as that of the store."""
    async with jaeger.running() as server:
        trace_id = await asyncio.to_thread(write_trace, server.otlp)
        client = JaegerTraces(server.query)

        async def whole() -> list[Span]:
            spans = await client.get(trace_id)
            return spans if len(spans) == 2 else []

        try:
            spans = await until(whole, within_s=60, what="both spans are there")
            check_trace(trace_json(trace_id, spans), trace_id)
            assert await client.get("1" * 32) == []
        finally:
            await client.close()
