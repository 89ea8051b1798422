"""The gateway as a process: ``python -m services.gateway``.

Ends on SIGTERM, Ctrl-C or the supervisor's end: ``/healthz`` answers 503 for ``MESH_DRAIN_WAIT_S``, then
the port closes and requests in flight have ``MESH_DRAIN_S`` seconds. A second signal skips what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import urlsplit

import structlog
import uvicorn
from pydantic import AfterValidator, Field

from services.gateway.app import Gateway
from services.gateway.backends import Backends
from services.gateway.connection import config
from services.gateway.limits import Limits
from services.gateway.topology import ConsulRegistry, Topology
from services.gateway.traces import JaegerTraces, Traces, TraceStore
from services.runtime import logs, telemetry
from services.runtime.channels import connector
from services.runtime.describe import version
from services.runtime.server import stop_signals
from services.runtime.settings import Settings, SettingsError, http_url, load

log = structlog.get_logger()


class GatewaySettings(Settings):
    """What the gateway reads beside the settings of every process."""

    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the HTTP interface; 0 takes a free one."""
    http_host: str = "127.0.0.1"
    """Address of the HTTP interface; in a container 0.0.0.0."""
    jaeger_query: Annotated[str, AfterValidator(http_url)] | None = None
    """Base URL of Jaeger's query API. Without it ``/api/traces`` answers from the gateway's own store."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the order of leaving is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing."""
        yield


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


async def serve(settings: GatewaySettings, traces: telemetry.Telemetry) -> None:
    """Serves until there is a reason to stop. Raises ``SettingsError`` when the port is taken."""
    async with AsyncExitStack() as stack:
        reasons = await stack.enter_async_context(stop_signals(settings.parent_fd))
        connect = connector(settings)
        try:
            registry = ConsulRegistry()
            backends = Backends(
                *[await stack.enter_async_context(connect(name)) for name in ("orders", "catalog", "inventory")]
            )
        except ValueError as error:  # one of Consul's own variables, which it names
            raise SettingsError(str(error)) from None
        stack.push_async_callback(registry.close)
        topology = Topology(registry)
        stack.push_async_callback(topology.close)
        store = TraceStore()
        source: Traces = store
        if settings.jaeger_query:
            source = jaeger = JaegerTraces(settings.jaeger_query)
            stack.push_async_callback(jaeger.close)
        gateway = Gateway(backends, topology, source, store, provider=traces.provider)
        listener = _listen(settings)
        port = listener.getsockname()[1]
        server = _Server(config(Limits(gateway.asgi), drain_s=settings.drain_s))
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        starting = asyncio.create_task(gateway.start(), name="ready")
        log.info("ready", address=f"{settings.http_host}:{port}", pid=os.getpid())
        stopped = asyncio.create_task(reasons.get())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            log.info("stopping", because=stopped.result())
        again = asyncio.create_task(reasons.get())
        gateway.leaving = True
        await asyncio.wait({serving, again}, timeout=settings.drain_wait_s, return_when=asyncio.FIRST_COMPLETED)
        if _exports_to(port):
            # The last spans go to this very port: while it is open, and in a thread, for the loop must take them.
            await asyncio.to_thread(traces.close)
        server.should_exit = True
        await asyncio.wait({serving, again}, return_when=asyncio.FIRST_COMPLETED)
        server.force_exit = True
        for task in (stopped, again, starting):
            task.cancel()
        await asyncio.gather(stopped, again, starting, return_exceptions=True)
        await serving


def main() -> None:
    """Runs the gateway: settings from the environment, exit status 2 when they are wrong."""
    # The stable names of HTTP's attributes; without this the instrumentation writes those of 2023.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    try:
        settings = load(GatewaySettings)
        identity = settings.instance_id or f"gateway-{socket.gethostname()}-{os.getpid()}"
        logs.setup("gateway", identity, settings.log_level)
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
        traces = telemetry.setup("gateway", identity, version())
        try:
            asyncio.run(serve(settings, traces))
        finally:
            traces.close()
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
