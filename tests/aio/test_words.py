"""What a failed call says reads as in grpcio, though core's own retries are off under ours: true of both."""

from __future__ import annotations

import asyncio

import grpc

from lb.testing.backend import hang
from tests.aio.kit import HANGS_S, UU, Kind, failure
from tests.aio.worlds import Side, World
from tests.support.doors import stop_accepting
from tests.support.releases import WRAPS, worded


async def test_a_deadline(world: World, kind: Kind) -> None:
    """Details and debug string, without a word of what core was doing."""
    for backend in world.backends:
        backend.always(hang())
    await world.channel.channel_ready()  # without a connection the words are others
    error = await failure(kind.start(world.channel, timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "Deadline Exceeded"
    if WRAPS:
        assert error.debug_error_string() == "DEADLINE_EXCEEDED:Deadline Exceeded"
    else:
        assert "Deadline Exceeded" in (error.debug_error_string() or "")


async def test_a_connection_that_is_cut(side: Side) -> None:
    """Core's words for it stay as they are."""
    writers: list[asyncio.StreamWriter] = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # empty SETTINGS
        while data := await reader.read(4096):
            if b"UnaryUnary" in data:
                break
        writer.transport.abort()

    servers = [await asyncio.start_server(cut, "127.0.0.1", 0) for _ in range(side.backends)]
    addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    async with side.make(*addresses) as channel:
        error = await failure(UU.start(channel, timeout=HANGS_S, wait_for_ready=True))
    for server in servers:
        await stop_accepting(server)
        server.close()
        for writer in writers:  # core may be about to connect again, and leaves that open for a while
            writer.transport.abort()
        await server.wait_closed()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == worded("Stream removed (Socket closed)")
