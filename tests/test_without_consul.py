"""Consul's client is an extra: without it, all but Consul works, and Consul says what is missing."""

from __future__ import annotations

import asyncio
import sys

from lb.testing import Backend

# Only what the package itself requires can be imported, and what that requires.
ALONE = """
import asyncio, sys, warnings
from importlib.abc import MetaPathFinder

ALLOWED = {"lb", "grpc", "google", "tenacity", "opentelemetry", "typing_extensions", "importlib_metadata", "zipp"}

class Alone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in ALLOWED and first not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {first!r}", name=first)

sys.meta_path.insert(0, Alone())
port = sys.argv[1]
import lb
import lb.testing

async def asynchronous():
    async with lb.aio.channel(f"dns:///127.0.0.1:{port}") as channel:
        return await channel.unary_unary("/lb.testing.Echo/UnaryUnary")(b"x", timeout=30, wait_for_ready=True)

def threads():
    with lb.sync.channel(f"static:///127.0.0.1:{port}") as channel:
        return channel.unary_unary("/lb.testing.Echo/UnaryUnary")(b"x", timeout=30, wait_for_ready=True)

def without(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except ImportError as error:
        print(error)

print(asyncio.run(asynchronous()), threads())

async def consul():
    without(lb.aio.channel, "consul:///catalog")

asyncio.run(consul())
without(lb.sync.channel, "consul:///catalog")
without(lb.aio.registration, "catalog", address="127.0.0.1:1")
without(getattr, lb.testing, "Agent")
"""


async def run(program: str, *arguments: str) -> tuple[int | None, str, str]:
    """Exit status, output and errors of a Python program."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(child.communicate(), 90)
    return child.returncode, output.decode(), errors.decode()


async def test_names_and_lists_need_no_consul() -> None:
    """Both shells work with the four required packages alone; Consul is a clear error, at construction."""
    async with Backend() as backend:
        _, output, errors = await run(ALONE, backend.address.rpartition(":")[2])
    needs = "needs Consul's client (aiohttp is missing); install lb-mesh with its extra `consul`"
    assert output.splitlines() == [
        "b'x' b'x'",
        f"target 'consul:///catalog' {needs}",
        f"target 'consul:///catalog' {needs}",
        f"registration {needs}",
        "the embedded agent needs aiohttp; install lb-mesh with its extra `consul`",
    ], errors


async def test_the_agent_as_a_process_says_what_it_needs() -> None:
    """One line, and no traceback."""
    program = (
        "import runpy, sys; sys.modules['aiohttp'] = None; runpy.run_module('lb.testing.agent', run_name='__main__')"
    )
    status, _, errors = await run(program)
    assert (status, errors) == (1, "the embedded agent needs aiohttp; install lb-mesh with its extra `consul`\n")
