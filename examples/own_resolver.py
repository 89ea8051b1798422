"""A resolver of your own: it reads endpoints from a file, and follows its changes.

::

    python examples/own_resolver.py

It starts the servers that it calls. A resolver is any object with ``start(listener)`` and ``close()``.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import lb
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY


class FileResolver:
    """Endpoints from a text file: one per line, ``host:port`` and a weight if it is not 1."""

    def __init__(self, path: Path, *, every_s: float = 1.0) -> None:
        self.path = path
        self.every_s = every_s
        self.target = f"file {path.name}"  # optional: what messages and snapshots call it
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: lb.Listener) -> None:
        """Called in the channel's event loop, when the channel is first used. It must not block."""
        self._task = asyncio.get_running_loop().create_task(self._watch(listener))

    async def close(self) -> None:
        """Called when the channel closes, even if ``start`` was never called. It may be async or not."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self, listener: lb.Listener) -> None:
        said = None
        while True:
            try:
                endpoints = self._read()
            except (OSError, ValueError) as error:
                listener.error(f"{self.target}: {error}")  # the last endpoints remain in use
            else:
                if endpoints != said:
                    # Always the whole set. Endpoints that remain keep connection, breaker and statistics.
                    listener.update(lb.Resolution(endpoints, note=self.target))
                    said = endpoints
            await asyncio.sleep(self.every_s)

    def _read(self) -> tuple[lb.Endpoint, ...]:
        found = []
        for line in self.path.read_text("utf-8").splitlines():
            if line.strip():
                address, _, weight = line.strip().partition(" ")
                if weight and not weight.isdecimal():
                    raise ValueError(f"{line!r}: expected host:port, and maybe a weight")
                found.append(lb.Endpoint(address, weight=int(weight or 1)))
        return tuple(found)


async def main() -> None:
    """A second endpoint appears in the file while calls run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "endpoints.txt"
        async with Backend("a") as a, Backend("b") as b:
            path.write_text(f"{a.address}\n", "utf-8")
            async with lb.aio.channel(FileResolver(path, every_s=0.05)) as channel:
                echo = channel.unary_unary(UNARY_UNARY)
                await echo(b"hello", timeout=5)
                print(f"a has {len(a.received)} call, b has {len(b.received)}")

                path.write_text(f"{a.address}\n{b.address} 3\n", "utf-8")
                async with asyncio.timeout(10):
                    while not b.received:
                        await echo(b"hello", timeout=5)
                print("b was found")

                path.write_text("no address at all, really\n", "utf-8")
                async with asyncio.timeout(10):
                    while not channel.snapshot().resolver_error:
                        await echo(b"hello", timeout=5)
                print(f"the file is broken: {channel.snapshot().resolver_error}")
                await echo(b"hello", timeout=5)
                print("and calls go on")


if __name__ == "__main__":
    asyncio.run(main())
