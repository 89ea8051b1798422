"""The shop's servers report their load, and ``MESH_POLICY=orca`` shares calls by it."""

from __future__ import annotations

import asyncio
from collections import Counter

import lb
from lb.core.orca import decode
from lb.core.outcome import REPORT_KEY
from lb.server import LoadReporter
from lb.testing import FakeClock
from mesh.catalog.v1 import CatalogAsyncStub, CatalogStub, GetProductRequest
from mesh.runtime.v1 import DescribeRequest, RuntimeStub
from services.runtime.channels import served_by
from tests.services.conftest import Shop
from tests.support.wait import eventually, until


async def ask(stub: CatalogAsyncStub) -> str:
    """One call; who served it."""
    call = stub.GetProduct(GetProductRequest(sku="moka-3"))
    await call
    return await served_by(call)


async def test_a_server_reports_its_load(shop: Shop) -> None:
    """Calls of its business carry how busy it is; what tools ask, such as Describe, does not."""
    clock = FakeClock()
    load = LoadReporter(clock=clock, cpu=lambda: clock() / 4)
    channel = await shop.channel(await shop.start("catalog", load=load))
    for _ in range(9):
        await CatalogStub(channel).GetProduct(GetProductRequest(sku="moka-3"))
    clock.advance(2.0)
    call = CatalogStub(channel).GetProduct(GetProductRequest(sku="moka-3"))
    await call
    reported = dict(await call.trailing_metadata() or ())[REPORT_KEY]
    assert isinstance(reported, bytes)
    assert decode(reported) == lb.LoadReport(cpu_utilization=0.25, qps=5)
    told = RuntimeStub(channel).Describe(DescribeRequest())
    await told
    assert REPORT_KEY not in dict(await told.trailing_metadata() or ())


async def test_calls_are_shared_by_the_reported_load(shop: Shop) -> None:
    """Two instances answered equally many calls: the one that is used a third as much gets three times the calls."""
    clock = FakeClock()
    for name, used in (("catalog-1", 0.9), ("catalog-2", 0.3)):
        load = LoadReporter(application=lambda used=used: used, clock=clock, cpu=lambda: 0.0)  # type: ignore[misc]
        stub = CatalogStub(await shop.channel(await shop.start("catalog", instance_id=name, load=load)))
        for _ in range(20):
            await ask(stub)
    clock.advance(1.0)
    addresses = ",".join(instance.address for instance in shop.all)
    async with lb.aio.channel(
        f"static:///{addresses}", policy=lb.Orca(blackout_s=0, update_s=0.1), retry=False
    ) as channel:
        stub = CatalogStub(channel)

        async def shared() -> bool:
            counts = Counter([await ask(stub) for _ in range(40)])
            return counts["catalog-2"] == 3 * counts["catalog-1"]

        await until(shared, within_s=60, what="three times the calls")


async def test_a_slower_instance_reports_so_and_gets_fewer_calls(shop: Shop) -> None:
    """By what it measures of itself, with nothing set: two instances, of which one takes 30 ms longer for a call."""
    slow = await shop.start("catalog", instance_id="catalog-slow")
    shop.faults.pop("catalog").slow_s = 0.03
    fast = await shop.start("catalog", instance_id="catalog-fast")
    counts: Counter[str] = Counter()

    async with lb.aio.channel(
        f"static:///{slow.address},{fast.address}", policy=lb.Orca(blackout_s=0, update_s=0.1), retry=False
    ) as channel:
        stub = CatalogStub(channel)

        async def caller() -> None:
            while True:
                counts[await ask(stub)] += 1

        callers = [asyncio.create_task(caller()) for _ in range(6)]

        async def shared() -> bool:
            counts.clear()
            await eventually(lambda: counts.total() >= 100)
            return counts["catalog-fast"] > 2 * counts["catalog-slow"]

        try:
            await until(shared, within_s=60, what="the fast one gets more than twice the calls")
        finally:
            for task in callers:
                task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
