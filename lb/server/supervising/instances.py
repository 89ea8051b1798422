"""Several processes of one server, each with a port and a registration of its own, under one supervisor."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence

from lb.server.life import Life, live
from lb.server.listening import BAD_SETTING, Processes
from lb.server.supervising.child import Spec
from lb.server.supervising.cpus import cpus
from lb.server.supervising.supervisor import Supervisor

HOPELESS = frozenset({BAD_SETTING})
"""The exit status of a process that no new start can help: a setting is wrong."""

_CHILD = "LB_INSTANCE"
_PARENT = "MESH_PARENT_FD"


def how_many(count: int | str) -> int:
    """The number of processes. Raises ``ValueError`` for anything but ``auto`` and a number from 1 on."""
    if count == "auto":
        return cpus()
    text = str(count)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1024):
        raise ValueError(f"expected auto or a whole number from 1 to 1024, got {count!r}")
    return int(text)


def instances(count: int | str, argv: Sequence[str] | None = None, *, drain_s: float = 30.0) -> int | None:
    """Run this program as ``count`` processes. Call it first in a program's main.

    In each of them it returns what `Server.serve` takes as ``parent_fd``, by which they drain and end when their
    supervisor is killed; the program goes on with ``await server.serve(parent_fd=...)``, on port 0. The
    process that was started by hand does not return: it starts again whoever dies, and at SIGTERM or Ctrl-C all end at
    the same time. With 1 it returns at once. A `Server` with a fixed port ends all of them: they cannot share it.

    Args:
        count: how many; ``"auto"`` is one for each CPU that this process may use.
        argv: the command of each; by default the command that runs now.
        drain_s: the longest that all of it may take from the signal on, in seconds. Who is left then is killed.

    Raises:
        ValueError: ``count`` is neither ``"auto"`` nor a number from 1 to 1024.
        SystemExit: in the process that supervises, at its end: 0, or 2 when a process ended with status 2.
    """
    try:
        number = how_many(count)
    except ValueError as error:
        raise ValueError(f"count: {error}") from None
    if os.environ.pop(_CHILD, None) is not None or number == 1:
        Processes.count = number
        inherited = os.environ.get(_PARENT)
        return int(inherited) if inherited else None
    command = tuple(argv) if argv is not None else (sys.executable, *sys.orig_argv[1:])
    specs = [Spec(f"instance-{each}", command, {_CHILD: str(each)}, hopeless=HOPELESS) for each in range(1, number + 1)]
    sys.exit(run(lambda say: specs, drain_s=drain_s, parent_fd=None))


def run(specs: Callable[[Callable[[str], None]], Sequence[Spec]], *, drain_s: float, parent_fd: int | None) -> int:
    """Run processes until there is a reason to end. Returns the exit status.

    ``specs`` gets what shows a line of text.
    """

    async def whole() -> int:
        together = Together(specs, drain_s)
        await live(together, parent_fd=parent_fd, leave_s=None)
        return together.status

    return asyncio.run(whole())


class Together(Life):
    """The life of the process that supervises. Made in a running loop; ``status`` is the exit status at its end."""

    def __init__(self, specs: Callable[[Callable[[str], None]], Sequence[Spec]], drain_s: float) -> None:
        self.status = 0
        self._drain_s = drain_s
        self._supervisor = Supervisor()
        self._specs = specs(self._supervisor.say)

    async def start(self) -> None:
        """Start every process."""
        for spec in self._specs:
            await self._supervisor.start(spec)

    async def run(self) -> None:
        """Go on until one ends with what no new start can help."""
        await self._supervisor.hopeless.wait()
        self.status = BAD_SETTING

    async def leave(self, because: str) -> None:
        """End all at the same time; each drains. Their time is this one's, too: who sent the signal waits no longer."""
        await self._supervisor.stop(self._drain_s)

    async def close(self) -> None:
        """Kill who is left."""
        await self._supervisor.stop(0.0)
