"""How connections are made: shared and not, at what pace, how long it may take, and what is said when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import lb
from lb.testing import Backend
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, NO_BREAKER, SS, UU, Kind, eventually, failure, ready
from tests.support import http2

PATIENT = lb.Connection(backoff_s=60, max_backoff_s=60)
"""Who fails to connect does not try again in this test."""
PACE = lb.Connection(backoff_s=0.05, max_backoff_s=0.2)


def answer(connection: http2.Connection, stream: int) -> None:
    """An empty message."""
    connection.answer(stream, b"")


def close(connection: http2.Connection) -> None:
    """Greet, and hang up."""
    connection.settings()
    connection.close()


def goaway(connection: http2.Connection) -> None:
    """Greet and take leave in one segment."""
    connection.send(http2.settings(), http2.goaway(0))
    connection.close()


def abort(connection: http2.Connection) -> None:
    """Greet, and cut the connection off."""
    connection.settings()
    connection.abort()


def channel_for(*addresses: str, **settings: Any) -> Any:
    """A channel to these, without a breaker."""
    return lb.aio.channel("static:///" + ",".join(addresses), breaker=NO_BREAKER, **settings)


@asynccontextmanager
async def waits_to_reconnect(port: int) -> AsyncIterator[None]:
    """Another channel of the process has lost its connection there, and tries again only in a minute."""
    async with channel_for(f"127.0.0.1:{port}", connection=PATIENT) as other:
        async with Backend(port=port):
            assert await UU.run(other) == UU.echo()
        await eventually(lambda: other.snapshot().endpoints[0].connectivity == "TRANSIENT_FAILURE", "it waits")
        yield


async def test_a_new_channel_does_not_inherit_the_failure_of_another(kind: Kind, free_port: int) -> None:
    """The server is up: the new channel's first call passes, though another one waits before it tries again."""
    async with (
        waits_to_reconnect(free_port),
        Backend(port=free_port),
        channel_for(f"127.0.0.1:{free_port}", connection=PATIENT) as channel,
    ):
        assert await kind.run(channel) == kind.echo()


async def test_nor_does_one_that_wakes_up(free_port: int) -> None:
    """It slept without calls while another one failed to connect."""
    address = f"127.0.0.1:{free_port}"
    sleepy = lb.Connection(backoff_s=60, max_backoff_s=60, idle_s=0.05)
    async with channel_for(address, connection=sleepy) as channel:
        async with Backend(port=free_port):
            assert await UU.run(channel) == UU.echo()
            await eventually(lambda: channel.snapshot().endpoints[0].connectivity == "IDLE", "it is asleep")
        async with waits_to_reconnect(free_port), Backend(port=free_port):
            assert await UU.run(channel) == UU.echo()


async def test_channels_with_equal_arguments_share_a_connection() -> None:
    """As grpcio's do: many channels of a process to one server are one connection there."""
    async with http2.raw(answer) as peer, contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            channel = await stack.enter_async_context(channel_for(peer.address))
            assert await UU.run(channel) == [b""]
        assert len(peer.connections) == 1


@pytest.mark.parametrize("health", [None, ""])
@pytest.mark.parametrize("end", [close, goaway, abort])
async def test_connections_that_end_at_once_are_made_at_a_pace(
    end: Callable[[http2.Connection], object], health: str | None
) -> None:
    """Each pause is twice the last one up to the longest, give or take a fifth (and the first may be missed)."""
    pauses = (0.05, 0.1, 0.2, 0.2, 0.2, 0.2)
    async with http2.raw(answer, end) as peer, channel_for(peer.address, connection=PACE, health=health) as channel:
        channel.get_state(try_to_connect=True)
        await eventually(lambda: peer.connections, "the first connection")
        since = time.monotonic()
        await eventually(lambda: len(peer.connections) > len(pauses), "as many more")
        assert time.monotonic() - since > 0.6 * sum(pauses)


@pytest.mark.parametrize("kind", [UU, SS], ids=str)
async def test_calls_are_told_that_connections_end_at_once(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as failing from the second time on, in words; the log has one line."""
    with caplog.at_level(logging.INFO, "lb.channel"):
        async with http2.raw(answer, close) as peer, channel_for(peer.address, connection=PACE) as channel:
            channel.get_state(try_to_connect=True)
            await eventually(lambda: len(peer.connections) > 6, "it was tried again and again")
            said = ""
            while "can be reached" not in said:  # it may meet the connection in the moment that it stands
                said = str((await failure(kind.start(channel, timeout=HANGS_S))).details())
    ends = "its connections end as soon as they are made"
    assert said == f"no endpoint of {channel.snapshot().target} can be reached: {peer.address}: {ends}"
    assert [record.getMessage() for record in caplog.records].count(
        f"{channel.snapshot().target}: {peer.address}: {ends}"
    ) == 1


@pytest.mark.parametrize("end", [close, goaway, abort])
async def test_connections_that_end_at_once_disturb_nobody(
    fleet: Fleet, end: Callable[[http2.Connection], object]
) -> None:
    """Another endpoint answers all calls, also of methods that may not run twice: such a connection is not trusted."""
    (one,) = await fleet(1)
    async with http2.raw(answer, end) as peer, channel_for(one.address, peer.address, connection=PACE) as channel:
        await ready(channel, 1)
        await eventually(lambda: len(peer.connections) > 1, "the first one has ended")
        before = len(peer.connections)
        while len(peer.connections) < before + 3:
            assert await UU.run(channel) == UU.echo()
        assert peer.requests == 0


async def test_a_slow_handshake_succeeds_by_default() -> None:
    """A server under load takes more than a second to greet."""

    def slowly(connection: http2.Connection) -> None:
        asyncio.get_running_loop().call_later(1.3, connection.settings)

    async with http2.raw(answer, slowly) as peer, channel_for(peer.address) as channel:
        assert await UU.run(channel, timeout=HANGS_S) == [b""]
        assert len(peer.connections) == 1


async def test_who_does_not_finish_connecting_delays_nobody(fleet: Fleet, kind: Kind) -> None:
    """One endpoint accepts and never greets; the other has all calls."""
    (one,) = await fleet(1)
    async with (
        http2.raw(answer, lambda connection: None) as peer,
        channel_for(peer.address, one.address) as channel,
    ):
        for _ in range(10):
            assert await kind.run(channel) == kind.echo()
        assert channel.snapshot().endpoints[0].connectivity == "CONNECTING"


@pytest.fixture
def garbage() -> Iterator[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]]:
    """A handler that does not speak HTTP/2."""
    writers = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    yield speak
    for writer in writers:
        writer.close()


async def test_the_reason_of_a_failure_is_kept_current(free_port: int, garbage: Any) -> None:
    """Nobody listened at first; now somebody does who speaks another protocol. Calls and snapshot say that."""

    def why() -> str:
        return str(channel.snapshot().endpoints[0].why)

    async with channel_for(f"127.0.0.1:{free_port}") as channel:
        first = str((await failure(UU.start(channel))).details())
        assert "Connection refused" in first
        server = await asyncio.start_server(garbage, "127.0.0.1", free_port)
        try:
            await eventually(lambda: "Connection refused" not in why(), "there is another reason")
            assert "transient failure: " in why()
            said = str((await failure(UU.start(channel))).details())
            assert said.rpartition("reached: ")[2].removeprefix(f"127.0.0.1:{free_port}: ") in why()
        finally:
            server.close()
            await server.wait_closed()
