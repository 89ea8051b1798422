"""The rig: processes to break, a channel over them, and everything ended when the block is left."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import lb
from tests.chaos.load import Caller, Load, in_loop, in_threads
from tests.chaos.server import METHODS
from tests.support import consul, servers
from tests.support.process import Process, gopeer, python

IN_FLIGHT = 64
MOST_IN_FLIGHT = 150
"""What a row may ask for instead."""
LATENCY_S = 0.02
"""What an answer takes in a healthy server, on average."""
ATTEMPT_TIMEOUT_S = 0.5


class Told:
    """A resolver that says what it is told."""

    target = "told"
    authority = ""

    def __init__(self, *members: Process) -> None:
        self._known = lb.Resolution(tuple(member.endpoint for member in members))
        self._listener: lb.Listener | None = None

    def start(self, listener: lb.Listener) -> None:
        """Tell what is known so far."""
        self._listener = listener
        listener.update(self._known)

    def close(self) -> None:
        """Nothing to close."""

    def say(self, *members: Process) -> None:
        """From now on it is these."""
        self._known = lb.Resolution(tuple(member.endpoint for member in members))
        if self._listener is not None:
            self._listener.update(self._known)


class Registry:
    """A Consul that can go away and come back: a real one where there is one, else the embedded agent.

    The embedded agent remembers across `leave`, as a Consul with a disk does; the real one runs with ``-dev`` and
    comes back empty.
    """

    def __init__(self, server: consul.Consul | consul.Embedded) -> None:
        self._server = server
        self.kind = f"{server.kind} Consul"

    @property
    def address(self) -> str:
        """``host:port``."""
        return self._server.address

    async def leave(self) -> None:
        """It is gone, as after a crash."""
        await self._server.kill()

    async def come_back(self) -> None:
        """It listens again."""
        if isinstance(self._server, consul.Embedded):
            await self._server.agent.start()
        else:
            await self._server.start()

    async def forget(self) -> None:
        """It restarts empty."""
        await self._server.forget()

    async def instances(self) -> set[str]:
        """The ids of all that are registered."""
        return await self._server.instances()


class Rig(AsyncExitStack):
    """Starts processes and channels, and ends them all at the block's end."""

    def __init__(
        self,
        *,
        in_flight: int = IN_FLIGHT,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        real_consul: bool = True,
        threads: bool = False,
    ) -> None:
        """``real_consul`` takes a real Consul where there is one; ``threads``: the channels are those of `lb.sync`."""
        super().__init__()
        # One for each call in flight, and for two of a row's own.
        self._threads = self.enter_context(ThreadPoolExecutor(MOST_IN_FLIGHT + 2)) if threads else None
        self._retry = lb.Retry(idempotent=METHODS, attempt_timeout_s=attempt_timeout_s)
        self._in_flight = in_flight
        self._real_consul = real_consul

    async def _started(self, processes: list[Process]) -> None:
        for process in processes:
            self.push_async_callback(process.stop)
        await asyncio.gather(*(process.start() for process in processes))

    async def servers(self, names: str, *arguments: object, latency_s: float = LATENCY_S) -> list[Process]:
        """A server for each letter of ``names``, all with these arguments (of `tests.chaos.server`)."""
        found = [python(name, "tests.chaos.server", "--latency", latency_s, "--id", name, *arguments) for name in names]
        await self._started(found)
        return found

    async def go_servers(self, names: str, *arguments: object, latency_s: float = LATENCY_S) -> list[Process]:
        """The same of grpc-go, with the arguments of ``tools/servers/gopeer``."""
        found = [gopeer(name, "--latency", latency_s, *arguments) for name in names]
        await self._started(found)
        return found

    async def proxy(self, to: Process) -> Process:
        """A proxy in front of a server, with the server's name."""
        proxy = python(to.id, "tests.chaos.proxy", "--to", to.address)
        await self._started([proxy])
        return proxy

    async def registry(self) -> Registry:
        """A registry without anybody in it."""
        real = self._real_consul and servers.find("consul") is not None
        opened = consul.running() if real else consul.embedded()
        return Registry(await self.enter_async_context(opened))

    async def channel(self, target: Any, **settings: Any) -> Any:
        """A channel with the settings of every row, unless others are given; of `lb.sync` in a rig of threads."""
        settings = {"retry": self._retry} | settings
        if self._threads is not None:
            return self.enter_context(lb.sync.channel(target, **settings))
        return await self.enter_async_context(lb.aio.channel(target, **settings))

    def caller(self, channel: Any) -> Caller:
        """Calls on a channel."""
        return in_loop(channel) if self._threads is None else in_threads(channel, self._threads)

    def load(self, channel: Any, in_flight: int = 0) -> Load:
        """Calls on a channel, as many in flight as this rig has them, or as many as are asked for."""
        return Load(self.caller(channel), in_flight or self._in_flight)
