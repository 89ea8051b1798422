"""What ``/api/mesh`` says when Consul or an instance does not answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from lb.aio.consul import ConsulError
from services.gateway import topology as module
from services.gateway.topology import Topology
from tests.services.gateway.conftest import Bench, Registered, instance
from tests.support.wait import longer


async def test_instances_with_their_calls(bench: Bench) -> None:
    """Consul's instances in the order of their id, each with what it says of itself."""
    bench.registered["catalog"] = [
        instance("shop-2", "127.0.0.1:1", "critical", weight=2),
        instance("shop-1", bench.shop_address, weight=5, pid="42"),
        instance("shop-3", "127.0.0.1:1", "maintenance"),
    ]
    body = (await bench.client.get("/api/mesh")).json()
    assert body["registry"] == "ok"
    assert set(body["services"]) == {"catalog", "inventory", "orders", "payments"}
    assert body["services"]["orders"] == {"instances": []}
    assert body["services"]["catalog"]["instances"] == [
        {"id": "shop-1", "address": bench.shop_address, "pid": 42, "weight": 5, "health": "passing", "calls": 7},
        {"id": "shop-2", "address": "127.0.0.1:1", "pid": None, "weight": 2, "health": "critical", "calls": None},
        {"id": "shop-3", "address": "127.0.0.1:1", "pid": None, "weight": 1, "health": "maintenance", "calls": None},
    ]


async def test_without_consul_the_last_answer_stands(bench: Bench) -> None:
    """503 before there ever was one; afterwards the last one, with the reason, and calls still count."""
    bench.registered["catalog"] = [instance("shop-1", bench.shop_address)]
    down = bench.consul.error = ConsulError("127.0.0.1:8500", "cannot connect")
    answer = await bench.client.get("/api/mesh")
    assert answer.status_code == 503
    assert "cannot connect" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    bench.consul.error = None
    bench.topology.expire()
    assert (await bench.client.get("/api/mesh")).json()["registry"] == "ok"
    bench.consul.error = down
    bench.shop.calls_total = 9
    bench.topology.expire()
    body = (await bench.client.get("/api/mesh")).json()
    assert "cannot connect" in body["registry"]
    assert body["services"]["catalog"]["instances"][0]["calls"] == 9


async def test_an_instance_that_hangs_does_not_hold_up_the_others(bench: Bench, monkeypatch: Any) -> None:
    """A port that accepts and says nothing costs its own number only, and a bounded time."""
    silent = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody ever answers
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    bench.registered["catalog"] = [instance("shop-1", bench.shop_address), instance("silent", address)]
    for timeout_s in longer(0.2):
        monkeypatch.setattr(module, "DESCRIBE_TIMEOUT_S", timeout_s)
        bench.topology.expire()
        async with asyncio.timeout(30):
            body = (await bench.client.get("/api/mesh")).json()
        calls = [each["calls"] for each in body["services"]["catalog"]["instances"]]
        if calls[0] is not None:
            break  # else the one that answers had too little time
    assert calls == [7, None]
    await bench.topology.close()
    silent.close()


async def test_many_who_ask_cost_one_reading(bench: Bench, monkeypatch: Any) -> None:
    """Within its age, and while a reading is under way, everybody gets the same one."""
    monkeypatch.setattr(module, "MAX_AGE_S", 60.0)
    consul = Registered()
    consul.instances["catalog"] = [instance("shop-1", bench.shop_address)]
    mesh = Topology(consul, services=["catalog"])
    first = asyncio.create_task(mesh.get())
    await asyncio.sleep(0)
    first.cancel()  # the reading goes on for the others
    answers = await asyncio.gather(*(mesh.get() for _ in range(20)))
    assert await mesh.get() is answers[0]
    assert consul.asked == 1
    assert all(answer is answers[0] for answer in answers)
    await mesh.close()


async def test_another_process_on_the_port_is_not_counted(bench: Bench) -> None:
    """An address that was taken over by another instance does not give its calls to the first."""
    bench.registered["catalog"] = [instance("gone-1", bench.shop_address)]
    body = (await bench.client.get("/api/mesh")).json()
    assert body["services"]["catalog"]["instances"][0]["calls"] is None
