"""A service as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lb.server import Server
from lb.testing import Agent
from tests.support.consul import Proxy


@dataclass
class Running:
    """A service in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    lines: list[dict[str, Any]]
    """What it has logged; complete once it has ended."""
    supervisor_fd: int

    async def ended(self, within_s: float = 60) -> int:
        """Its exit status."""
        async with asyncio.timeout(within_s):
            status = await self.process.wait()
        assert self.process.stderr is not None
        self.lines += [json.loads(line) for line in (await self.process.stderr.read()).splitlines()]
        return status

    @property
    def events(self) -> list[str]:
        """What it has logged, in words."""
        return [line["event"] for line in self.lines]


@contextlib.asynccontextmanager
async def running(
    name: str, agent: Agent | Proxy, data: Path, *, ready: bool = True, **variables: str
) -> AsyncIterator[Running]:
    """Start a service as a process and wait until it is ready."""
    reading, writing = os.pipe()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    environment |= {"CONSUL_HTTP_ADDR": agent.url, "MESH_DATA": str(data), "MESH_INSTANCE_ID": f"{name}-1"}
    environment |= {"MESH_PARENT_FD": str(reading), **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{name}",
        env=environment, stderr=asyncio.subprocess.PIPE, pass_fds=[reading],
    )  # fmt: skip
    os.close(reading)
    made = Running(process, "", [], writing)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(90):
            while ready and not made.address:
                line = await process.stderr.readline()
                assert line, made.lines
                made.lines.append(json.loads(line))
                if made.lines[-1]["event"] == "ready":
                    made.address = made.lines[-1]["address"]
        yield made
    finally:
        if made.supervisor_fd >= 0:
            os.close(made.supervisor_fd)
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def nobody(agent: Agent, *names: str) -> AsyncIterator[None]:
    """Servers in this process that are registered as these services, and do nothing: who calls them waits for them."""
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            server = Server(name, register={"consul": agent.address}, drain_wait_s=0)
            await (await stack.enter_async_context(server)).start()
        yield


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)
