"""The rig: processes to break, a channel over them, and everything ended when the block is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import lb
from tests.chaos.load import Caller, Load, in_loop, in_threads
from tests.chaos.server import METHODS
from tests.support import consul, servers

ROOT = Path(__file__).resolve().parents[2]
IN_FLIGHT = 64
LATENCY_S = 0.02
"""What an answer takes in a healthy server, on average."""
ATTEMPT_TIMEOUT_S = 0.5

_START_S = 60.0
_OBEY_S = 30.0


class Process:
    """A process of the rig, started and spoken to by lines. ``address`` is where it listens, ``id`` its name."""

    def __init__(self, name: str, module: str, *arguments: object) -> None:
        self.id = name
        self.port = 0
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> lb.Endpoint:
        """As a resolver names it."""
        return lb.Endpoint(self.address, id=self.id)

    async def start(self) -> Self:
        """Start it; returns once it listens. Raises ``RuntimeError`` when it does not."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            *(("--port", str(self.port)) if self.port else ()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        )
        try:
            self.port = int(await self._line(_START_S))
        except (TimeoutError, ValueError) as error:
            raise RuntimeError(f"{self.id} did not start: {' '.join(self._command)}") from error
        return self

    async def tell(self, **wishes: Any) -> dict[str, int]:
        """Change how it behaves from the next call on; returns its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(wishes).encode() + b"\n")
            answer: dict[str, int] = json.loads(await self._line(_OBEY_S))
            return answer

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, whatever state it is in."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Wait until it is gone; returns its exit status."""
        assert self._process is not None
        async with asyncio.timeout(_START_S):
            return await self._process.wait()

    async def stop(self) -> None:
        """Be sure that it is gone."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            await self.kill()
        if process.stdin is not None:
            process.stdin.close()

    async def _line(self, within_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(within_s):
            return await self._process.stdout.readline()

    def __repr__(self) -> str:
        return f"<{self.id} at {self.address}>"


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
        self._threads = self.enter_context(ThreadPoolExecutor(in_flight + 2)) if threads else None
        self._retry = lb.Retry(idempotent=METHODS, attempt_timeout=attempt_timeout_s)
        self._in_flight = in_flight
        self._real_consul = real_consul

    async def _started(self, processes: list[Process]) -> None:
        for process in processes:
            self.push_async_callback(process.stop)
        await asyncio.gather(*(process.start() for process in processes))

    async def servers(self, names: str, *arguments: object, latency_s: float = LATENCY_S) -> list[Process]:
        """A server for each letter of ``names``, all with these arguments (of `tests.chaos.server`)."""
        found = [
            Process(name, "tests.chaos.server", "--latency", latency_s, "--id", name, *arguments) for name in names
        ]
        await self._started(found)
        return found

    async def proxy(self, to: Process) -> Process:
        """A proxy in front of a server, with the server's name."""
        proxy = Process(to.id, "tests.chaos.proxy", "--to", to.address)
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

    def load(self, channel: Any) -> Load:
        """Calls on a channel, as many in flight as this rig has them."""
        return Load(self.caller(channel), self._in_flight)
