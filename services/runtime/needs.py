"""The services that a service calls: at its start it waits until it has seen each of them once.

Who takes calls before that fails them, and has to undo what it has begun. Afterwards nobody waits: a service that goes
away later is an error of the calls to it.
"""

from __future__ import annotations

import asyncio

import grpc

# Services start together, and a process that starts is not worth a word. Whoever waits longer says for whom.
PATIENCE_S = 10.0


class Needs:
    """The services that one instance needs, each by the channel to it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._looking: dict[str, asyncio.Task[None]] = {}

    def add(self, service: str, channel: grpc.aio.Channel) -> None:
        """Look for an instance of it from now on, until one could be connected to, or until `close`."""
        self._looking[service] = asyncio.create_task(channel.channel_ready(), name=f"seen {service}")

    async def seen(self) -> bool:
        """Whether each was seen; waits a few seconds for it."""
        if self._looking:
            await asyncio.wait(self._looking.values(), timeout=self._patience_s)
        return not self._missing()

    async def check(self) -> None:
        """Raises ``RuntimeError`` while one was never seen."""
        if missing := self._missing():
            raise RuntimeError(f"no instance of {', '.join(missing)} yet")

    async def close(self) -> None:
        """Look no more."""
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)

    def _missing(self) -> list[str]:
        return [service for service, task in self._looking.items() if not task.done()]

    def __repr__(self) -> str:
        return f"<Needs {list(self._looking)}, never seen: {self._missing()}>"
