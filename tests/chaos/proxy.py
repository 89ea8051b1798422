"""A TCP proxy that breaks connections as it is told, in a process of its own: ``python -m tests.chaos.proxy``.

It prints its port. Each line of standard input is a JSON object with a ``mode``:

=========  ==============================================================================
`pass`     bytes go through
`refuse`   nobody listens any more; connections that stand are closed
`hole`     bytes vanish in both directions, of old connections and of new ones, and nobody is told
`reset`    connections that stand are reset (RST), once; new ones pass
`hang up`  connections that stand are closed; new ones are, after the first bytes of the server
=========  ==============================================================================

A connection that lost bytes in the hole is reset when bytes pass again: it could only carry nonsense.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
from typing import Any

from tests.chaos.child import commands, say

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


class Pipe:
    """One connection of a client, and the one to the server behind."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self._ends = (client, server)
        self.lossy = False

    def close(self, *, reset: bool) -> None:
        """End both, with RST or in order."""
        for end in self._ends:
            if reset:
                with contextlib.suppress(OSError):
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()
            else:
                end.close()


class Proxy:
    """The proxy. ``port`` 0 takes a free one, and keeps it."""

    def __init__(self, to: str, port: int) -> None:
        self._host, _, behind = to.rpartition(":")
        self._behind = int(behind)
        self.port = port
        self._mode = "pass"
        self._taken = 0
        self._pipes: set[Pipe] = set()
        self.server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Open the port."""
        self.server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def obey(self, wishes: dict[str, Any]) -> dict[str, int]:
        """Change the mode; returns how many connections stood, and how many were taken so far."""
        mode = wishes["mode"]
        stood = len(self._pipes)
        if mode == "reset":
            self._close_pipes(reset=True)
        elif mode == "refuse":
            if self.server is not None:
                self.server.close()
                self.server = None
            self._close_pipes(reset=False)
        elif mode == "hang up":
            self._close_pipes(reset=False)
        elif mode == "pass":
            self._close_pipes(reset=True, lossy_only=True)
            if self.server is None:
                task = asyncio.ensure_future(self.listen())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._mode = "pass" if mode == "reset" else mode
        return {"stood": stood, "taken": self._taken}

    def _close_pipes(self, *, reset: bool, lossy_only: bool = False) -> None:
        for pipe in tuple(self._pipes):
            if pipe.lossy or not lossy_only:
                pipe.close(reset=reset)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken += 1
        try:
            there, here = await asyncio.open_connection(self._host, self._behind)
        except OSError:
            writer.transport.abort()
            return
        pipe = Pipe(writer, here)
        pipe.lossy = self._mode == "hole"
        self._pipes.add(pipe)
        try:
            await asyncio.gather(self._pump(pipe, reader, here), self._pump(pipe, there, writer))
        finally:
            self._pipes.discard(pipe)
            pipe.close(reset=False)

    async def _pump(self, pipe: Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._mode == "hole" or pipe.lossy:
                    pipe.lossy = True
                    continue
                writer.write(data)
                await writer.drain()
                if self._mode == "hang up" and writer is pipe.client:
                    break
        if not pipe.lossy:  # nobody hears of an end in the hole, either
            writer.close()


async def run(arguments: argparse.Namespace) -> None:
    """Until standard input ends."""
    proxy = Proxy(arguments.to, arguments.port)
    await proxy.listen()
    say(proxy.port)
    await commands(proxy.obey)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="tests.chaos.proxy")
    parser.add_argument("--to", required=True, help="host:port of the server behind")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
