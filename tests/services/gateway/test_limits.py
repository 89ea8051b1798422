"""What a client may cost: bodies, heads, and how many requests at once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lb.server import Concurrency, Limits, Places
from services.gateway import app as gateway_app
from services.gateway import connection
from services.gateway.limits import Bounds
from tests.services.gateway.conftest import Bench, serve
from tests.support.wait import longer

HEAD = b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def exchange(port: int, *pieces: bytes) -> bytes:
    """Sends pieces over a connection of its own; returns all that comes until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


async def test_a_large_body_is_refused_before_it_is_read(bench: Bench) -> None:
    """413 at once when it is announced, and as soon as it is over the limit when it is not."""
    announced = await exchange(bench.port, HEAD + b"Content-Length: 70000\r\n\r\n")
    assert announced.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in announced
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    chunked = await exchange(bench.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 5)
    assert chunked.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_does_not_come_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """408, and the connection is closed."""
    monkeypatch.setattr(gateway_app, "BODY_TIMEOUT_S", 0.05)
    answer = await exchange(bench.port, HEAD + b"Content-Length: 10\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_head_that_does_not_end_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a complete head is closed, whether it says nothing or a little at a time."""
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    assert await exchange(bench.port) == b""
    assert await exchange(bench.port, b"GET / HT") == b""
    monkeypatch.setattr(connection, "HEAD_S", 60.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    async with asyncio.timeout(4.5):  # uvicorn's own limit for an idle connection is 5 s
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}")
        monkeypatch.setattr(connection, "HEAD_S", 0.05)
        writer.write(b"GET / HT")
        assert await reader.read() == b""
    writer.close()


async def test_a_slow_answer_is_none_of_the_heads_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its head is complete, a request may take longer than a head."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(3 * connection.HEAD_S)
        await PlainTextResponse("done")(scope, receive, send)

    async with serve(slow) as port:
        for head_s in longer(0.05):
            monkeypatch.setattr(connection, "HEAD_S", head_s)
            answer = await exchange(port, HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
            if answer:
                break  # else the head itself was too late
    assert answer.endswith(b"done")


async def test_too_many_at_once_are_sent_away(bench: Bench) -> None:
    """503 with Retry-After as a problem document; health is always answered; a place that is free is used."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            entered.set()
            await leave.wait()
        await PlainTextResponse("done")(scope, receive, send)

    bounded = Bounds(slow, Places(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))))
    async with serve(bounded) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        first = asyncio.create_task(client.get("/slow"))
        await entered.wait()
        answer = await client.get("/fast")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.get("/healthz")).text == "done"
        leave.set()
        assert (await first).text == "done"
        assert (await client.get("/fast")).text == "done"


async def test_a_request_ends_though_nobody_reads_its_answer() -> None:
    """Whatever holds a request open is over after the longest time, and its place is free."""
    called = asyncio.Event()

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        called.set()
        await asyncio.Event().wait()

    places = Places()
    bounded = Bounds(stuck, places, longest_s=0.01)
    async with asyncio.timeout(30):
        await bounded({"type": "http", "method": "GET", "path": "/slow"}, None, None)  # type: ignore[arg-type]
    assert called.is_set()
    assert places.load == 0.0
