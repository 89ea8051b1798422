"""Traces of a process: OpenTelemetry's SDK with an OTLP/HTTP exporter.

Where the spans go is said by OpenTelemetry's own variables. Without ``OTEL_EXPORTER_OTLP_ENDPOINT``
(or its form for traces) nothing is set up, and a call pays nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.runtime.interceptors import is_business
from services.runtime.settings import trace_collector

# A trace shall be there when the one who placed the order looks for it.
_DELAY_MS = 500
_EXPORT_TIMEOUT_S = 2.0
_FLUSH_S = 2.0


class Telemetry:
    """The tracing of this process. ``provider`` is None when spans go nowhere."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider
        self._closed = False

    def server_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What makes a span of each call that a server takes, health checks and the like aside."""
        if self.provider is None:
            return []
        interceptor: grpc.aio.ServerInterceptor = aio_server_interceptor(  # type: ignore[no-untyped-call]
            self.provider, filter_=lambda details: is_business(details.method)
        )
        return [interceptor]

    async def flush(self) -> None:
        """As `close`, while the loop runs."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Send what is left, for at most about 2 seconds. It may be called again."""
        if self.provider is not None and not self._closed:
            self._closed = True
            # The provider's own shutdown allows 30 seconds to a collector that is away.
            flush = threading.Thread(target=self.provider.shutdown, name="telemetry-flush", daemon=True)
            flush.start()
            flush.join(_FLUSH_S)


def setup(service: str, instance_id: str, version: str) -> Telemetry:
    """Make the process' tracer provider, if its spans have somewhere to go.

    Raises:
        SettingsError: where they are to go is no URL.
    """
    if trace_collector() is None:
        return Telemetry(None)
    # A collector that is away is no news every half second; the processor logs what it drops.
    logging.getLogger("opentelemetry.exporter.otlp.proto.http").setLevel(logging.CRITICAL)
    resource = Resource.create(
        {"service.name": service, "service.instance.id": instance_id, "service.version": version}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter(timeout=_EXPORT_TIMEOUT_S), schedule_delay_millis=_DELAY_MS)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return Telemetry(provider)
