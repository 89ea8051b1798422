"""A server of raw HTTP/2 frames (RFC 9113) that does exactly what a test says, and nothing of gRPC's by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.support.doors import stop_accepting

_PREFACE = 24
_FRAME_HEADER = 9
ALL_STREAMS = 2**31 - 1

Pairs = Iterable[tuple[str, str]]


class Connection:
    """One client's connection. Its methods send a frame each; ``number`` counts connections from 1."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.streams: list[int] = []
        """Of the requests that came to their end, in order."""
        self._writer = writer
        self._encoder = Encoder()

    def send(self, *frames: Frame) -> None:
        """These frames, in one segment."""
        self._writer.write(b"".join(frame.serialize() for frame in frames))

    def settings(self, streams: int | None = None) -> None:
        """SETTINGS, with a limit on streams if one is given."""
        self.send(settings(streams))

    def goaway(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR, words: str = "bye") -> None:
        """Streams above ``last`` were not looked at."""
        self.send(goaway(last, code, words))

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """RST_STREAM."""
        self.send(RstStreamFrame(stream, error_code=code))

    def headers(self, stream: int) -> None:
        """The headers of a gRPC response."""
        self._headers(stream, (":status", "200"), ("content-type", "application/grpc"))

    def trailers(self, stream: int, status: int, words: str = "") -> None:
        """A response that is nothing but its trailers."""
        self._headers(
            stream,
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", str(status)),
            ("grpc-message", words),
            end=True,
        )

    def end(self, stream: int, status: int, words: str = "") -> None:
        """The trailers that follow headers."""
        self._headers(stream, ("grpc-status", str(status)), ("grpc-message", words), end=True)

    def answer(self, stream: int, message: bytes) -> None:
        """A whole response of one message."""
        self.headers(stream)
        self.send(DataFrame(stream, b"\x00" + len(message).to_bytes(4, "big") + message))
        self.end(stream, 0)

    def close(self) -> None:
        """End it, after what was sent."""
        self._writer.close()

    def abort(self) -> None:
        """Cut it off."""
        self._writer.transport.abort()

    def _headers(self, stream: int, *pairs: tuple[str, str], end: bool = False) -> None:
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        self.send(HeadersFrame(stream, self._encoder.encode(pairs), flags=flags))


def settings(streams: int | None = None) -> SettingsFrame:
    """SETTINGS, with a limit on streams if one is given."""
    return SettingsFrame(settings={} if streams is None else {SettingCodes.MAX_CONCURRENT_STREAMS: streams})


def goaway(last: int, code: ErrorCodes = ErrorCodes.NO_ERROR, words: str = "bye") -> GoAwayFrame:
    """Streams above ``last`` were not looked at."""
    return GoAwayFrame(last_stream_id=last, error_code=code, additional_data=words.encode())


def greet(connection: Connection) -> None:
    """Begin as servers do."""
    connection.settings()


@dataclass
class Peer:
    """The server: where it listens, and who has come."""

    address: str = ""
    connections: list[Connection] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests came to their end."""
        return sum(len(connection.streams) for connection in self.connections)


Answer = Callable[[Connection, int], object]
"""Called at the end of each request, with its stream."""


@asynccontextmanager
async def raw(answer: Answer, hello: Callable[[Connection], object] = greet) -> AsyncIterator[Peer]:
    """A server that calls ``hello`` for each connection (after its preface) and ``answer`` for each request."""
    peer = Peer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        connection = Connection(len(peer.connections) + 1, writer)
        peer.connections.append(connection)
        try:
            await reader.readexactly(_PREFACE)
            hello(connection)
            while True:
                frame, length = Frame.parse_frame_header(memoryview(await reader.readexactly(_FRAME_HEADER)))
                frame.parse_body(memoryview(await reader.readexactly(length)))
                if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                    connection.send(SettingsFrame(flags=["ACK"]))
                elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                    connection.send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
                elif isinstance(frame, DataFrame) and "END_STREAM" in frame.flags:
                    connection.streams.append(frame.stream_id)
                    answer(connection, frame.stream_id)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        peer.address = f"{host}:{port}"
        yield peer
    finally:
        await stop_accepting(server)
        server.close()
        for connection in peer.connections:
            connection.abort()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)  # a transport lets go of its socket one turn after its end


class Narrow:
    """A raw server that takes ``limit`` streams of a connection at once, and refuses what is beyond."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused = 0
        self.open: list[tuple[Connection, int]] = []

    def __call__(self, connection: Connection, stream: int) -> None:
        """Take it or refuse it."""
        if sum(where is connection for where, _ in self.open) >= self.limit:
            self.refused += 1
            connection.reset(stream, ErrorCodes.REFUSED_STREAM)
        else:
            self.open.append((connection, stream))

    def answer(self, count: int = 1) -> None:
        """Answer the oldest of the streams that it took."""
        for connection, stream in [self.open.pop(0) for _ in range(count)]:
            connection.answer(stream, b"done")
