"""Traces: what the gateway keeps itself, and what it reads from Jaeger, in one shape.

Without a collector the mesh sends its spans to the gateway's own ``/v1/traces`` (OTLP/HTTP,
https://opentelemetry.io/docs/specs/otlp/#otlphttp). The store keeps the last traces and forgets
the oldest; a span is kept as the bytes that came and is decoded when somebody looks at it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx2
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.bodies import media_type, read_body
from services.gateway.problems import Problem, retry_after

MOST_TRACES = 1000
MOST_SPANS = 1000
MOST_BYTES = 64 << 20
LARGEST_BODY = 4 << 20
LARGEST_UNPACKED = 16 << 20

_PROTOBUF = "application/x-protobuf"
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUSES = {0: "unset", 1: "ok", 2: "error"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span. ``start_ns`` counts from 1970 in nanoseconds; ``parent_id`` is None for a root."""

    span_id: str
    parent_id: str | None
    service: str
    name: str
    start_ns: int
    duration_ns: int
    status: str
    attributes: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As ``/api/traces`` answers it: ``start`` in RFC 3339 (UTC, microseconds), ``duration_ms`` a float."""
        start = _EPOCH + timedelta(microseconds=self.start_ns // 1000)
        return {
            "span_id": self.span_id,
            "parent_id": self.parent_id,
            "service": self.service,
            "name": self.name,
            "start": start.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "duration_ms": round(self.duration_ns / 1e6, 3),
            "status": self.status,
            "attributes": dict(self.attributes),
        }


class Traces(Protocol):
    """Where traces are looked up."""

    async def get(self, trace_id: str) -> list[Span]:
        """The spans of a trace, in no order; empty when it is not known. Raises ``Problem`` 503 or 504."""
        ...


def check_trace_id(trace_id: str) -> str:
    """The id in lower case. Raises ``Problem`` 400 when it is not 32 hexadecimal digits, or all zero."""
    if not _TRACE_ID.fullmatch(trace_id) or not int(trace_id, 16):
        raise Problem(400, f"trace_id is {trace_id[:64]!r}; expected 32 hexadecimal digits, not all zero")
    return trace_id.lower()


def trace_json(trace_id: str, spans: Iterable[Span]) -> dict[str, object]:
    """A trace as ``/api/traces`` answers it: its spans by start, a parent before its children."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.parent_id is not None, -span.duration_ns))
    return {"trace_id": trace_id, "spans": [span.to_json() for span in ordered]}


@dataclass(slots=True)
class _Kept:
    spans: list[tuple[str, str, bytes]] = field(default_factory=list)  # service, instance, the span as it came
    size: int = 0


class TraceStore:
    """The last traces in memory: at most ``most_traces``, ``most_spans`` each and ``most_bytes`` in all."""

    def __init__(
        self, most_traces: int = MOST_TRACES, most_spans: int = MOST_SPANS, most_bytes: int = MOST_BYTES
    ) -> None:
        self._most_traces = most_traces
        self._most_spans = most_spans
        self._most_bytes = most_bytes
        self._traces: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._traces)

    def __repr__(self) -> str:
        return f"<TraceStore traces={len(self._traces)} of {self._most_traces}, {self._bytes} bytes>"

    def add(self, request: ExportTraceServiceRequest) -> int:
        """Keeps the spans; returns how many were refused (a bad id, or a trace that is full)."""
        refused = 0
        for resource_spans in request.resource_spans:
            service, instance = _resource(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    refused += not self._add(service, instance, span)
        return refused

    def _add(self, service: str, instance: str, span: OtlpSpan) -> bool:
        if len(span.trace_id) != 16 or len(span.span_id) != 8:
            return False
        kept = self._traces.get(span.trace_id)
        if kept is None:
            kept = self._traces[span.trace_id] = _Kept()
        if len(kept.spans) >= self._most_spans:
            return False
        raw = span.SerializeToString()
        kept.spans.append((service, instance, raw))
        kept.size += len(raw)
        self._bytes += len(raw)
        while len(self._traces) > self._most_traces or (self._bytes > self._most_bytes and len(self._traces) > 1):
            _, oldest = self._traces.popitem(last=False)
            self._bytes -= oldest.size
        return True

    async def get(self, trace_id: str) -> list[Span]:
        """The spans of a trace; empty when it is not, or no longer, known."""
        kept = self._traces.get(bytes.fromhex(trace_id))
        if kept is None:
            return []
        return [_from_otlp(service, instance, OtlpSpan.FromString(raw)) for service, instance, raw in kept.spans]


class JaegerTraces:
    """Traces from Jaeger v2's query API, ``GET /api/v3/traces/{trace_id}``, which answers OTLP as JSON."""

    def __init__(self, base_url: str, *, timeout_s: float = 3.0) -> None:
        self._base_url = base_url.rstrip("/")
        # Jaeger is asked directly, whatever proxy the environment names for the world outside.
        self._client = httpx2.AsyncClient(timeout=timeout_s, trust_env=False)
        self._timeout_s = timeout_s

    async def get(self, trace_id: str) -> list[Span]:
        """The spans of a trace; empty when Jaeger does not know it. Raises ``Problem`` 503 or 504."""
        try:
            async with asyncio.timeout(self._timeout_s):  # httpx2's own bounds each step, not the whole
                response = await self._client.get(f"{self._base_url}/api/v3/traces/{trace_id}")
        except (TimeoutError, httpx2.TimeoutException):
            raise Problem(504, "Jaeger did not answer in time") from None
        except httpx2.HTTPError as error:
            raise Problem(503, f"Jaeger is not available: {error}", headers=retry_after()) from None
        if response.status_code == 404:
            return []
        if response.status_code != 200:
            raise Problem(503, f"Jaeger answered {response.status_code}", headers=retry_after())
        try:
            return list(_from_jaeger(json.loads(response.content)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Problem(502, f"Jaeger's answer cannot be read: {error!r}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def receive_otlp(request: Request, store: TraceStore) -> Response:
    """``POST /v1/traces``: protobuf, plain or packed by gzip or deflate.

    Errors are ``google.rpc.Status`` in protobuf, as OTLP/HTTP demands, not problem documents.
    """
    try:
        if media_type(request) != _PROTOBUF:
            raise Problem(415, f"expected Content-Type: {_PROTOBUF}")
        body = _unpack(
            await read_body(request, limit=LARGEST_BODY, timeout_s=10.0), request.headers.get("content-encoding", "")
        )
        try:
            export = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            raise Problem(400, "the body is not a valid ExportTraceServiceRequest") from None
    except Problem as problem:
        status = Status(code=3, message=problem.detail)
        return Response(status.SerializeToString(), problem.status, headers=problem.headers, media_type=_PROTOBUF)
    answer = ExportTraceServiceResponse()
    if refused := store.add(export):
        answer.partial_success.rejected_spans = refused
        answer.partial_success.error_message = "bad ids, or more spans than one trace may have"
    return Response(answer.SerializeToString(), media_type=_PROTOBUF)


def _unpack(body: bytes, encoding: str) -> bytes:
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "deflate":
            unpacker = zlib.decompressobj(wbits=47)  # finds out by itself which of the two it is
            try:
                plain = unpacker.decompress(body, LARGEST_UNPACKED)
            except zlib.error as error:
                raise Problem(400, f"the body is not {encoding}: {error}") from None
            if unpacker.unconsumed_tail:
                raise Problem(413, f"the body is larger than {LARGEST_UNPACKED} bytes when unpacked")
            if not unpacker.eof:
                raise Problem(400, f"the body ends in the middle of the {encoding} stream")
            return plain
        case other:
            raise Problem(415, f"Content-Encoding is {other[:32]!r}; expected gzip, deflate or none")


def _resource(attributes: Iterable[KeyValue]) -> tuple[str, str]:
    texts = {pair.key: pair.value.string_value for pair in attributes}
    return texts.get("service.name") or "unknown", texts.get("service.instance.id", "")


def _from_otlp(service: str, instance: str, span: OtlpSpan) -> Span:
    attributes = {pair.key: _plain(pair.value) for pair in span.attributes}
    return Span(
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        service=service,
        name=span.name,
        start_ns=span.start_time_unix_nano,
        duration_ns=max(0, span.end_time_unix_nano - span.start_time_unix_nano),
        status=_STATUSES.get(span.status.code, "unset"),
        attributes=_with_extras(attributes, span.kind, span.status.message, instance),
    )


def _from_jaeger(answer: Mapping[str, object]) -> Iterable[Span]:
    result = _object(answer["result"])
    for resource_spans in result.get("resourceSpans", ()):
        resource = _json_attributes(resource_spans.get("resource", {}))
        service, instance = str(resource.get("service.name", "unknown")), str(resource.get("service.instance.id", ""))
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                start_ns, status = int(span["startTimeUnixNano"]), span.get("status") or {}
                yield Span(
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId") or None,
                    service=service,
                    name=span.get("name", ""),
                    start_ns=start_ns,
                    duration_ns=max(0, int(span["endTimeUnixNano"]) - start_ns),
                    status=_STATUSES.get(status.get("code", 0), "unset"),
                    attributes=_with_extras(
                        _json_attributes(span), span.get("kind", 0), status.get("message", ""), instance
                    ),
                )


def _with_extras(attributes: dict[str, object], kind: int, message: str, instance: str) -> dict[str, object]:
    """What OTLP keeps beside the attributes, under the names that OpenTelemetry gives it elsewhere."""
    if kind in _KINDS:
        attributes.setdefault("span.kind", _KINDS[kind])
    if message:
        attributes.setdefault("otel.status_description", message)
    if instance:
        attributes.setdefault("service.instance.id", instance)
    return attributes


def _plain(value: AnyValue) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return _finite(value.double_value)
        case "array_value":
            return [_plain(entry) for entry in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case _:
            return None


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {type(value).__name__}")
    return value


def _json_attributes(holder: Mapping[str, Any]) -> dict[str, object]:
    return {pair["key"]: _plain_json(pair.get("value") or {}) for pair in holder.get("attributes", ())}


def _plain_json(value: Mapping[str, object]) -> object:
    for kind, content in value.items():
        match kind:
            case "intValue":
                return int(str(content))
            case "doubleValue":
                return _finite(float(str(content)))
            case "arrayValue":
                return [_plain_json(entry) for entry in _object(content).get("values", ())]
            case "kvlistValue":
                return _json_attributes({"attributes": _object(content).get("values", ())})
            case _:
                return content
    return None


def _finite(number: float) -> object:
    return number if math.isfinite(number) else str(number)
