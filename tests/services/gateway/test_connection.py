"""Each state that a connection can be in has an end, and answers are not held back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import statistics
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lb.server import Places
from services.gateway import connection
from services.gateway.limits import Bounds
from tests.services.gateway.conftest import Bench, serve
from tests.support.wait import until

_ORDER = json.dumps({"items": [{"sku": "tea", "quantity": 1}]}).encode()
ORDER = b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_ORDER),
    _ORDER,
)
NOTHING = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The status line and the body of the next answer of a kept connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    return head.split(b"\r\n")[0], await reader.readexactly(length)


async def test_answers_on_a_kept_connection_are_not_held_back(bench: Bench) -> None:
    """An answer's body does not wait until the client has acknowledged its head, which takes a client 40 ms."""
    loop = asyncio.get_running_loop()

    async def prompt() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        took = []
        for _ in range(20):
            writer.write(NOTHING)
            begun = loop.time()
            await answer(reader)
            took.append(loop.time() - begun)
        writer.close()
        return statistics.median(took) < 0.035

    await until(prompt, within_s=30, what="answers within 35 ms")


@pytest.mark.parametrize(
    ("request_", "rest"),
    [
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b""),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"5"),
    ],
)
async def test_a_body_that_nobody_reads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, request_: bytes, rest: bytes
) -> None:
    """A request that is answered before its body came has a bounded time for the rest, sent or not."""
    monkeypatch.setattr(connection, "LEFTOVER_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    async with asyncio.timeout(4.5):  # uvicorn closes a silent connection after 5 s
        writer.write(request_)
        await answer(reader)
        writer.write(rest)
        with contextlib.suppress(ConnectionResetError):  # the rest came after the close
            assert await reader.read() == b""
    writer.close()


async def test_a_body_that_comes_late_is_passed_over(bench: Bench) -> None:
    """When the rest comes in time the connection goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    async with asyncio.timeout(30):
        writer.write(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert b" 404 " in (await answer(reader))[0]
        writer.write(b"x" * 10 + NOTHING)
        assert b" 404 " in (await answer(reader))[0]
    writer.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_never_reads(monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    """An answer that nobody takes is given up, and what was kept for it is freed."""
    monkeypatch.setattr(connection, "FLUSH_S", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        large = Response(b"x" * (32 << 20))
        pieces = StreamingResponse(b"x" * (16 << 20) for _ in range(2))  # no socket takes even the first one whole
        await (pieces if streamed else large)(scope, receive, send)

    async with serve(Bounds(app, Places(), longest_s=0.5)) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            poll = select.poll()
            poll.register(client, 0)  # errors and hang-ups alone, and nothing is read

            async def gone() -> bool:
                return bool(poll.poll(0))

            await until(gone, within_s=30, what="the connection is aborted")


async def test_a_client_that_reads_slowly_gets_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a client takes something now and then, its answer is not cut."""
    monkeypatch.setattr(connection, "FLUSH_S", 0.5)
    size = 12 << 20

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * size)(scope, receive, send)

    async with serve(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        loop = asyncio.get_running_loop()
        begun, taken = loop.time(), 0
        async with asyncio.timeout(60):
            while piece := await reader.read(1 << 20):
                taken += len(piece)
                # 1.5 s in all, thrice the limit
                await asyncio.sleep(max(0.0, begun + 1.5 * taken / size - loop.time()))
        assert taken > size
        writer.close()


async def test_pipelined_requests_have_traces_of_their_own(bench: Bench) -> None:
    """Requests that are sent before the last one is answered do not begin in its trace."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(ORDER + NOTHING + ORDER)
    ids = [json.loads((await answer(reader))[1]).get("trace_id") for _ in range(3)]
    writer.write(NOTHING)
    ids.append(json.loads((await answer(reader))[1]).get("trace_id"))
    writer.close()
    assert None not in (ids[0], ids[2])
    assert ids[0] != ids[2]
    assert ids[1] is None
    assert ids[3] is None


async def test_one_connection_more_takes_the_place_of_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the most connections the one that has waited longest makes room; where all are busy the new one goes."""
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 2)
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.release()
        if scope["path"] == "/slow":
            await leave.wait()
        await Response("done")(scope, receive, send)

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = await asyncio.open_connection("127.0.0.1", port)
        opened[1].write(b"GET /fast HTTP/1.1\r\nHost: x\r\n\r\n")
        return opened

    async def slow(opened: tuple[Any, Any]) -> None:
        opened[1].write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.acquire()

    async with serve(app) as port, asyncio.timeout(30):
        first = await connect()
        await answer(first[0])
        second = await connect()
        await answer(second[0])
        third = await connect()
        assert (await answer(third[0]))[1] == b"done"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await first[0].readexactly(1)
        for _ in range(3):
            await entered.acquire()
        await slow(second)
        await slow(third)
        fourth = await connect()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await fourth[0].readexactly(1)
        leave.set()
        assert (await answer(second[0]))[1] == b"done"
        assert (await answer(third[0]))[1] == b"done"
        for opened in (first, second, third, fourth):
            opened[1].close()
