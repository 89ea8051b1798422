"""The shop's own services, restarted one after another under load."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import lb
from lb.testing import Agent
from mesh.catalog.v1 import CatalogStub, GetProductRequest
from tests.services.processes import running
from tests.support.wait import until

pytestmark = pytest.mark.alone

ANY_NUMBER: dict[str, Any] = {"MESH_CONCURRENCY": "0", "MESH_RATE": "0"}
"""Nothing is refused because there is too much of it: callers that never pause ask for more than an instance can do.

There is room for all of them in its queue, but on a busy machine one waits there for longer than the 0.1 s it may.
"""

IN_FLIGHT = 16


async def test_a_graceful_restart_needs_no_retry(tmp_path: Path) -> None:
    """Both instances of the catalog are replaced; with retries off no call fails, and each has one attempt."""
    tries: list[int] = []
    answered: set[str] = set()
    stop = False

    async def work(stub: Any) -> None:
        while not stop:
            call = stub.GetProduct(GetProductRequest(sku="moka-3"), timeout=60)
            await call
            attempts = lb.attempts(call)
            tries.append(len(attempts))
            answered.add(attempts[-1].endpoint_id)

    async def answer(*ids: str) -> None:
        async def known() -> bool:
            return answered.issuperset(ids)

        await until(known, within_s=60, what=f"{ids} answer")

    async def replace(old: Any, successor: str) -> None:
        old.process.send_signal(signal.SIGTERM)
        assert await old.ended(within_s=60) == 0
        await stack.enter_async_context(running("catalog", agent, tmp_path, MESH_INSTANCE_ID=successor, **ANY_NUMBER))
        await answer(successor)

    async with Agent() as agent, AsyncExitStack() as stack:
        old = [
            await stack.enter_async_context(
                running("catalog", agent, tmp_path, MESH_INSTANCE_ID=f"old-{n}", MESH_DRAIN_WAIT_S="3", **ANY_NUMBER)
            )
            for n in (1, 2)
        ]
        target = f"consul://{agent.address}/catalog"
        async with lb.aio.channel(target, retry=lb.Retry(enabled=False)) as channel, asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work(CatalogStub(channel)))
            await answer("old-1", "old-2")
            for number, instance in enumerate(old, 1):
                await replace(instance, f"new-{number}")
            stop = True
        assert set(tries) == {1}
