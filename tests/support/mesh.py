"""The whole mesh as ``make demo`` starts it, in processes of its own, for the end-to-end tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support import servers
from tests.support.ports import free_ports
from tests.support.wait import until

START_S = 120.0
STOP_S = 60.0
INSTANCES = {"catalog": 3, "inventory": 2, "payments": 2, "orders": 2}
IN_AN_ORDER = {"catalog", "inventory", "payments", "orders"}
"""The services that take part in an order."""
_READY = re.compile(r"^ready (http://\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Mesh:
    """A running mesh, spoken to by HTTP as anybody would. ``pid`` is the supervisor's, ``output`` what it printed."""

    url: str
    pid: int
    output: Path
    client: httpx2.AsyncClient

    async def order(self, sku: str, quantity: int = 1) -> httpx2.Response:
        """Place an order; the answer, whatever it is."""
        body = {"items": [{"sku": sku, "quantity": quantity}]}
        return await self.client.post(f"{self.url}/api/orders", json=body)

    async def products(self) -> list[dict[str, Any]]:
        """What the catalog offers, with stock."""
        answer = await self.client.get(f"{self.url}/api/products")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["products"]
        return found

    async def best_stocked(self) -> str:
        """The sku of which there is most."""
        sku: str = max(await self.products(), key=lambda product: product["stock"])["sku"]
        return sku

    async def instances(self, service: str) -> list[dict[str, Any]]:
        """The instances of a service as ``/api/mesh`` shows them."""
        answer = await self.client.get(f"{self.url}/api/mesh")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["services"][service]["instances"]
        return found

    async def whole(self) -> bool:
        """Whether every instance of every service is passing."""
        answer = await self.client.get(f"{self.url}/api/mesh")
        if answer.status_code != 200:
            return False
        services = answer.json()["services"]
        return all(
            sum(each["health"] == "passing" for each in services.get(name, {"instances": []})["instances"]) == count
            for name, count in INSTANCES.items()
        )

    def last_words(self, lines: int = 30) -> str:
        """The end of what it printed, for a failing test's message."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


@contextlib.asynccontextmanager
async def running(output: Path, *, order_rate: float = 1.0, **environment: str) -> AsyncIterator[Mesh]:
    """Start the demo and wait until it says that it is ready; at the end stop it and see that it obeys."""
    with free_ports(1) as (port,):
        pass
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
    env |= {"MESH_PORT": str(port), "MESH_ORDER_RATE": f"{order_rate:g}", **environment}
    with output.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.demo", cwd=servers.ROOT, env=env, stdout=sink, stderr=subprocess.STDOUT
        )
    try:

        async def ready() -> str:
            if process.returncode is not None:
                raise RuntimeError(f"the demo ended with status {process.returncode}:\n{output.read_text()}")
            found = _READY.search(output.read_text(errors="replace"))
            return found[1] if found else ""

        try:
            url = await until(ready, within_s=START_S, what="the demo says that it is ready")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it printed:\n{output.read_text(errors='replace')}") from None
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as client:
            mesh = Mesh(url, process.pid, output, client)
            await until(mesh.whole, within_s=START_S, what="every instance is passing", every_s=0.2)
            yield mesh
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"the demo did not end within {STOP_S:g} s of SIGTERM") from None
