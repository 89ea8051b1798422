"""What ``import lb`` leaves for later, and that no call has to wait for it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY

LATER = (
    # Consul, HTTP and TLS: with the first channel or registration that needs them
    *("aiohttp", "consul", "requests", "http", "lb.aio._consul", "lb.aio._registration", "lb.aio.resolvers.consul"),
    *("lb.aio.resolvers.dns", "lb.core.watch", "lb.core.consul_health", "lb.core.presence"),
    # telemetry: once the process uses it
    *("opentelemetry", "lb.telemetry.tracing", "lb.telemetry.late", "lb.telemetry.instruments"),
    # the other shell, other ways of concurrency, and tests
    *("gevent", "lb.server", "lb.sync", "lb.testing", "pytest"),
    # what one channel in many is told
    *("json", "lb.core.service_config", "lb.core.service_policies", "lb.core.documents", "lb.core.snapshot"),
    *("difflib", "hashlib", "ipaddress", "pathlib", "urllib", "lb.core.orca", "lb.core.proxy", "lb.core.target"),
    *(f"lb.core.policies.{name}" for name in ("least_request", "orca", "p2c", "peak_ewma", "pick_first")),
    *(f"lb.core.policies.{name}" for name in ("power_of_two", "random", "ring_hash", "round_robin", "slow_start")),
    *(f"lb.core.policies.{name}" for name in ("smooth", "subset", "tiered", "weighted_random", "zone_aware")),
    "lb.core.policies.weighted_round_robin",
)
"""Modules, each with those below it, that ``import lb`` does not import (``import grpc.aio`` may)."""

IMPORTED = """
import json, sys
import grpc.aio
before = set(sys.modules)
import lb
print(json.dumps(sorted(set(sys.modules) - before)))
"""

CALLED = """
import asyncio, json, sys
import grpc.aio
{first}
import lb

async def main():
    async with lb.aio.channel(sys.argv[1]) as channel:
        made = set(sys.modules)
        await channel.unary_unary(sys.argv[2])(b"x", timeout=60)
        called = sorted(name for name in set(sys.modules) - made if name.partition(".")[0] in ("lb", "opentelemetry"))
        print(json.dumps([sorted(made), called]))

asyncio.run(main())
"""

MADE = """
import json, sys
import grpc.aio
import lb

{make}
print(json.dumps(sorted(sys.modules)))
"""

BAGGAGE = """
import asyncio, json, sys
import lb

async def main():
    async with lb.aio.channel(sys.argv[1]) as channel:
        call = channel.unary_unary(sys.argv[2])
        await call(b"x", timeout=60)
        assert "opentelemetry" not in sys.modules
        from opentelemetry import baggage, context
        context.attach(baggage.set_baggage("user", "7"))
        await call(b"x", timeout=60)

asyncio.run(main())
print("null")
"""


async def run(program: str, *arguments: str) -> Any:
    """What a Python program prints, as JSON."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(child.communicate(), 90)
    assert child.returncode == 0, errors.decode()[-2000:]
    return json.loads(output)


def under(modules: list[str], roots: tuple[str, ...] = LATER) -> list[str]:
    """Those that are one of the roots, or below one."""
    return [name for name in modules if any(name == root or name.startswith(f"{root}.") for root in roots)]


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """One that is stopped when the test is over."""
    async with Backend() as started:
        yield started


async def test_importing_it_imports_no_more_than_calls_need() -> None:
    """45 ms of CPU beside grpcio's own 70, instead of 80."""
    assert under(await run(IMPORTED)) == []


async def test_a_process_without_telemetry_never_imports_it(backend: Backend) -> None:
    """Not for a channel, and not for a call."""
    made, called = await run(CALLED.format(first=""), f"static:///{backend.address}", UNARY_UNARY)
    assert under(made, ("opentelemetry",)) == []
    assert called == []


@pytest.mark.parametrize("name", ["opentelemetry.trace", "opentelemetry.metrics"])
async def test_a_call_does_not_wait_for_imports(backend: Backend, name: str) -> None:
    """Where the process uses telemetry, what `lb` has for it is imported with the channel."""
    program = CALLED.format(first=f"import {name}")
    made, called = await run(program, f"static:///{backend.address}", UNARY_UNARY)
    assert "lb.telemetry.tracing" in made
    assert ("lb.telemetry.instruments" in made) is (name == "opentelemetry.metrics")
    assert called == []


@pytest.mark.parametrize(
    ("make", "modules"),
    [
        ("lb.aio.channel('dns:///localhost:1')", ["lb.aio.resolvers.dns"]),
        ("lb.aio.channel('static:///a:1', policy='p2c')", ["lb.core.policies.p2c"]),
        ("lb.sync.channel('static:///a:1').close()", ["lb.sync"]),
        ("lb.server.Limits()", ["lb.server"]),
        ("lb.aio.channel('static:///a:1', service_config='{}')", ["json", "lb.core.service_config"]),
    ],
)
async def test_a_channel_imports_what_it_needs_when_it_is_made(make: str, modules: list[str]) -> None:
    """Not while calls run."""
    assert set(modules) <= set(await run(MADE.format(make=make)))


async def test_consul_is_imported_with_the_channel() -> None:
    """Its client is the heaviest of all."""
    pytest.importorskip("consul", reason="needs Consul's client (extra: consul)")
    made = await run(MADE.format(make="lb.aio.channel('consul:///catalog')"))
    assert {"aiohttp", "consul.aio", "lb.aio.resolvers.consul", "lb.core.watch"} <= set(made)


async def test_baggage_goes_with_a_call_once_telemetry_is_used(backend: Backend) -> None:
    """A process may import it at any time: the next call knows."""
    await run(BAGGAGE, f"static:///{backend.address}", UNARY_UNARY)
    assert [received.metadata.get("baggage") for received in backend.received] == [None, "user=7"]


async def test_names_that_come_later_are_there() -> None:
    """All that `lb` exports; and a name that it does not have is the usual error."""
    program = """
import lb, lb.aio, lb.core.policies as policies
for module in (lb, lb.aio, policies):
    for name in module.__all__:
        assert getattr(module, name) is not None, name
from lb import P2C, sync
assert P2C is policies.P2C is lb.P2C
assert sync.channel is lb.sync.channel
try:
    lb.nothing
except AttributeError as error:
    print('"' + str(error) + '"')
"""
    assert await run(program) == "module 'lb' has no attribute 'nothing'"
