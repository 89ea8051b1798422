"""One test body for channels of asyncio and of threads, on the same backends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

import lb
from lb.testing import Backend
from tests.aio import kit
from tests.support import calls
from tests.sync import kit as sync_kit


async def connected(channel: Any, count: int) -> None:
    """Wait until so many endpoints are."""
    await kit.eventually(lambda: calls.connected(channel) >= count, f"{count} endpoints are connected")


def port_of(backend: Backend) -> str:
    """Its port."""
    return backend.address.rpartition(":")[2]


class Shell:
    """One of the two kinds of channel."""

    def __init__(self, name: str) -> None:
        self.name = name
        kinds: Any = kit.KINDS if name == "aio" else sync_kit.KINDS
        self._kinds = {kind.name: kind for kind in kinds}

    @contextlib.asynccontextmanager
    async def open(self, target: Any, **settings: Any) -> AsyncIterator[Any]:
        """A channel; a breaker only where the test gives one."""
        settings.setdefault("breaker", False)
        if self.name == "aio":
            async with lb.aio.channel(target, **settings) as channel:
                yield channel
        else:
            with lb.sync.channel(target, **settings) as channel:
                yield channel

    async def call(self, channel: Any, times: int = 1, *, kind: str = "unary_unary", **options: Any) -> None:
        """So many calls, one after the other."""
        for _ in range(times):
            await self.start(channel, kind=kind, **{"timeout": kit.HANGS_S, **options})

    async def start(
        self, channel: Any, *, kind: str = "unary_unary", requests: Sequence[bytes] = kit.REQUESTS, **options: Any
    ) -> None:
        """One call, with these arguments alone."""
        made = self._kinds[kind]
        if self.name == "aio":
            answers = await made.run(channel, requests, **options)
        else:
            answers = await asyncio.to_thread(made.run, channel, requests, **options)
        assert answers == made.echo(requests)

    async def ready(self, channel: Any, count: int) -> None:
        """Wait until so many endpoints are connected."""
        if self.name == "aio":
            channel.get_state(try_to_connect=True)
        else:
            await asyncio.to_thread(grpc.channel_ready_future(channel).result, kit.HANGS_S)
        await connected(channel, count)

    async def failure(self, channel: Any, **options: Any) -> Any:
        """The error of a call."""
        with pytest.raises(grpc.RpcError) as raised:
            await self.start(channel, **options)
        return raised.value

    def __str__(self) -> str:
        return self.name


@pytest.fixture(params=[Shell("aio"), Shell("sync")], ids=str)
def shell(request: pytest.FixtureRequest) -> Shell:
    """Channels of asyncio, and of threads."""
    found: Shell = request.param
    return found
