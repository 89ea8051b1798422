"""Servers in processes of their own: they print their port, then do as each line of their standard input says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

import lb
from tests.support import servers

_START_S = 60.0
_OBEY_S = 30.0


def with_lb() -> dict[str, str]:
    """The environment of a program that imports this tree's `lb`, wherever it runs and whether that is installed."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(servers.ROOT), os.environ.get("PYTHONPATH")))),
    }


class Process:
    """A server in a process of its own, spoken to by lines. ``address`` is where it listens, ``id`` its name."""

    def __init__(self, name: str, *command: object) -> None:
        self.id = name
        self.port = 0
        self._command = [*map(str, command)]
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
            cwd=servers.ROOT,
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


def python(name: str, module: str, *arguments: object) -> Process:
    """A module of the tests, run by this Python."""
    return Process(name, sys.executable, "-m", module, *arguments)


def gopeer(name: str, *arguments: object) -> Process:
    """The server of ``tools/servers/gopeer``. Its marker says whether it is there."""
    program = servers.find("gopeer")
    assert program is not None, servers.HOW_TO_GET
    return Process(name, program, *arguments)


def alive(pid: int) -> bool:
    """Whether there is such a process (a zombie of somebody else's does not count)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
