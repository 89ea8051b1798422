"""An HTTP CONNECT proxy that resolves names itself, as in the first case of gRFC A1."""

from __future__ import annotations

import asyncio
import contextlib


class ConnectProxy:
    """Listens on loopback within ``async with``. ``asked`` has what each CONNECT named.

    Args:
        known: the address behind each ``host:port``; others are answered with 502.
    """

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.asked: list[str] = []
        self.headers: list[str] = []
        """Of all requests, as they were sent."""
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ConnectProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            self.headers += headers
            method, name, _ = request.split(" ")
            self.asked.append(name)
            behind = self.known.get(name) if method == "CONNECT" else None
            if behind is None:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                await writer.drain()
                return
            host, _, port = behind.rpartition(":")
            there, to = await asyncio.open_connection(host, int(port))
            with contextlib.closing(to):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                pumps = [asyncio.ensure_future(self._pump(*ends)) for ends in ((reader, to), (there, writer))]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.wait(pumps)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
