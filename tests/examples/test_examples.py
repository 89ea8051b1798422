"""Each program under ``examples/`` runs and says what it should."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

import lb
from lb.testing import Agent
from tests.support import install

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
_ENV = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
_ENV |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'stubs'}", "PYTHONUNBUFFERED": "1"}
_WITHIN_S = 120


async def run(*command: str, env: dict[str, str] | None = None, python: str = sys.executable) -> str:
    """What a Python process says on both streams, in all; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *(python, *command),
        cwd=ROOT,
        env=_ENV | (env or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_WITHIN_S):
            said = (await process.communicate())[0].decode()
    except TimeoutError:
        process.kill()
        said = (await process.communicate())[0].decode()
        pytest.fail(f"{command} did not end within {_WITHIN_S} s; it said:\n{said}")
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the package and what it requires, and nothing else: what ``pip install .`` gives."""
    pytest.importorskip("hatchling", reason="the package is built as a wheel (extra: dev)")
    venv = tmp_path_factory.mktemp("alone") / "venv"
    python = install.make(venv)
    install.install(venv, "lb-mesh")
    return str(python)


@pytest.fixture(scope="module")
def with_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with the extra: what ``pip install '.[server]'`` gives."""
    pytest.importorskip("hatchling", reason="the package is built as a wheel (extra: dev)")
    venv = tmp_path_factory.mktemp("server") / "venv"
    python = install.make(venv)
    install.install(venv, "lb-mesh[server]")
    return str(python)


@pytest.fixture(scope="module")
async def consul() -> AsyncIterator[dict[str, str]]:
    """``examples/servers.py`` runs; the environment in which its servers are found."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "servers.py"), "--port", "0"),
        env=_ENV,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_WITHIN_S):
            said = (await process.stdout.readline()).decode()
        name, _, address = said.strip().partition("=")
        assert name == "CONSUL_HTTP_ADDR", said
        yield {name: address}
    finally:
        process.terminate()
        async with asyncio.timeout(_WITHIN_S):
            rest, _ = await process.communicate()
    assert process.returncode == 0
    assert rest == b""


async def test_asyncio_client(consul: dict[str, str]) -> None:
    """Every call is answered; where the slow server was first another one was asked, and the attempts are told."""
    said = await run("examples/asyncio_client.py", env=consul)
    assert said.count("Espresso, 250 g\n") == 6
    # The other one may be the server that refuses every second call.
    assert re.search(r"^  1\. catalog-2: .*\n  2\. catalog-[13]: .*\(hedge: no answer yet\)$", said, re.M)
    assert re.search(r"^consul:///catalog  round_robin  READY", said, re.M)
    assert said.count("READY, CLOSED") == 3


async def test_threads(consul: dict[str, str]) -> None:
    """Blocking, with_call, future, many threads, and an error with its attempt."""
    said = (await run("examples/threads.py", env=consul)).splitlines()
    assert said[0] == "Espresso, 250 g"
    assert re.fullmatch(r"Filter coffee, 500 g from catalog-\d", said[1])
    assert said[2] == "Filter coffee, 500 g later"
    shares = {name: int(count) for name, count in re.findall(r"'(catalog-\d)': (\d+)", said[3])}
    assert sum(shares.values()) == 60
    assert re.fullmatch(r"catalog-\d says NOT_FOUND: no product 'tea'", said[4])


async def test_own_policy(alone: str) -> None:
    """The canary gets its share, and next to nothing once it fails; no call fails."""
    said = await run("-I", "examples/own_policy.py", python=alone)
    well, failing = re.findall(r"^the canary .*: (\{.*\})$", said, re.M)
    shares = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", well)}
    assert sum(shares.values()) == 300
    assert 25 <= shares["new"] <= 105  # 60, by six standard deviations
    shares = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", failing)}
    assert set(shares) == {"one", "two"}
    assert sum(shares.values()) == 300
    assert said.endswith("it was asked 3 times\n")


async def test_own_resolver(alone: str) -> None:
    """An endpoint that appears is found, and a broken file changes nothing."""
    said = (await run("-I", "examples/own_resolver.py", python=alone)).splitlines()
    assert said == [
        "a has 1 call, b has 0",
        "b was found",
        "the file is broken: file endpoints.txt: 'no address at all, really': expected host:port, and maybe a weight",
        "and calls go on",
    ]


async def test_service_config(alone: str) -> None:
    """The document's policy, retries, timeout and hedging hold; a bad one is refused by its path."""
    said = (await run("-I", "examples/service_config.py", python=alone)).splitlines()
    assert said == [
        "policy: round_robin",
        "retried: 3 attempts, 3 answers",
        "timeout: DEADLINE_EXCEEDED",
        "hedged: a then b",
        'service config: methodConfig[0].timeout is "soon"; expected seconds as text like "0.1s"',
    ]


async def test_production_settings(alone: str) -> None:
    """A server hangs, and every call is answered."""
    for _ in range(3):  # a machine that stands still for a while makes calls miss their deadline
        said = await run("-I", "examples/production_settings.py", python=alone)
        if "'answered': 600}" in said:
            break
    assert said.startswith("{'answered': 600} slowest ")


async def test_side_by_side(alone: str) -> None:
    """Grpcio's channel loses calls to the server that hangs, ours none."""
    for _ in range(3):  # a machine that stands still for a while makes calls miss their deadline
        grpcio, ours = (await run("-I", "examples/side_by_side.py", python=alone)).splitlines()[-2:]
        assert re.match(r"grpcio  answered +\d+  failed +[1-9]", grpcio)
        if " failed   0 " in ours:
            break
    assert re.match(r"lb      answered +\d+  failed +0 ", ours)


@pytest.mark.parametrize("name", ["server.py", "server_threads.py"])
@pytest.mark.parametrize("in_consul", [True, False])
async def test_server(with_server: str, in_consul: bool, name: str) -> None:
    """It is healthy, and in Consul if it knows one; on SIGTERM a stream is told, the exit status is 0."""
    async with Agent() as agent:
        process = await asyncio.create_subprocess_exec(
            *(with_server, "-I", f"examples/{name}"),
            cwd=ROOT,
            env=_ENV | ({"CONSUL_HTTP_ADDR": agent.address} if in_consul else {}),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        said = ""
        try:
            async with asyncio.timeout(_WITHIN_S):
                while not (ready := re.search(r"greeter: ready at (\S+)", said)):
                    line = await process.stderr.readline()
                    assert line, said
                    said += line.decode()
                target = f"consul://{agent.address}/greeter" if in_consul else ready[1]
                async with lb.aio.channel(target, health="") as channel:
                    hello: Any = channel.unary_unary("/Greeter/Hello")
                    assert await hello(b"Ada", wait_for_ready=True) == b"hello, Ada"
                    ticks: Any = channel.unary_stream("/Greeter/Ticks")
                    stream = ticks(b"")
                    assert await stream.read() == b"tick"
                    process.terminate()
                    while (message := await stream.read()) is not grpc.aio.EOF:
                        assert message == b"tick"
                said += (await process.communicate())[1].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, said
    assert "greeter: draining: SIGTERM" in said


@pytest.mark.parametrize("name", ["server.py", "server_threads.py"])
def test_a_server_is_short(name: str) -> None:
    """A whole server has under 40 lines."""
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) < 40


async def test_a_users_own_test() -> None:
    """A pytest of its own runs it, as a user would."""
    said = await run("-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/test_with_lb_testing.py")
    assert "5 passed" in said


async def test_fastapi(consul: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The lifespan owns the channel, a route calls with the request's deadline, and a status becomes HTTP's."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", consul["CONSUL_HTTP_ADDR"])
    from examples.fastapi_app import app

    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app") as client,
    ):
        answer = await client.get("/products/espresso", headers={"x-timeout-ms": "10000"})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert (found["sku"], found["name"]) == ("espresso", "Espresso, 250 g")
        assert set(found["attempts"]) <= {"catalog-1", "catalog-2", "catalog-3"}

        answer = await client.get("/products/tea")
        assert (answer.status_code, answer.json()) == (404, {"error": "NOT_FOUND"})

        answer = await client.get("/products/espresso", headers={"x-timeout-ms": "soon"})
        assert answer.status_code == 422


async def test_fastapi_tells_operators_alone_what_the_channel_knows(
    consul: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the token that is set; without one, nobody."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", consul["CONSUL_HTTP_ADDR"])
    monkeypatch.delenv("OPERATORS_TOKEN", raising=False)
    from examples.fastapi_app import app

    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app") as client,
    ):
        assert (await client.get("/products/espresso")).status_code == 200

        async def asked(*words: str) -> httpx2.Response:
            return await client.get("/endpoints", headers=[("authorization", word) for word in words])

        for words in ((), ("Bearer ",), ("Bearer secret",)):
            assert (await asked(*words)).status_code in (401, 403)
        monkeypatch.setenv("OPERATORS_TOKEN", "secret")
        for words in ((), ("Bearer ",), ("Bearer secrets",), ("Basic secret",)):
            answer = await asked(*words)
            assert answer.status_code in (401, 403)
            assert "catalog" not in answer.text
        assert len((await asked("Bearer secret")).json()["endpoints"]) == 3


async def test_fastapi_passes_the_deadline_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes its time is not waited for any longer than the request allows."""
    from examples.fastapi_app import app
    from examples.servers import Catalog, running

    async with Agent() as agent, running("slow", Catalog(takes_s=60), agent.address):
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app") as client,
        ):
            answer = await client.get("/products/espresso", headers={"x-timeout-ms": "300"})
            assert (answer.status_code, answer.json()["error"]) == (504, "DEADLINE_EXCEEDED")


def test_every_example_is_in_the_list() -> None:
    """The page of the examples names each file, and no other."""
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert set(re.findall(r"\]\((\w+\.py)\)", page)) == {path.name for path in EXAMPLES.glob("*.py")}


def test_the_examples_that_need_nothing_are_marked() -> None:
    """Those that the tests above run with the package alone, and no others."""
    page = (EXAMPLES / "README.md").read_text("utf-8")
    tested = re.findall(r'run\("-I", "examples/(\w+\.py)", python=alone\)', Path(__file__).read_text("utf-8"))
    assert sorted(re.findall(r"\]\((\w+\.py)\) \*", page)) == sorted(tested)
