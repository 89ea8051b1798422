"""The parts of the demo: its directory, its memory, its load generator."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse

from services.demo import memory
from services.demo.load import Load, Report
from services.demo.state import StateDirectory, remove_stale


def test_only_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    """A directory in use stays, as do one just being made and a stranger; one without an owner goes."""
    used = StateDirectory(tmp_path)
    code = "import pathlib, sys; from services.demo.state import StateDirectory as D; D(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)  # and its process is gone
    (left,) = set(tmp_path.iterdir()) - {used.path}
    (left / "orders.db").write_text("x")
    (tmp_path / "mesh-demo-new").mkdir()
    (tmp_path / "other").mkdir()
    assert remove_stale(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {used.path.name, "mesh-demo-new", "other"}
    os.utime(tmp_path / "mesh-demo-new", (0, 0))
    assert remove_stale(tmp_path) == 1
    used.remove()
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_memory_of_processes() -> None:
    """More than a Python needs and less than all; who is gone counts nothing."""
    megabytes, measure = memory.together([os.getpid(), 2**22 + 1])
    assert 5 < megabytes < 4096
    assert measure in ("PSS", "RSS")


def test_failures_are_told_in_a_line_at_a_time() -> None:
    """Nothing while the mesh starts; then one line in five seconds, with how many and why."""
    lines: list[str] = []
    report = Report(lines.append, now=0.0)
    for second in range(14):
        report.failed("503 starting", now=second)
    assert lines == []
    report.ok()
    report.failed("503 away", now=15.0)
    assert lines == ["15 of 16 orders failed, the last one: 503 away"]
    for n in range(50):
        report.failed("504 late", now=15 + n / 10)
    assert len(lines) == 1
    report.failed("504 late", now=20.0)
    assert lines[1:] == ["51 of 51 orders failed, the last one: 504 late"]


async def test_orders_are_placed_and_a_gateway_that_is_away_is_left_alone() -> None:
    """Baskets are small and only of what is there; while the gateway says 503, it is asked ever less often."""
    orders: list[dict[str, Any]] = []
    asked = 0
    away = False
    enough = asyncio.Event()

    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        request = Request(scope, receive)
        asked += 1
        if away:
            answer = JSONResponse({"detail": "starting"}, 503)
        elif request.method == "GET":
            stock = {"a": 5, "b": 0, "c": 9}
            answer = JSONResponse({"products": [{"sku": sku, "stock": pieces} for sku, pieces in stock.items()]})
        else:
            orders.append(await request.json())
            if len(orders) == 20:
                enough.set()
            answer = JSONResponse({}, 201)
        await answer(scope, receive, send)

    lines: list[str] = []
    transport = httpx2.ASGITransport(gateway)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        load = Load(client, 1000.0, random.Random(1), Report(lines.append, 0.0))
        running = asyncio.create_task(load.run())
        async with asyncio.timeout(60):
            await enough.wait()
            away = True
            while load.pause_s < 0.5:  # noqa: ASYNC110 - it is the number that is looked at
                await asyncio.sleep(0.01)
        before = asked
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert asked - before <= 1
    for order in orders:
        assert 1 <= len(order["items"]) <= 2
        assert {item["sku"] for item in order["items"]} <= {"a", "c"}
        assert all(1 <= item["quantity"] <= 3 for item in order["items"])
