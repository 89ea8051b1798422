"""Measure the compose file on a machine with a Docker engine, and print figures.

    .venv/bin/python tools/compose_check.py [--keep]

It builds, starts, scales and breaks the mesh of ``docker-compose.yml`` in a project of its own
(``mesh-check``, ports moved), then removes it: the warm start, the memory of all containers, how
soon instances added by ``--scale`` get traffic once Consul calls them passing, and whether the
mesh heals after each container was killed and started again. Exit status 1 when a promise breaks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "mesh-check"
PORTS = {"MESH_PORT": "18080", "JAEGER_PORT": "18686", "CONSUL_PORT": "18500"}
GATEWAY = f"http://127.0.0.1:{PORTS['MESH_PORT']}"
CONSUL = f"http://127.0.0.1:{PORTS['CONSUL_PORT']}"
JAEGER = f"http://127.0.0.1:{PORTS['JAEGER_PORT']}"
UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MIB = 2**20
REGISTERED = ("catalog", "inventory", "payments", "orders")
SCALE_TO = 5
HEAL_S = 60.0


@dataclass
class Goals:
    """What was promised, and what came of it."""

    missed: list[str] = field(default_factory=list)
    count: int = 0

    def check(self, name: str, met: bool, figures: str) -> None:
        """Print one line and remember it."""
        self.count += 1
        if not met:
            self.missed.append(name)
        print(f"{'ok  ' if met else 'MISS'} {name}: {figures}", flush=True)

    def end(self) -> int:
        """Print the closing line; the exit status."""
        names = f" ({', '.join(self.missed)})" if self.missed else ""
        print(f"goals: {self.count - len(self.missed)} of {self.count} met{names}")
        return 1 if self.missed else 0


async def run(*command: str) -> str:
    """Run a program; its output. Raises ``RuntimeError`` with what it said when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, **PORTS},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{error.decode()[-2000:]}")
    return out.decode()


async def compose(*arguments: str) -> str:
    """``docker compose`` in this script's project."""
    return await run("docker", "compose", "--project-name", PROJECT, *arguments)


@dataclass
class Buyer:
    """Places orders all the time, and knows who served the last ones."""

    client: httpx2.AsyncClient
    placed: int = 0
    failed: list[str] = field(default_factory=list)
    first_served: dict[str, float] = field(default_factory=dict)

    async def order(self) -> bool:
        """One order; True when it went through."""
        body = {"items": [{"sku": self.sku, "quantity": 1}]}
        try:
            answer = await self.client.post(f"{GATEWAY}/api/orders", json=body)
        except httpx2.HTTPError as error:
            self.failed.append(type(error).__name__)
            return False
        if answer.status_code != 201:
            self.failed.append(f"{answer.status_code} {answer.text[:200]}")
            return False
        self.placed += 1
        for instance in answer.json()["served_by"].values():
            self.first_served.setdefault(instance, time.monotonic())
        return True

    async def choose(self) -> None:
        """Find the product with the largest stock."""
        products = (await self.client.get(f"{GATEWAY}/api/products")).json()["products"]
        self.sku = max(products, key=lambda product: product["stock"])["sku"]

    async def keep_buying(self) -> None:
        """Orders one after the other until cancelled."""
        while True:
            await self.order()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def buying(buyer: Buyer, buyers: int = 2) -> AsyncIterator[Buyer]:
    """Keep ``buyers`` at it while the block runs."""
    tasks = [asyncio.create_task(buyer.keep_buying()) for _ in range(buyers)]
    try:
        yield buyer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def passing(client: httpx2.AsyncClient, service: str) -> set[str] | None:
    """The ids of the passing instances, as Consul sees them; None while it does not say."""
    with suppress(httpx2.HTTPError, ValueError):
        answer = await client.get(f"{CONSUL}/v1/health/service/{service}", params={"passing": "1"})
        return {entry["Service"]["ID"] for entry in answer.raise_for_status().json()}
    return None


async def known(client: httpx2.AsyncClient, service: str, within_s: float = HEAL_S) -> set[str]:
    """The same, as soon as Consul says."""
    deadline = time.monotonic() + within_s
    while (ids := await passing(client, service)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Consul did not say for {within_s:g} s which instances of {service} pass")
        await asyncio.sleep(0.1)
    return ids


async def start(goals: Goals) -> None:
    """Build, start once cold, and measure the second start."""
    began = time.monotonic()
    await compose("up", "--build", "--wait")
    print(f"     first start with build: {time.monotonic() - began:.1f} s")
    await compose("down")
    began = time.monotonic()
    await compose("up", "--build", "--wait")
    took = time.monotonic() - began
    goals.check("warm start", took <= 20, f"{took:.1f} s (at most 20)")


async def memory(goals: Goals, buyer: Buyer) -> None:
    """The memory of all containers after half a minute of orders."""
    async with buying(buyer):
        await asyncio.sleep(30)
        names = (await compose("ps", "-q")).split()
        lines = (await run("docker", "stats", "--no-stream", "--format", "json", *names)).splitlines()
    total = 0.0
    rows: list[tuple[float, str]] = []
    for line in lines:
        row: dict[str, str] = json.loads(line)
        number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]+)", row["MemUsage"].split("/")[0].strip()).groups()  # type: ignore[union-attr]
        size = float(number) * UNITS[unit.upper()]
        total += size
        rows.append((size, row["Name"].removeprefix(f"{PROJECT}-")))
    for size, name in sorted(rows, reverse=True):
        print(f"     {name:14} {size / MIB:6.1f} MiB")
    goals.check("memory", total <= 1e9, f"{total / 1e6:.0f} MB in {len(rows)} containers (at most 1,000)")


async def scale(goals: Goals, buyer: Buyer) -> None:
    """From passing to the first call, for each instance that ``--scale`` adds."""
    before = await known(buyer.client, "catalog")
    failed = len(buyer.failed)
    async with buying(buyer, 4):
        growing = asyncio.create_task(compose("up", "--scale", f"catalog={SCALE_TO}", "--no-recreate", "-d"))
        seen: dict[str, float] = {}
        deadline = time.monotonic() + HEAL_S
        while time.monotonic() < deadline:
            for instance in (await passing(buyer.client, "catalog") or set()) - before:
                seen.setdefault(instance, time.monotonic())
            if len(seen) == SCALE_TO - 1 and seen.keys() <= buyer.first_served.keys():
                break
            await asyncio.sleep(0.05)
        await growing
    delays = sorted(buyer.first_served.get(instance, float("inf")) - at for instance, at in seen.items())
    figures = ", ".join(f"{delay:.2f}" for delay in delays)
    new_failures = buyer.failed[failed:]
    goals.check(
        "scale",
        len(delays) == SCALE_TO - 1 and delays[-1] <= 2 and not new_failures,
        f"{len(delays)} new instances, from passing to the first call [{figures}] s (at most 2), "
        f"{len(new_failures)} failed orders {new_failures[:3]}",
    )
    await compose("up", "--scale", "catalog=1", "--no-recreate", "-d")
    # What left must be out of Consul before anything else is counted.
    await _until(lambda: _is(buyer, len(before)))


async def break_each(goals: Goals, buyer: Buyer) -> None:
    """Kill each container, let it be away until Consul noticed, start it again: does the mesh heal?"""
    rows = [json.loads(line) for line in (await compose("ps", "--format", "json")).splitlines()]
    whole = {name: len(await known(buyer.client, name)) for name in REGISTERED}
    for name, service, container in sorted((row["Name"], row["Service"].split("-")[0], row["ID"]) for row in rows):
        short = name.removeprefix(f"{PROJECT}-")
        failed = len(buyer.failed)
        async with buying(buyer):
            kill = partial(run, "docker", "kill", name)
            noticed_s: float | None = 5
            if service in whole:
                noticed_s = await noticed_after(buyer.client, service, container, kill)
                words = "Consul never noticed" if noticed_s is None else f"Consul noticed within {noticed_s:.1f} s"
            else:
                await kill()
                words = "away for 5 s"
                await asyncio.sleep(5)
            await run("docker", "start", name)
            back = time.monotonic()
            healed = await _until(lambda: _whole(buyer, whole))
            words += f", whole {healed - back:.1f} s after its start" if healed else ", never whole again"
        away = buyer.failed[failed:]
        kinds = {each[:60]: away.count(each) for each in away}
        # Who buys at the gateway sees it go; nothing else may show.
        fine = healed is not None and noticed_s is not None and (service == "gateway" or not away)
        goals.check(f"{short} away and back", fine, f"{words}; orders that failed meanwhile: {kinds or 0}")


async def noticed_after(
    client: httpx2.AsyncClient,
    service: str,
    container: str,
    kill: Callable[[], Awaitable[object]],
    within_s: float = HEAL_S,
) -> float | None:
    """Seconds until Consul calls the container's instance passing no more; None if it does not, or never did.

    They count from before the kill, which takes its time: the container may be dead long before the command ends.
    """
    # An instance's id has the hostname, which is the beginning of the container's id; outside of compose a pid follows.
    begins = f"{service}-{container[:12]}"

    async def passes(wanted: bool) -> bool:
        ids = await passing(client, service)
        return ids is not None and any(id.startswith(begins) for id in ids) is wanted

    if await _until(partial(passes, True), within_s) is None:
        return None
    began = time.monotonic()
    await kill()
    gone = await _until(partial(passes, False), within_s)
    return None if gone is None else gone - began


async def _until(ask: Callable[[], Awaitable[bool]], within_s: float = HEAL_S) -> float | None:
    """When the answer True had come; None past the time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if await ask():
            return time.monotonic()
        await asyncio.sleep(0.1)
    return None


async def _is(buyer: Buyer, count: int) -> bool:
    ids = await passing(buyer.client, "catalog")
    return ids is not None and len(ids) == count


async def _whole(buyer: Buyer, whole: dict[str, int]) -> bool:
    """All instances are passing, and ten orders in a row go through."""
    for name, count in whole.items():
        if len(await passing(buyer.client, name) or ()) < count:
            return False
    return all([await buyer.order() for _ in range(10)])


async def traced(goals: Goals, buyer: Buyer) -> None:
    """An order's trace is in Jaeger, with the spans of all five services."""
    body = {"items": [{"sku": buyer.sku, "quantity": 1}]}
    order: dict[str, Any] = (await buyer.client.post(f"{GATEWAY}/api/orders", json=body)).json()
    wanted = {"gateway", "orders", "catalog", "inventory", "payments"}
    found: set[str] = set()
    deadline = time.monotonic() + 15
    while not wanted <= found and time.monotonic() < deadline:
        answer = await buyer.client.get(f"{JAEGER}/api/traces/{order['trace_id']}")
        for trace in answer.json()["data"] or []:
            found = {process["serviceName"] for process in trace["processes"].values()}
        await asyncio.sleep(0.1)
    goals.check("trace in Jaeger", wanted <= found, f"services {sorted(found)}")


async def main(keep: bool) -> int:
    """Run it all; the exit status."""
    goals = Goals()
    try:
        await start(goals)
        async with httpx2.AsyncClient(timeout=10) as client:
            buyer = Buyer(client)
            await buyer.choose()
            await memory(goals, buyer)
            await traced(goals, buyer)
            await scale(goals, buyer)
            await break_each(goals, buyer)
            print(f"     {buyer.placed} orders went through")
    finally:
        if not keep:
            await compose("down", "--volumes")
    return goals.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the mesh running at the end")
    try:
        sys.exit(asyncio.run(main(parser.parse_args().keep)))
    except RuntimeError as error:
        sys.exit(f"compose_check: {error}")
