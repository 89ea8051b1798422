"""The gateway as a process: what is wrong with its settings, and how it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.wait import until

ROOT = Path(__file__).resolve().parents[3]


async def start(*fds: int, **settings: str) -> asyncio.subprocess.Process:
    """Starts it, where no Consul is, with these descriptors inherited."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.gateway",
        cwd=ROOT,
        env={**clean, "CONSUL_HTTP_ADDR": "127.0.0.1:1", **settings},
        stderr=asyncio.subprocess.PIPE,
        pass_fds=fds,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MESH_PORT": "taken"}, ["MESH_PORT"]),
        ({"MESH_JAEGER_QUERY": "jaeger:16686"}, ["MESH_JAEGER_QUERY", "http://"]),
        ({"CONSUL_HTTP_ADDR": "ftp://x"}, ["CONSUL_HTTP_ADDR"]),
        ({"MESH_CLIENT_HEADER": "X-Real-IP:"}, ["MESH_CLIENT_HEADER", "X-Forwarded-For"]),
        ({"MESH_CLIENT_RATE": "-1"}, ["MESH_CLIENT_RATE"]),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(settings: dict[str, str], words: list[str]) -> None:
    """Exit status 2 and one line, also for a port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await start(**{name: port if value == "taken" else value for name, value in settings.items()})
        async with asyncio.timeout(90):
            _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.count(b"\n") == 1
    assert all(word.encode() in errors for word in words), errors


@pytest.mark.parametrize("how", ["SIGTERM", "supervisor gone"])
async def test_it_says_that_it_leaves_before_it_does(free_port: int, how: str) -> None:
    """Health answers 503 while the port is open, then it ends with 0; that its spans go to itself does not hold it."""
    read_end, write_end = os.pipe()
    url = f"http://127.0.0.1:{free_port}"
    process = await start(
        read_end,
        MESH_PORT=str(free_port),
        MESH_DRAIN_WAIT_S="1.5",
        MESH_LOG_LEVEL="warning",
        MESH_PARENT_FD=str(read_end),
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
    )
    os.close(read_end)
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:

        async def health() -> str:
            try:
                return str((await client.get("/healthz")).json()["detail"])
            except httpx2.HTTPError:
                return ""

        assert "starting" in await until(health, within_s=90, what="it answers")
        answer = await client.get("/api/orders/x", headers={"Request-Timeout": "0.2"})
        assert answer.status_code in (503, 504)
        trace_id = answer.json()["trace_id"]

        async def traced() -> bool:
            return (await client.get(f"/api/traces/{trace_id}")).status_code == 200

        await until(traced, within_s=60, what="its own span came back to it")
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            os.close(write_end)

        async def leaving() -> bool:
            return "shutting down" in await health()

        await until(leaving, within_s=60, what="health says that it leaves", every_s=0.02)
    async with asyncio.timeout(90):
        _, errors = await process.communicate()
    if how == "SIGTERM":
        os.close(write_end)
    assert process.returncode == 0
    # lb warns that there is no Consul; nothing else is to be said
    assert [line for line in errors.splitlines() if b"127.0.0.1:1" not in line] == []
