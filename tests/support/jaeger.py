"""A real Jaeger for the tests: one process, its own ports, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support import servers
from tests.support.ports import free_ports

_START_S = 90.0
_PORTS = ("QUERY_PORT", "QUERY_GRPC_PORT", "HEALTH_PORT", "OTLP_GRPC_PORT", "OTLP_HTTP_PORT")


@dataclass(frozen=True)
class Span:
    """What the tests ask of a span, out of Jaeger's JSON."""

    span_id: str
    parent_id: str | None
    service: str
    name: str
    tags: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether its status is an error."""
        return self.tags.get("error") is True


class Jaeger:
    """Where it takes spans (``otlp``) and answers questions (``query``): base URLs."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.otlp = f"http://127.0.0.1:{ports['OTLP_HTTP_PORT']}"
        self.query = f"http://127.0.0.1:{ports['QUERY_PORT']}"

    async def trace(self, client: httpx2.AsyncClient, trace_id: str) -> list[Span]:
        """The spans of a trace that have arrived; none is no error."""
        answer = await client.get(f"{self.query}/api/traces/{trace_id}")
        if answer.status_code == 404:
            return []
        answer.raise_for_status()
        return [
            _span(span, trace["processes"][span["processID"]]["serviceName"])
            for trace in answer.json()["data"] or []
            for span in trace["spans"]
        ]


def _span(span: dict[str, Any], service: str) -> Span:
    parents = [ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"]
    tags = {tag["key"]: tag["value"] for tag in span["tags"]}
    return Span(span["spanID"], parents[0] if parents else None, service, span["operationName"], tags)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Jaeger]:
    """Start Jaeger with the project's configuration and wait until it is ready."""
    program = servers.find("jaeger")
    assert program is not None, "tests that need it are marked `jaeger`"
    with free_ports(len(_PORTS)) as numbers:
        ports = dict(zip(_PORTS, numbers, strict=True))
    process = await asyncio.create_subprocess_exec(
        str(program),
        "--config",
        str(servers.ROOT / "deploy" / "jaeger.yaml"),
        env={**os.environ, **{f"JAEGER_{name}": str(port) for name, port in ports.items()}},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_START_S), httpx2.AsyncClient() as client:
            while not await _healthy(client, f"http://127.0.0.1:{ports['HEALTH_PORT']}/status"):
                if process.returncode is not None:
                    raise RuntimeError(f"jaeger ended with status {process.returncode} before it was ready")
                await asyncio.sleep(0.05)
        yield Jaeger(ports)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _healthy(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False
