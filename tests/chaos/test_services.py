"""The shop's own services, restarted one after another under load."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import lb
from lb.testing import Agent
from mesh.catalog.v1 import CatalogStub, GetProductRequest
from tests.services.test_server import running
from tests.support.wait import until

IN_FLIGHT = 16


async def test_a_graceful_restart_needs_no_retry(tmp_path: Path) -> None:
    """Both instances of the catalog are replaced; with retries off no call fails, and each has one attempt."""
    tries: list[int] = []
    stop = False

    async def work(stub: Any) -> None:
        while not stop:
            call = stub.GetProduct(GetProductRequest(sku="moka-3"), timeout=10)
            await call
            tries.append(len(lb.attempts(call)))

    async def replaced(old: Any, successor: str) -> Any:
        old.process.send_signal(signal.SIGTERM)
        assert await old.ended(within_s=20) == 0
        return await stack.enter_async_context(running("catalog", agent, tmp_path, MESH_INSTANCE_ID=successor))

    async with Agent() as agent, AsyncExitStack() as stack:
        old = [
            await stack.enter_async_context(
                running("catalog", agent, tmp_path, MESH_INSTANCE_ID=f"old-{n}", MESH_DRAIN_WAIT_S="2")
            )
            for n in (1, 2)
        ]
        target = f"consul://{agent.address}/catalog"
        async with lb.aio.channel(target, retry=lb.Retry(enabled=False)) as channel, asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work(CatalogStub(channel)))
            for number, instance in enumerate(old, 1):
                await replaced(instance, f"new-{number}")
            enough = len(tries) + 2 * IN_FLIGHT

            async def answered() -> bool:
                return len(tries) >= enough

            await until(answered, within_s=10, what="the successors answer")
            stop = True
        assert set(tries) == {1}
