"""The gateway as a process: ``python -m services.gateway``.

Ends on SIGTERM, Ctrl-C or the supervisor's end: ``/healthz`` answers 503 for ``MESH_DRAIN_WAIT_S``, then
the port closes, and requests in flight have the rest of ``MESH_DRAIN_S``. A second reason to end skips what is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from pydantic import AfterValidator, Field

from lb.aio.consul import Registry
from lb.server import Life, Limits, Places
from services.gateway.app import Gateway
from services.gateway.backends import Backends
from services.gateway.connection import Server, config
from services.gateway.limits import PLACES, Bounds
from services.gateway.topology import CONSUL_TIMEOUT_S, Topology
from services.gateway.traces import JaegerTraces, Traces, TraceStore
from services.runtime.channels import connector
from services.runtime.process import main
from services.runtime.settings import Settings, SettingsError, bucket, http_url
from services.runtime.telemetry import Telemetry

log = structlog.get_logger()


def _header(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]*", text):
        raise ValueError("expected the name of a header, such as X-Forwarded-For")
    return text


class GatewaySettings(Settings):
    """What the gateway reads beside the settings of every process."""

    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the HTTP interface; 0 takes a free one."""
    http_host: str = "127.0.0.1"
    """Address of the HTTP interface; in a container 0.0.0.0."""
    jaeger_query: Annotated[str, AfterValidator(http_url)] | None = None
    """Base URL of Jaeger's query API. Without it ``/api/traces`` answers from the gateway's own store."""
    client_rate: float = Field(default=500.0, ge=0, le=1_000_000)
    """Requests a second of each client: half of what all may have. 0 is any number."""
    client_burst: float = Field(default=0.0, ge=0, le=1_000_000)
    """Requests of a client at once beyond its rate; 0 is twice the rate."""
    client_header: Annotated[str, AfterValidator(_header)] = ""
    """A header in which a trusted edge before the gateway names the client; without it, a client is its address."""

    @property
    def limits(self) -> Limits:
        """What the gateway takes on."""
        return Limits(
            concurrency=self.places(PLACES),
            rate=bucket(self.rate, self.burst),
            client_rate=bucket(self.client_rate, self.client_burst),
        )


def _listen(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    try:
        return socket.create_server((settings.http_host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise SettingsError(
            f"MESH_PORT={settings.port}: cannot listen on {settings.http_host}: {os.strerror(error.errno or 0)}"
        ) from None


def _exports_to(port: int) -> bool:
    """Whether this process' spans go to its own port."""
    endpoint = urlsplit(
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
    )
    return endpoint.hostname in ("127.0.0.1", "localhost", "::1") and endpoint.port == port


class Process(Life):
    """The gateway's life. Made in a running loop."""

    def __init__(self, settings: GatewaySettings, traces: Telemetry) -> None:
        self._settings = settings
        self._traces = traces
        self._stack = AsyncExitStack()
        self._gateway: Gateway | None = None
        self._http: Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._port = 0

    async def start(self) -> None:
        """Listen. Raises ``SettingsError`` when the port is taken."""
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
        gateway = self._gateway = await self._build()
        listener = _listen(self._settings)
        self._port = listener.getsockname()[1]
        limits = self._settings.limits
        app = Bounds(
            gateway.asgi,
            Places(limits),
            client_rate=limits.client_rate,
            client_header=self._settings.client_header or None,
        )
        http = self._http = Server(config(app, drain_s=max(0.0, self._settings.drain_s - self._settings.drain_wait_s)))
        self._serving = asyncio.create_task(http.serve(sockets=[listener]), name="http")
        self._looking = asyncio.create_task(gateway.start(), name="ready")
        log.info("ready", address=f"{self._settings.http_host}:{self._port}", pid=os.getpid())

    async def run(self) -> None:
        """Serve; it ends by itself only when it fails."""
        await self._served()

    async def leave(self, because: str) -> None:
        """Say that it leaves, and wait; then close the port, and let requests in flight end."""
        if because:
            log.info("stopping", because=because)
        if self._gateway is None or self._http is None:
            return
        self._gateway.leaving = True
        await self._served(within_s=self._settings.drain_wait_s)
        if _exports_to(self._port):
            # The last spans go to this very port: while it is open, and in a thread, for the loop must take them.
            await asyncio.to_thread(self._traces.close)
        self._http.should_exit = True
        await self._served()

    async def close(self) -> None:
        """Cut off what is still in flight, and close the channels."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        try:
            if self._http is not None and self._serving is not None:
                self._http.should_exit = self._http.force_exit = True
                await self._serving
        finally:
            await self._stack.aclose()

    async def _build(self) -> Gateway:
        stack, settings = self._stack, self._settings
        connect = connector(settings, "gateway")
        try:
            registry = Registry(timeout_s=CONSUL_TIMEOUT_S)
            backends = Backends(
                *[await stack.enter_async_context(connect(name)) for name in ("orders", "catalog", "inventory")]
            )
        except ValueError as error:  # one of Consul's own variables, which it names
            raise SettingsError(str(error)) from None
        stack.push_async_callback(registry.close)
        topology = Topology(registry.instances)
        stack.push_async_callback(topology.close)
        store = TraceStore()
        source: Traces = store
        if settings.jaeger_query:
            source = jaeger = JaegerTraces(settings.jaeger_query)
            stack.push_async_callback(jaeger.close)
        return Gateway(backends, topology, source, store, provider=self._traces.provider)

    async def _served(self, within_s: float | None = None) -> None:
        """Wait until uvicorn has ended, without ending it when the wait is cancelled."""
        if self._serving is not None:
            await asyncio.wait([self._serving], timeout=within_s)


if __name__ == "__main__":
    # The stable names of HTTP's attributes; without this the instrumentation writes those of 2023.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    main("gateway", GatewaySettings, Process)
