"""Traces of a service process, and its logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from lb.testing import Agent
from mesh.catalog.v1 import CatalogStub, GetProductRequest
from services.runtime import logs
from tests.services.processes import health, running
from tests.support.doors import stop_accepting


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, asyncio.Queue[ExportTraceServiceRequest]]]:
    """An OTLP/HTTP collector: its base URL, and what it is sent."""
    received: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue()
    open_connections: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                assert head.startswith(b"POST /v1/traces "), head
                headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
                body = await reader.readexactly(int(headers[b"content-length"]))
                received.put_nowait(ExportTraceServiceRequest.FromString(body))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            open_connections.discard(writer)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received
    finally:
        await stop_accepting(server)
        server.close()
        for writer in list(open_connections):
            writer.close()
        await server.wait_closed()


async def test_spans_arrive(agent: Agent, tmp_path: Path) -> None:
    """A call's server span is with the collector 2 s later: in the caller's trace, with service and instance.

    Health checks make no spans.
    """
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with (
        collector() as (url, received),
        running("catalog", agent, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url, MESH_DRAIN_WAIT_S="0") as catalog,
        grpc.aio.insecure_channel(catalog.address) as channel,
    ):
        await health(channel)
        request = GetProductRequest(sku="moka-3")
        for _ in range(3):  # a pause of the machine is not a pause of ours
            await CatalogStub(channel).GetProduct(request, metadata=(("traceparent", parent),))
            began = asyncio.get_running_loop().time()
            export = await asyncio.wait_for(received.get(), 60)
            took = asyncio.get_running_loop().time() - began
            if took < 3:
                break
        assert took < 3
        (resource,) = export.resource_spans
        attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
        assert (attributes["service.name"], attributes["service.instance.id"]) == ("catalog", "catalog-1")
        (span,) = resource.scope_spans[0].spans
        assert span.name == "/mesh.catalog.v1.Catalog/GetProduct"
        assert span.trace_id.hex() == parent.split("-")[1]
        assert span.parent_span_id.hex() == parent.split("-")[2]
        catalog.process.send_signal(signal.SIGTERM)
        assert await catalog.ended() == 0


async def test_a_collector_that_is_away_keeps_nobody(agent: Agent, tmp_path: Path) -> None:
    """Without its collector a service serves, logs nothing of it call by call, and ends within seconds."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with (
            running("catalog", agent, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url, MESH_DRAIN_WAIT_S="0") as catalog,
            grpc.aio.insecure_channel(catalog.address) as channel,
        ):
            for _ in range(20):
                await CatalogStub(channel).GetProduct(GetProductRequest(sku="moka-3"))
            catalog.process.send_signal(signal.SIGTERM)
            assert await catalog.ended(within_s=20) == 0
    assert not [line for line in catalog.lines if line["level"] == "error"]


@pytest.fixture
def _logging() -> Iterator[None]:
    """Put the process' logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("urllib3", "aiosqlite", "aiohttp", "asyncio")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging")
def test_logs_are_json_with_the_trace() -> None:
    """Both kinds of loggers write one JSON object a line, with service, instance and the current trace."""
    out = io.StringIO()
    logs.setup("catalog", "catalog-1", "info", out)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("call") as span:
        structlog.get_logger("test").info("hello", answer=42)
        logging.getLogger("elsewhere").warning("from %s", "afar")
    structlog.get_logger("test").debug("not shown")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    trace = f"{span.get_span_context().trace_id:032x}"
    assert (first["event"], first["answer"], first["level"]) == ("hello", 42, "info")
    assert (second["event"], second["level"]) == ("from afar", "warning")
    for line in (first, second):
        assert (line["service"], line["instance"], line["trace_id"]) == ("catalog", "catalog-1", trace)
