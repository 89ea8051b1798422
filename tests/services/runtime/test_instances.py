"""Several instances of a service, a process each, under one supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from lb.testing import Agent
from tests.support.process import alive
from tests.support.wait import eventually, until


def environment(agent: Agent, data: Path, **variables: str) -> dict[str, str]:
    """What the processes read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    return {**kept, "CONSUL_HTTP_ADDR": agent.url, "MESH_DATA": str(data), "MESH_DRAIN_WAIT_S": "0.1", **variables}


@contextlib.asynccontextmanager
async def parent(*arguments: str, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process that supervises; killed at the end if it runs still, upon which its children end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.catalog", *arguments, env=env, stderr=asyncio.subprocess.PIPE
    )
    reading = asyncio.create_task(process.communicate())
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await reading


async def registered(agent: Agent) -> dict[str, int]:
    """The instances that a client would see, by id, and their processes."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{agent.url}/v1/health/service/catalog?passing=1")
    return {each["Service"]["ID"]: int(each["Service"]["Meta"]["pid"]) for each in answer.json()}


async def seen(agent: Agent, wanted: Callable[[dict[str, int]], bool], what: str) -> dict[str, int]:
    """The instances, once they are as ``wanted``."""
    found: dict[str, int] = {}

    async def look() -> bool:
        nonlocal found
        found = await registered(agent)
        return wanted(found)

    await until(look, within_s=90, what=what)
    return found


async def test_one_that_dies_comes_back_and_sigterm_drains_all(agent: Agent, tmp_path: Path) -> None:
    """Each is registered; who is killed is replaced by a new process, and the dead one leaves; then none is left."""
    async with parent("--instances", "2", env=environment(agent, tmp_path)) as process:
        first = await seen(agent, lambda found: len(found) == 2, "two are registered")
        dead_id, dead = next(iter(first.items()))
        os.kill(dead, signal.SIGKILL)
        later = await seen(agent, lambda found: len(found) == 2 and dead_id not in found, "another is registered")
        assert set(first.values()) & set(later.values()) == set(first.values()) - {dead}
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        assert await registered(agent) == {}
        assert not [pid for pid in (*first.values(), *later.values()) if alive(pid)]


async def test_the_end_of_the_parent_drains_all(agent: Agent, tmp_path: Path) -> None:
    """The ids are numbered after the one that is set; kill -9 of the parent leaves no process and no registration."""
    env = environment(agent, tmp_path, MESH_INSTANCES="2", MESH_INSTANCE_ID="shelf")
    async with parent(env=env) as process:
        found = await seen(agent, lambda found: len(found) == 2, "two are registered")
        assert set(found) == {"shelf-1", "shelf-2"}
        process.kill()
        await eventually(lambda: not any(alive(pid) for pid in found.values()), "the children ended", within_s=60)
        assert await registered(agent) == {}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"MESH_INSTANCES": "0"}, "MESH_INSTANCES"),
        ({"MESH_INSTANCES": "many"}, "MESH_INSTANCES"),
        ({"MESH_INSTANCES": "2", "MESH_LISTEN": "127.0.0.1:50051"}, "MESH_LISTEN"),
        ({"MESH_INSTANCES": "2", "MESH_ADVERTISE": "127.0.0.1:50051"}, "MESH_ADVERTISE"),
        ({"MESH_INSTANCES": "2", "MESH_LISTEN": "203.0.113.1:0"}, "MESH_LISTEN"),
    ],
)
async def test_a_bad_setting_ends_it(agent: Agent, tmp_path: Path, variables: dict[str, str], named: str) -> None:
    """Exit status 2 and a line that names the setting, also where only the processes can find it out."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.catalog", env=environment(agent, tmp_path, **variables),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        _, told = await process.communicate()
    assert process.returncode == 2, told
    assert named in told.decode()
