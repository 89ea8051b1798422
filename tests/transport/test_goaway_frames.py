"""What a closing connection gives back is sent again, also where a method may not run twice.

A server of raw HTTP/2 frames does exactly what each test says, so grpcio's own words for it are under test, too.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import lb
from lb.core.outcome import Origin
from lb.testing import Backend
from lb.testing._listening import stop_accepting
from lb.testing.backend import UNARY_UNARY
from tests.transport.kit import HANGS_S, NO_BREAKER, UU, First, failure, ready

_PREFACE = 24
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_WORDS = "Stream removed (GOAWAY received; Error code: 0; Debug Text: bye)"
NOTHING = lb.Retry(budget=lb.Budget(ratio=0, min_per_s=0))
"""No method is idempotent, and there is no budget."""

Answer = Callable[[asyncio.StreamWriter, int], None]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def goaway(last: int) -> bytes:
    """Streams above ``last`` were not looked at (6.8)."""
    return frame(_GOAWAY, 0, 0, struct.pack(">II", last, 0) + b"bye")


def trailers(stream: int, status: int, message: str) -> bytes:
    """A response without a message: grpc-status and grpc-message as literal headers of HPACK."""
    pairs = {"content-type": "application/grpc", "grpc-status": str(status), "grpc-message": message}
    headers = b"".join(
        b"\x00" + b"".join(bytes([len(t)]) + t for t in (k.encode(), v.encode())) for k, v in pairs.items()
    )
    return frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, b"\x88" + headers)  # 88: ":status: 200"


@asynccontextmanager
async def raw(answer: Answer) -> AsyncIterator[str]:
    """A server that calls ``answer`` at the end of each request; its address."""
    connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[writer] = asyncio.current_task()
        try:
            await reader.readexactly(_PREFACE)
            writer.write(frame(_SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    writer.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
                elif kind == _DATA and flags & _END_STREAM:
                    answer(writer, stream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        await stop_accepting(server)
        server.close()
        for writer in connections:
            writer.transport.abort()
        await asyncio.gather(*(task for task in connections.values() if task is not None))
        await asyncio.sleep(0)  # a transport lets go of its socket one turn after its end


def refuse(writer: asyncio.StreamWriter, stream: int) -> None:
    """Say that this request was not looked at, and end the connection in good order."""
    writer.write(goaway(stream - 2 if stream > 1 else 0))


def pretend(writer: asyncio.StreamWriter, stream: int) -> None:
    """Answer in the words that core has for a GOAWAY, over a connection that goes on."""
    writer.write(trailers(stream, grpc.StatusCode.UNAVAILABLE.value[0], _WORDS))


def cut(writer: asyncio.StreamWriter, stream: int) -> None:
    """End the connection in good order, but not before this request was taken."""
    writer.write(goaway(stream))
    writer.close()


@asynccontextmanager
async def pair(answer: Answer, backend: Backend, **settings: Any) -> AsyncIterator[Any]:
    """A channel that begins at a raw server and has the backend for what follows.

    Not by ``pick_first``, which would stay with the backend when that is connected first.
    """
    async with (
        raw(answer) as address,
        lb.aio.channel(
            f"static:///{address},{backend.address}", policy=First(), breaker=NO_BREAKER, **settings
        ) as channel,
    ):
        await ready(channel, 2)
        yield channel


async def test_what_a_goaway_gives_back_is_sent_again(backend: Backend) -> None:
    """At once, elsewhere, without budget, though the method may not run twice."""
    async with pair(refuse, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        assert await UU.responses(call) == UU.echo()
        first, second = lb.attempts(call)
        assert first.outcome is not None
        assert first.outcome.origin in (Origin.UNPROCESSED, Origin.CLOSING)
        assert second.why.startswith("transparent: ")
    assert "grpc-previous-rpc-attempts" not in backend.received[0].metadata


async def test_not_with_retries_off(backend: Backend) -> None:
    """Off is off."""
    async with pair(refuse, backend, retry=lb.Retry(enabled=False)) as channel:
        error = await failure(UU.start(channel, timeout=HANGS_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert backend.received == []


async def test_words_alone_are_not_believed(backend: Backend) -> None:
    """A server may pass on what its own client said: the method has run, and its connection stands."""
    async with pair(pretend, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "GOAWAY received" in (error.details() or "")
        assert len(lb.attempts(call)) == 1
    assert backend.received == []


async def test_what_was_taken_is_not_sent_again(backend: Backend) -> None:
    """The connection is lost after a GOAWAY that counts the call in: it may have run."""
    async with pair(cut, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert len(lb.attempts(call)) == 1
    async with pair(cut, backend, retry=lb.Retry(idempotent=[UNARY_UNARY])) as channel:
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()


@pytest.mark.parametrize("answer", [refuse, pretend], ids=["goaway", "words"])
async def test_how_core_words_it(answer: Answer) -> None:
    """The installed grpcio, with its own retries off: what the channel reads. A new wording must be known here."""
    async with (
        raw(answer) as address,
        grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        call: Any = channel.unary_unary(UNARY_UNARY)
        error = await failure(call(b"x", timeout=HANGS_S))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, _WORDS)
        assert not error.trailing_metadata()
