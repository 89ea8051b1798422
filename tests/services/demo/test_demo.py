"""``python -m services.demo`` as a newcomer runs it: real processes, real ports, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.demo.__main__ import INSTANCES, environment, main, read_settings
from services.runtime.settings import ServiceSettings, load
from tests.support.mesh import IN_AN_ORDER
from tests.support.process import alive
from tests.support.wait import eventually
from tests.support.wait import until as until_answer

ROOT = Path(__file__).resolve().parents[3]
READY_S = 120.0  # what a busy machine may take; the figure that is promised is printed, not tested here
PROCESSES = 1 + sum(map(len, INSTANCES.values())) + 2  # agent, services, gateway and load generator


class Demo:
    """A demo under test, its output, and the processes below it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors: list[str] = []
        self.url = ""
        self.consul = ""
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.decode().rstrip())

    async def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            return (await self.process.stdout.readline()).decode().rstrip()

    async def ready(self) -> None:
        """Waits for the three lines that tell that it is ready."""
        first = await self.line()
        assert first.startswith("ready http://127.0.0.1:"), (first, self.errors)
        self.url = first.removeprefix("ready ")
        second = await self.line()
        assert f"in {PROCESSES + 1} processes" in second
        third = await self.line()
        assert third.startswith("export CONSUL_HTTP_ADDR="), third
        self.consul = third.removeprefix("export CONSUL_HTTP_ADDR=").partition("  # ")[0]

    def children(self) -> list[int]:
        """The processes that the supervisor runs (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    async def end(self) -> int:
        """Waits for the end; returns the exit status."""
        async with asyncio.timeout(60):
            status = await self.process.wait()
            await self.reader
        return status


@asynccontextmanager
async def demo(tmp: Path, **settings: str) -> AsyncIterator[Demo]:
    """Starts a demo with these settings, whose temporary files are below ``tmp``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.demo",
        cwd=ROOT,
        env={**clean, "MESH_PORT": "0", "TMPDIR": str(tmp), **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Demo(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            await running.end()
        await running.reader


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_a_demo_from_ready_to_ctrl_c(tmp_path: Path) -> None:
    """Orders go through, also while an instance is killed and started again; Ctrl-C leaves nothing behind."""
    async with demo(tmp_path) as mesh, httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        await mesh.ready()

        async def order() -> dict[str, Any]:
            answer = await client.post(f"{mesh.url}/api/orders", json={"items": [{"sku": "matcha-30", "quantity": 1}]})
            assert answer.status_code == 201, answer.text
            body: dict[str, Any] = answer.json()
            return body

        async def instances() -> dict[str, dict[str, Any]]:
            services = (await client.get(f"{mesh.url}/api/mesh")).json()["services"]
            return {each["id"]: each for service in services.values() for each in service["instances"]}

        first = await order()
        assert set(first["served_by"]) == IN_AN_ORDER

        async def all_there() -> dict[str, dict[str, Any]]:
            found = await instances()
            return found if len(found) == sum(map(len, INSTANCES.values())) else {}

        before = await until_answer(all_there, within_s=60, what="every instance is registered")
        weights = [before[f"catalog-{n}"]["weight"] for n in (1, 2, 3)]
        assert weights == [1, 2, 5]

        async def whole_trace() -> bool:
            answer = await client.get(f"{mesh.url}/api/traces/{first['trace_id']}")
            spans = answer.json().get("spans", [])
            return {span["service"] for span in spans} == {"gateway", *IN_AN_ORDER}

        await until_answer(whole_trace, within_s=60, what="a trace with spans of all services that take part")

        env = {**os.environ, "CONSUL_HTTP_ADDR": mesh.consul, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'stubs'}"}
        program = (ROOT / "examples" / "asyncio_client.py").read_text("utf-8").replace("espresso", "beans-brazil-250")
        example = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(example.communicate(), 60)
        assert example.returncode == 0, output.decode()
        assert b"1. catalog-" in output

        victim = before["catalog-3"]["pid"]
        os.kill(victim, signal.SIGKILL)
        for _ in range(20):
            await order()
        told = f"catalog-3 (pid {victim}) was killed by SIGKILL"
        await eventually(lambda: any(line.startswith(told) for line in mesh.errors))
        assert len([line for line in mesh.errors if "catalog-3" in line]) == 1

        async def back() -> bool:
            now = (await instances()).get("catalog-3", {})
            return now.get("pid") not in (None, victim) and now["health"] == "passing"

        await until_answer(back, within_s=90, what="catalog-3 is back")
        await order()

        children = mesh.children()
        assert len(children) == PROCESSES
        assert [line for line in mesh.errors if not line.startswith(told)] == []
        started = time.monotonic()
        mesh.process.send_signal(signal.SIGINT)
        assert await mesh.end() == 0
        assert time.monotonic() - started < 30  # 5 s are promised, on a machine that does nothing else
        assert not any(alive(pid) for pid in children)
        assert not list(tmp_path.iterdir())
        with pytest.raises(httpx2.ConnectError):
            await client.get(mesh.url)
        # On a busy machine the agent is told to stop before the others have ended, and these may say so.
        ending = (told, "stopping")
        assert [line for line in mesh.errors if not line.startswith(ending) and "refused" not in line] == []


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_a_killed_demo_is_cleared_away(tmp_path: Path) -> None:
    """Without their supervisor the processes end within 5 s, and the next demo removes its data and ends in time."""
    async with demo(tmp_path) as mesh:
        await mesh.ready()
        children = mesh.children()
        assert len(children) == PROCESSES
        mesh.process.kill()
        await mesh.end()
        await eventually(lambda: not any(alive(pid) for pid in children))
        (left,) = tmp_path.iterdir()
    data = tmp_path / "kept"
    async with demo(tmp_path, MESH_DURATION="0.5", MESH_DATA=str(data)) as mesh:
        await mesh.ready()
        assert not left.exists()
        assert await mesh.end() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert {path.stem for path in data.glob("*.db*")} | {path.stem for path in data.glob("*.sqlite*")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MESH_POTR": "1"}, ["MESH_POTR", "MESH_PORT"]),
        ({"MESH_PORT": "http"}, ["MESH_PORT", "'http'"]),
        ({"MESH_PORT": "70000"}, ["MESH_PORT"]),
        ({"MESH_DURATION": "-1"}, ["MESH_DURATION"]),
        ({"MESH_POLICY": "best"}, ["MESH_POLICY", "round_robin"]),
        ({"MESH_ORDER_RATE": "many"}, ["MESH_ORDER_RATE"]),
        ({"MESH_LISTEN": "127.0.0.1:1"}, ["MESH_LISTEN"]),
        ({"MESH_DATA": "/dev/null/x"}, ["MESH_DATA"]),
        ({"MESH_JAEGER_QUERY": "jaeger"}, ["MESH_JAEGER_QUERY", "http://"]),
        ({"CONSUL_HTTP_ADDR": "ftp://x"}, ["CONSUL_HTTP_ADDR", "ftp"]),
    ],
)
def test_a_bad_setting_ends_at_once(
    settings: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names it, exit status 2, and nothing was started."""
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert all(word in output.err for word in words), output.err


@pytest.mark.parametrize("drain_s", ["0", "0.1", "3"])
def test_any_time_to_drain_suits_its_processes(drain_s: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them refuses the settings that it is given."""
    monkeypatch.setenv("MESH_DRAIN_S", drain_s)
    for name, value in environment(read_settings(), 8080, tmp_path, "http://127.0.0.1:8500").items():
        monkeypatch.setenv(name, value)
    settings = load(ServiceSettings)
    assert settings.drain_s == float(drain_s)
    assert settings.drain_wait_s <= 0.2


async def test_a_taken_port_ends_at_once(tmp_path: Path) -> None:
    """One line that names the port, exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with demo(tmp_path, MESH_PORT=str(port)) as mesh:
            assert await mesh.end() == 2
    assert len(mesh.errors) == 1
    assert str(port) in mesh.errors[0]
