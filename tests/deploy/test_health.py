"""The containers' health check against real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PROBE = Path(__file__).resolve().parents[2] / "deploy" / "health.py"


async def probe(*arguments: str) -> tuple[int, str]:
    """Run the check as a container does; its exit status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(PROBE), *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().strip()


@pytest.mark.parametrize(
    ("status", "exit_status", "words"),
    [
        (health_pb2.HealthCheckResponse.SERVING, 0, ""),
        (health_pb2.HealthCheckResponse.NOT_SERVING, 1, "status 2, not SERVING"),
        (health_pb2.HealthCheckResponse.UNKNOWN, 1, "status 0, not SERVING"),
    ],
)
async def test_grpc_says_what_the_health_service_says(status: int, exit_status: int, words: str) -> None:
    """SERVING is 0, anything else is 1 with the status."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await servicer.set("", status)
        assert await probe("grpc", str(port)) == (exit_status, words)
    finally:
        await server.stop(None)


async def test_grpc_without_a_health_service_is_not_healthy() -> None:
    """A server that answers UNIMPLEMENTED has not said that it serves."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await probe("grpc", str(port)) == (1, "the call failed")
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("line", "exit_status", "words"),
    [("200 OK", 0, ""), ("204 No Content", 0, ""), ("503 Service Unavailable", 1, "answered HTTP/1.1 503")],
)
async def test_http_wants_a_2xx(line: str, exit_status: int, words: str) -> None:
    """Only a 2xx is healthy."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await probe("http", str(port), "/healthz") == (exit_status, words)


async def test_nothing_listening_and_bad_words_are_one_line(free_port: int) -> None:
    """No traceback: a line, and exit status 1."""
    assert await probe("grpc", str(free_port)) == (1, "[Errno 111] Connection refused") or sys.platform != "linux"
    assert await probe("grpc") == (1, "usage: health.py grpc PORT | http PORT PATH")
