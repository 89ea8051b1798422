"""Both sides of a connection between two services agree: pings, and how many calls run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import grpc

import lb
from mesh.catalog.v1 import CatalogStub, GetProductRequest
from services.runtime.connections import CONNECTION, LIMIT, SERVER_OPTIONS, STREAMS
from tests.services.conftest import Shop
from tests.support.doors import stop_accepting
from tests.support.wait import until

PREFACE = 24
SETTINGS, PING, GOAWAY = 0x4, 0x6, 0x7
ACK = 0x1
MAX_CONCURRENT_STREAMS = 0x3


class Wire:
    """A relay before a server that reads the HTTP/2 frames passing through it."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self.address = ""
        self.connections = 0
        self.pings = 0
        self.goaways = 0
        self.streams = 0
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Wire]:
        """Relays from entry on."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await stop_accepting(server)
            server.close()
            for writer in self._writers:
                writer.close()
            await server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream, down = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, down]
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            down.write(await reader.readexactly(PREFACE))
            await asyncio.gather(self._frames(reader, down, True), self._frames(upstream, writer, False))
        writer.close()
        down.close()

    async def _frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_client: bool) -> None:
        while True:
            head = await reader.readexactly(9)
            body = await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            self.pings += from_client and kind == PING and not flags & ACK
            self.goaways += not from_client and kind == GOAWAY
            if not from_client and kind == SETTINGS:
                for at in range(0, len(body), 6):
                    if int.from_bytes(body[at : at + 2], "big") == MAX_CONCURRENT_STREAMS:
                        self.streams = int.from_bytes(body[at + 2 : at + 6], "big")
            writer.write(head + body)
            await writer.drain()


async def test_an_idle_connection_is_pinged_and_stays(shop: Shop) -> None:
    """A server lets its clients ping more often than they do; without that, the third ping ends the connection."""
    instance = await shop.start("catalog")
    # More often than the services do, and with room for a ping that a busy machine sends late.
    often = replace(CONNECTION, keepalive_s=1.5)
    async with (
        Wire(instance.address).running() as wire,
        lb.aio.channel(f"static:///{wire.address}", connection=often, limit=LIMIT) as channel,
    ):
        stub = CatalogStub(channel)
        await stub.GetProduct(GetProductRequest(sku="moka-3"), timeout=60)
        before = wire.pings

        async def pinged() -> bool:
            return wire.pings >= before + 4

        await until(pinged, within_s=60, what="four pings")
        await stub.GetProduct(GetProductRequest(sku="moka-3"), timeout=60)
        assert (wire.connections, wire.goaways) == (1, 0)
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        assert wire.streams == STREAMS


def test_both_sides_agree() -> None:
    """Pings are allowed twice as often as they come; calls in flight stay below the server's streams."""
    allowed = dict(SERVER_OPTIONS)
    asked = dict(CONNECTION.options())
    assert asked["grpc.keepalive_time_ms"] >= 2 * allowed["grpc.http2.min_ping_interval_without_data_ms"]
    assert asked["grpc.keepalive_permit_without_calls"] == allowed["grpc.keepalive_permit_without_calls"] == 1
    assert LIMIT.limit < STREAMS == allowed["grpc.max_concurrent_streams"]
