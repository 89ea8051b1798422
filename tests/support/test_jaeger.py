"""The project's Jaeger configuration: what is sent can be asked for."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import format_trace_id

from tests.support import jaeger
from tests.support.wait import until


@pytest.mark.jaeger
async def test_a_span_that_was_sent_is_found() -> None:
    """A span sent by OTLP/HTTP is in the trace that the query API gives, with its service's name."""
    async with jaeger.running() as server, httpx2.AsyncClient() as client:
        provider = TracerProvider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{server.otlp}/v1/traces")))
        with provider.get_tracer("tests").start_as_current_span("hello") as span:
            trace_id = format_trace_id(span.get_span_context().trace_id)
        await asyncio.to_thread(provider.shutdown)
        spans = await until(lambda: server.trace(client, trace_id), within_s=60, what="the trace is in Jaeger")
        assert [(each.service, each.name, each.parent_id, each.failed) for each in spans] == [
            ("tests", "hello", None, False)
        ]
        assert await server.trace(client, "0" * 31 + "1") == []
