"""Where a server is in its life, and what health says of it: SERVING while all that it depends on is well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from lb.server.dependencies import Check, Dependencies

_log = logging.getLogger("lb.server")

State = Literal["made", "not ready", "serving", "draining", "ended"]


class Says(Protocol):
    """A health service."""

    async def say(self, names: Iterable[str], *, serving: bool) -> None:
        """Set the status of each of these."""


class Readiness:
    """Of one server with this name. ``counts`` are the methods that are its own work."""

    def __init__(
        self, name: str, checks: Mapping[str, Check], counts: Callable[[str], bool], health: Says | None
    ) -> None:
        self.state: State = "made"
        self.dependencies = Dependencies(checks)
        self.healthy = asyncio.Event()
        """Set once every check has passed."""
        self.services: list[str] = []
        """What it serves."""
        self._begun = False
        self._name = name
        self._health = health
        self._counts = counts

    def know(self, service: str) -> None:
        """It serves this."""
        if service not in self.services:
            self.services.append(service)

    def begins(self) -> None:
        """It starts. Raises ``RuntimeError`` the second time, or once it was closed: two lives would close each other's
        server.
        """
        if self._begun or self.state == "ended":
            raise RuntimeError(f"server {self._name}: a server starts once; make a new one")
        self._begun = True

    async def open(self) -> None:
        """It listens soon."""
        self.state = "not ready"
        await self._say(serving=False)

    def drains(self, because: str) -> bool:
        """It drains from now on. False: it did already, or nobody could know of it yet."""
        if self.state not in ("serving", "not ready"):
            return False
        why = f": {because}" if because else ""
        if not self.healthy.is_set():
            _log.info("%s: ends before it is ready%s", self._name, why)
            return False
        _log.info("%s: draining%s", self._name, why)
        self.state = "draining"
        return True

    async def watch(self) -> None:
        """Keep health true until it drains."""
        await self.dependencies.watch(self._judge)

    async def _judge(self) -> None:
        if self.state in ("draining", "ended"):
            return
        broken = self.dependencies.tell(self._name)
        state: State = "not ready" if broken else "serving"
        if self.state == state:
            return
        self.state = state
        await self._say(serving=not broken)
        if not broken:
            self.healthy.set()

    async def _say(self, *, serving: bool) -> None:
        if self._health is not None:
            names = ["", *(name for name in self.services if self._counts(f"/{name}/"))]
            await self._health.say(names, serving=serving)

    def __repr__(self) -> str:
        return f"<Readiness {self.state} {self.dependencies!r}>"
