"""The embedded agent by itself: as a process, and the checks that only it is asked about here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

import lb.testing
from lb.testing import Agent
from lb.testing.agent import main
from tests.support.consul import Registry
from tests.support.wait import until


def of(agent: Agent) -> Registry:
    """The agent's HTTP API."""
    registry = Registry()
    registry.url = agent.url
    return registry


class Process:
    """The agent as a process of its own, with a pipe whose end is its parent's."""

    def __init__(self, child: asyncio.subprocess.Process, parent_end: int) -> None:
        self.child = child
        self.parent_end = parent_end

    async def line(self) -> str:
        """The line it prints."""
        assert self.child.stdout is not None
        async with asyncio.timeout(60):
            return (await self.child.stdout.readline()).decode().strip()

    async def ended(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(30):
            return await self.child.wait()


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    """A started agent process."""
    child_end, parent_end = os.pipe()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lb.testing.agent", "--port", "0", "--parent-fd", str(child_end)),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[child_end],
    )
    os.close(child_end)
    started = Process(child, parent_end)
    yield started
    if started.parent_end >= 0:
        os.close(started.parent_end)
    if child.returncode is None:
        child.kill()
    await child.wait()
    await asyncio.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_ends_on_signals(process: Process, number: signal.Signals) -> None:
    """It says where it is, answers there, and ends with 0, though a client waits."""
    words, _, url = (await process.line()).rpartition(" ")
    assert words == "consul (embedded)"
    registry = Registry()
    registry.url = url
    assert (await registry.get("status/leader")).json()
    index = await registry.index("a")
    waiting = asyncio.create_task(registry.get("health/service/a", index=index, wait="60s"))
    await asyncio.sleep(0.05)
    process.child.send_signal(number)
    assert await process.ended() == 0
    await asyncio.wait([waiting])
    assert waiting.exception() is not None


async def test_process_ends_with_its_parent(process: Process) -> None:
    """The end of the parent's pipe ends it."""
    await process.line()
    os.close(process.parent_end)
    process.parent_end = -1
    assert await process.ended() == 0


def test_process_on_no_port(capsys: pytest.CaptureFixture[str]) -> None:
    """A number that is no port is said in words, and not shown as a traceback."""
    with pytest.raises(SystemExit):
        main(["--port", "99999"])
    assert "--port is 99999; expected 0 to 65535" in capsys.readouterr().err


async def test_process_on_a_taken_port() -> None:
    """One line says so; the exit status is 2."""
    async with Agent() as agent:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lb.testing.agent", "--port", agent.address.rpartition(":")[2]),
            stderr=asyncio.subprocess.PIPE,
        )
        _, words = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 2
    assert words.decode().startswith(f"embedded consul: cannot listen on {agent.address}: ")
    assert words.count(b"\n") == 1


async def test_stop_and_start_remember_forget_does_not() -> None:
    """The same port each time; what was registered stays over stop and start, and goes with forget."""
    agent = Agent()
    await agent.start()
    url = agent.url
    await of(agent).register("a", "a-1")
    await agent.stop()
    await agent.start()
    assert await of(agent).instances() == {"a-1"}
    await agent.forget()
    assert await of(agent).instances() == set()
    assert agent.url == url
    await agent.stop()
    await agent.stop()


async def test_instances_long_critical_are_deregistered() -> None:
    """DeregisterCriticalServiceAfter removes an instance that stayed critical, and no other."""
    async with Agent(deregister_least_s=0.1, reap_s=0.05) as agent:
        registry = of(agent)
        after = {"DeregisterCriticalServiceAfter": "1ms"}
        await registry.register("a", "ill", Check={"TTL": "60s"} | after)
        await registry.register("a", "well", Check={"TTL": "60s", "Status": "passing"} | after)
        await registry.register("a", "kept", Check={"TTL": "60s"})

        async def reaped() -> bool:
            return await registry.instances() == {"well", "kept"}

        await until(reaped, within_s=30, what="the ill one is gone")


async def test_ttl_expires() -> None:
    """A heartbeat that stays away makes it critical."""
    async with Agent() as agent:
        registry = of(agent)
        await registry.register("a", "a-1", Check={"TTL": "100ms", "Status": "passing"})

        async def expired() -> bool:
            return await registry.status("a", "a-1") == "critical"

        await until(expired, within_s=30, what="the TTL expired")

        async def passes() -> bool:
            await registry.put("agent/check/pass/service:a-1")
            return await registry.status("a", "a-1") == "passing"  # unless it expired in between

        await until(passes, within_s=30, what="it passes again")


async def test_http_and_tcp_checks() -> None:
    """2xx passes, 429 is a warning, all else and a closed port are critical; thresholds count in a row."""
    answers = {"/well": 204, "/busy": 429, "/ill": 500}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=answers[request.path])

    app = web.Application()
    app.router.add_get("/{any}", answer)
    site = web.AppRunner(app, access_log=None)
    await site.setup()
    await web.TCPSite(site, "127.0.0.1", 0).start()
    port = site.addresses[0][1]
    checks: dict[str, tuple[dict[str, Any], str]] = {
        "well": ({"HTTP": f"http://127.0.0.1:{port}/well"}, "passing"),
        "busy": ({"HTTP": f"http://127.0.0.1:{port}/busy"}, "warning"),
        "ill": ({"HTTP": f"http://127.0.0.1:{port}/ill"}, "critical"),
        "open": ({"TCP": f"127.0.0.1:{port}"}, "passing"),
        "closed": ({"TCP": "127.0.0.1:1", "Status": "passing"}, "critical"),
        "patient": ({"TCP": "127.0.0.1:1", "Status": "passing", "FailuresBeforeCritical": 100000}, "passing"),
    }
    async with Agent() as agent:
        registry = of(agent)
        for id, (check, _) in checks.items():
            await registry.register("a", id, Check={"Interval": "50ms"} | check)
        for id, (_, wanted) in checks.items():

            async def reached(id: str = id, wanted: str = wanted) -> bool:
                return await registry.status("a", id) == wanted

            await until(reached, within_s=30, what=f"{id} is {wanted}")
        found = (await registry.get("agent/checks")).json()
        assert "500" in found["service:ill"]["Output"]
    await site.cleanup()


async def test_a_route_that_it_does_not_serve() -> None:
    """The answer says what this is, and all that it serves."""
    async with Agent() as agent:
        for path in ("kv/config", "session/create", "agent/members"):
            answer = await of(agent).put(path) if path == "session/create" else await of(agent).get(path)
            assert answer.status_code == 404
            words = f"the embedded Consul agent does not serve /v1/{path}: it is the agent of lb.testing"
            assert answer.text.startswith(words)
            assert "It serves GET /v1/status/leader" in answer.text
            assert "GET /v1/health/service/{name}" in answer.text


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("health/service/a", "filter"),
        ("health/service/a", "peer"),
        ("health/service/a", "node-meta"),
        ("health/checks/a", "tag"),
        ("agent/services", "filter"),
        ("agent/checks", "filter"),
        ("agent/service/a", "hash"),
        ("catalog/services", "node-meta"),
    ],
)
async def test_parameters_that_it_would_drop_are_refused(path: str, parameter: str) -> None:
    """What would change the answer of a Consul is not left out in silence."""
    async with Agent() as agent:
        answer = await of(agent).get(path, **{parameter: "x"})
    assert answer.status_code == 400
    assert answer.text.startswith(
        f"the embedded agent does not support ?{parameter} for /v1/{path}: it is the agent of"
    )


async def test_connect_is_refused() -> None:
    """It is not dropped: nobody would find the sidecar that was asked for."""
    async with Agent() as agent:
        answer = await of(agent).put("agent/service/register", {"Name": "a", "Connect": {"SidecarService": {}}})
        assert (answer.status_code, "does not support Connect" in answer.text) == (400, True)
        assert await of(agent).instances() == set()


def test_unknown_name_of_the_package() -> None:
    """The lazy package says what it has."""
    with pytest.raises(AttributeError, match=r"has no attribute 'Nothing'; it has .*Agent"):
        _ = lb.testing.Nothing
