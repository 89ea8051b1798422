"""The Python of the pages for users runs, from top to bottom of each page, against servers that are really there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import os
import re
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import lb
import lb.server
from examples.servers import Catalog
from lb.core.policies import base
from lb.testing import Agent, Backend
from lb.testing.backend import UNARY_UNARY
from mesh.catalog.v1 import CatalogStub, GetProductRequest, add_CatalogServicer_to_server
from tests.support.wait import until

DOCS = Path(__file__).resolve().parents[2] / "docs"
TARGET = "dns:///catalog.internal:50051"


def snippets(name: str) -> list[str]:
    """The blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)


async def run(page: str, *blocks: str, **names: Any) -> dict[str, Any]:
    """Run them in one namespace, as in a notebook: ``await`` may stand anywhere. What they have defined."""
    for block in blocks:
        code = compile(block, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    return names


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    """A Consul for the snippets."""
    async with Agent() as agent:
        yield agent


@pytest.fixture
def consul(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one of the environment."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)


@pytest.fixture
async def catalog() -> AsyncIterator[str]:
    """A server of the catalog; its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_CatalogServicer_to_server(Catalog(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """A server that echoes."""
    async with Backend() as backend:
        yield backend


@pytest.mark.usefixtures("consul")
async def test_moving(catalog: str) -> None:
    """Each way, before and after, is answered."""
    blocks = snippets("moving.md")
    assert sum(TARGET in block for block in blocks) == 4
    async with lb.aio.registration("catalog", address=catalog, status="passing", check="tcp"):
        for number, block in enumerate(blocks[1:], 1):
            names = await run("moving.md", blocks[0], block.replace(TARGET, f"dns:///{catalog}"))
            if number == 3:  # the function under its decorator
                async with grpc.aio.insecure_channel(catalog) as channel:
                    names["response"] = await names["get_product"](CatalogStub(channel))
            assert names["response"].product.sku == "espresso", block


@pytest.mark.usefixtures("consul")
async def test_operating(agent: Agent, free_port: int) -> None:
    """The server of the page serves a client with the settings of the page, and leaves without harm on SIGTERM."""
    blocks = snippets("operating.md")
    names = await run("operating.md", *blocks)
    stop = asyncio.Event()
    serving = asyncio.create_task(names["serve"](Catalog(), free_port, stop))
    try:
        async with lb.aio.channel("consul:///catalog", **names["client"]) as channel:
            stub = CatalogStub(channel)
            request = GetProductRequest(sku="espresso")
            assert (await stub.GetProduct(request, timeout=60, wait_for_ready=True)).product.sku == "espresso"
            os.kill(os.getpid(), signal.SIGTERM)

            async def heard() -> bool:
                return not channel.snapshot().endpoints

            await until(heard, within_s=60, what="the client has heard")
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await serving
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_server(agent: Agent, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """The page's server serves until SIGTERM, its stream ends when the server drains, and its test is one."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
    blocks = [block.replace("0.0.0.0:50051", f"127.0.0.1:{free_port}") for block in snippets("server.md")]
    names = await run("server.md", *blocks, lb=lb)
    await names["test_the_catalog"](Catalog())
    serving = asyncio.create_task(names["main"](Catalog()))
    async with lb.aio.channel("consul:///catalog") as channel:
        request = GetProductRequest(sku="espresso")
        found = await CatalogStub(channel).GetProduct(request, timeout=60, wait_for_ready=True)
        assert found.product.sku == "espresso"
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(60):
        await serving
    async with lb.server.Server("news", register={"id": "news"}, drain_wait_s=0) as server:
        watch: Any = grpc.unary_stream_rpc_method_handler(names["watch"])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("News", {"Watch": watch})])
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as news:
            watching: Any = news.unary_stream("/News/Watch")
            stream = watching(b"")
            assert await stream.read() == b"news"
            leaving = asyncio.create_task(server.stop(30))
            while (message := await stream.read()) is not grpc.aio.EOF:
                assert message == b"news"
            await leaving


async def test_places() -> None:
    """The application of docs/server.md answers, and refuses a client that asks too often."""
    names = await run("server.md", *snippets("server.md"), lb=lb)
    told: list[object] = []

    async def respond(_: object) -> None:
        told.append("answered")

    async def refuse(_: object, code: grpc.StatusCode, retry_s: float) -> None:
        told.append(code)

    request = SimpleNamespace(route="GET /", address="192.0.2.1")
    for _ in range(5000):
        await names["answer"](request, respond, refuse)
    assert told[0] == "answered"
    assert set(told) == {"answered", grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_troubleshooting() -> None:
    """The log is told to tell."""
    root, ours = logging.getLogger(), logging.getLogger("lb")
    before = root.handlers[:], ours.level
    try:
        await run("troubleshooting.md", *snippets("troubleshooting.md"))
        assert ours.isEnabledFor(logging.DEBUG)
    finally:
        root.handlers[:] = before[0]
        ours.setLevel(before[1])


async def test_metrics() -> None:
    """In a process of their own, since a process has one meter provider: it is set, and the views are views."""
    program = "\n".join([*snippets("metrics.md"), "print(type(metrics.get_meter_provider()).__name__, len(views))"])
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(child.communicate(), 60)
    assert said.decode().splitlines()[0] == "MeterProvider 2"


async def test_upstream() -> None:
    """What shows a status that is lost, shows nothing but that status and the one that grpcio makes up."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", *snippets("upstream.md"), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(child.communicate(), 60)
    seen = ast.literal_eval(said.decode())
    assert sum(seen.values()) == 2000
    assert seen["UNAVAILABLE: full"] == 2000 - seen.get("INTERNAL: Internal error from Core", 0)


async def test_the_smallest_policy(backend: Backend) -> None:
    """What the first lines of ``lb/core/policies/base.py`` show, to which docs/policies.md points, is a policy."""
    assert base.__doc__ is not None
    _, _, shown = base.__doc__.partition("The smallest policy of a user's own::\n\n")
    names = await run("base.py", textwrap.dedent(shown.partition("\nWhat a policy")[0]))
    async with lb.aio.channel(f"static:///{backend.address}", policy=names["First"]()) as channel:
        unary: Any = channel.unary_unary(UNARY_UNARY)
        assert await unary(b"hello", timeout=20) == b"hello"
        assert channel.snapshot().policy == "first"


def test_no_page_has_python_that_is_not_run() -> None:
    """What runs elsewhere: README's and the tutorial's in their own tests. api.md has signatures and no programs."""
    pages = {path.name for path in DOCS.glob("*.md") if snippets(path.name)}
    run_here = {"metrics.md", "moving.md", "operating.md", "server.md", "troubleshooting.md", "upstream.md"}
    assert pages == run_here | {"api.md", "tutorial.md"}
