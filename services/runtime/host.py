"""What a service is given to build itself from, and what it hands back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
from sqlalchemy import MetaData

from services.runtime.channels import Connect
from services.runtime.database import Database, open_database
from services.runtime.needs import Needs
from services.runtime.settings import Settings

Check = Callable[[], Awaitable[None]]
"""Raises when something that the service depends on is not healthy."""


@dataclass(frozen=True)
class Service:
    """A business service, ready to be served.

    ``add`` adds its servicers to a server. ``checks`` are its dependencies by name; while one fails, the instance is
    NOT_SERVING. ``begin`` begins what it does besides answering calls, once the services that it calls were seen.
    """

    add: Callable[[grpc.aio.Server], None]
    checks: Mapping[str, Check] = field(default_factory=dict)
    begin: Callable[[], object] | None = None


@dataclass(frozen=True)
class Host:
    """What surrounds a service: its settings, and ways to what it needs.

    All that is opened here, or entered on ``stack``, is closed in reverse order after the server stopped.
    """

    name: str
    instance_id: str
    settings: Settings
    stack: AsyncExitStack
    connect: Connect
    needs: Needs

    async def channel(self, service: str) -> grpc.aio.Channel:
        """A channel to another service, which this one waits for at its start."""
        channel = await self.stack.enter_async_context(self.connect(service))
        self.needs.add(service, channel)
        return channel

    async def database(self, metadata: MetaData) -> Database:
        """The service's database, with the tables of ``metadata``."""
        database = await open_database(self.name, self.settings, metadata)
        self.stack.push_async_callback(database.close)
        return database


Build = Callable[[Host], Awaitable[Service]]
"""Builds a service. What it starts ends by the host's stack."""
