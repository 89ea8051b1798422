"""The whole mesh with a real Consul, a real Jaeger and real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from tests.support import consul, jaeger, mesh
from tests.support.jaeger import Jaeger, Span
from tests.support.mesh import Mesh
from tests.support.wait import until

pytestmark = [pytest.mark.consul, pytest.mark.jaeger, pytest.mark.alone]

WEIGHTS = {"catalog-1": 1, "catalog-2": 2, "catalog-3": 5}
ACTS_S = 5.0  # 2 s are promised, on a machine that does nothing else


@pytest.fixture(scope="module")
async def tracing() -> AsyncIterator[Jaeger]:
    """A Jaeger for this module."""
    async with jaeger.running() as server:
        yield server


@pytest.fixture(scope="module")
async def registry() -> AsyncIterator[consul.Consul]:
    """A Consul for this module."""
    async with consul.running() as server:
        yield server


@pytest.fixture(scope="module")
async def shop(
    registry: consul.Consul, tracing: Jaeger, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mesh]:
    """The demo's mesh on these two. Every test leaves it whole."""
    async with mesh.running(
        tmp_path_factory.mktemp("mesh") / "output",
        CONSUL_HTTP_ADDR=registry.url,
        OTEL_EXPORTER_OTLP_ENDPOINT=tracing.otlp,
        MESH_JAEGER_QUERY=tracing.query,
    ) as running:
        yield running


class Buyers:
    """Place orders at once, and keep what came of each."""

    def __init__(self, shop: Mesh, sku: str) -> None:
        self._shop = shop
        self._sku = sku
        self.placed: list[dict[str, Any]] = []
        self.failed: list[str] = []

    async def buy(self, count: int, at_once: int = 8) -> None:
        """So many orders, a few in flight at any moment."""
        orders = iter(range(count))
        await asyncio.gather(*(self._each(orders.__next__) for _ in range(at_once)))

    async def _each(self, take: Callable[[], int]) -> None:
        while True:
            try:
                take()
            except StopIteration:
                return
            await self.one()

    async def one(self) -> None:
        """One order."""
        answer = await self._shop.order(self._sku)
        if answer.status_code == 201:
            self.placed.append(answer.json())
        else:
            self.failed.append(f"{answer.status_code} {answer.text}")


@pytest.fixture
async def buyers(shop: Mesh) -> Buyers:
    """Buyers of the product of which there is most."""
    return Buyers(shop, await shop.best_stocked())


async def catalog_calls(shop: Mesh) -> Counter[str]:
    """How many calls each instance of the catalog has served, read after the last answer was cached."""
    await asyncio.sleep(1.1)  # /api/mesh may be a second old
    return Counter({each["id"]: each["calls"] for each in await shop.instances("catalog")})


def follow(served: Counter[str], weights: dict[str, int], orders: int) -> None:
    """The shares are those of the weights, within 2 percentage points.

    On a machine that is overloaded attempts run out of time, and the next ones go elsewhere: each may be one more.
    """
    extra = served.total() - orders  # a few are the load generator's
    slack = extra / served.total() if extra > 0.05 * orders else 0.0
    for instance, weight in weights.items():
        assert served[instance] / served.total() == pytest.approx(weight / 8, abs=0.02 + slack), served


async def test_weights_share_the_calls(shop: Mesh, buyers: Buyers) -> None:
    """1:2:5 within 2 percentage points, over a thousand orders."""
    before = await catalog_calls(shop)
    await buyers.buy(1000)
    served = await catalog_calls(shop) - before
    assert buyers.failed == []
    assert served.total() >= 1000
    follow(served, WEIGHTS, 1000)


async def test_a_weight_changed_in_consul_acts_soon(shop: Mesh, buyers: Buyers, registry: consul.Consul) -> None:
    """Weights 1 and 5 trade places in Consul; soon the calls follow, in the new proportions."""
    loop = asyncio.get_running_loop()
    await registry.set_weight("catalog-3", 1)
    await registry.set_weight("catalog-1", 5)
    changed = loop.time()
    try:
        while True:
            seen = len(buyers.placed)
            began = loop.time()
            await buyers.buy(24)
            share = Counter(order["served_by"]["catalog"] for order in buyers.placed[seen:])
            if share["catalog-1"] >= 12:
                break
            assert began - changed < ACTS_S, f"{ACTS_S:g} s after the change the calls still go to {share}"
        before = await catalog_calls(shop)
        await buyers.buy(400)
        served = await catalog_calls(shop) - before
        follow(served, {"catalog-1": 5, "catalog-2": 2, "catalog-3": 1}, 400)
    finally:
        for instance, weight in WEIGHTS.items():
            await registry.set_weight(instance, weight)
    assert buyers.failed == []


async def test_two_thousand_orders_while_catalogs_are_killed(shop: Mesh, buyers: Buyers) -> None:
    """Instances of the catalog are killed one after the other and come back; no order fails."""
    deaths = 0
    buying = asyncio.create_task(buyers.buy(2000))
    try:
        while not buying.done():
            for instance in WEIGHTS:
                pid = await passing_pid(shop, instance)
                os.kill(pid, signal.SIGKILL)
                deaths += 1
                await until(lambda: another_pid(shop, instance, pid), within_s=90, what=f"{instance} is back")  # noqa: B023 - awaited here
                if buying.done():
                    break
        await buying
    finally:
        buying.cancel()
        await asyncio.wait([buying])
    assert buyers.failed == [], shop.last_words()
    assert len(buyers.placed) == 2000
    assert deaths >= 3


async def passing_pid(shop: Mesh, instance: str) -> int:
    """The process of an instance that is passing."""

    async def ask() -> int:
        for each in await shop.instances("catalog"):
            if each["id"] == instance and each["health"] == "passing":
                pid: int = each["pid"]
                return pid
        return 0

    return await until(ask, within_s=60, what=f"{instance} is passing")


async def another_pid(shop: Mesh, instance: str, pid: int) -> bool:
    """Whether the instance is passing as another process."""
    return any(
        each["id"] == instance and each["health"] == "passing" and each["pid"] != pid
        for each in await shop.instances("catalog")
    )


@pytest.mark.leaks("the module's Consul is another process afterwards")
async def test_consul_restarted_empty(shop: Mesh, buyers: Buyers, registry: consul.Consul) -> None:
    """A Consul that forgot everything is told everything within 5 s, and no call fails meanwhile."""
    known = await registry.instances()
    assert len(known) >= 9
    stop = asyncio.Event()

    async def keep_buying() -> None:
        while not stop.is_set():
            await buyers.one()

    buying = [asyncio.create_task(keep_buying()) for _ in range(4)]
    try:
        await registry.kill()
        placed = len(buyers.placed)
        await until(lambda: more(buyers, placed + 20), within_s=60, what="orders go through without a Consul")
        await registry.start()

        async def all_back() -> bool:
            return await registry.instances() >= known

        await until(all_back, within_s=30, what=f"all of {sorted(known)} are registered again")
        placed = len(buyers.placed)
        await until(lambda: more(buyers, placed + 100), within_s=90, what="orders go on")
        await until(shop.whole, within_s=60, what="all pass again", every_s=0.2)
    finally:
        stop.set()
        await asyncio.gather(*buying)
    assert buyers.failed == [], shop.last_words()


async def more(buyers: Buyers, count: int) -> bool:
    """Whether so many orders have gone through."""
    return len(buyers.placed) >= count


class Refusing(grpc.GenericRpcHandler):
    """A server that fails every unary call before it did anything, and serves no health to watch."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """One handler for all methods."""
        if details.method.startswith("/grpc.health."):
            return None
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "refused by the test")
        return b""


async def test_the_trace_of_an_order_shows_the_retry(
    shop: Mesh, buyers: Buyers, registry: consul.Consul, tracing: Jaeger
) -> None:
    """All five services, a span for each call with its attempts below, and the attempt that failed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([Refusing()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await registry.register("catalog", "catalog-refusing", "127.0.0.1", port, weight=8)
    try:

        async def retried() -> list[Span]:
            await buyers.one()
            trace_id = buyers.placed[-1]["trace_id"]
            spans = await until(
                lambda: whole_trace(shop, tracing, trace_id), within_s=60, what=f"trace {trace_id} is whole"
            )
            return spans if any(attempt.failed for attempt in attempts(spans)) else []

        spans = await until(retried, within_s=180, what="an order met the instance that refuses")
    finally:
        await registry.deregister("catalog-refusing")
        await server.stop(None)
    assert buyers.failed == []

    failed = next(attempt for attempt in attempts(spans) if attempt.failed)
    assert failed.tags["lb.endpoint.id"] == "catalog-refusing"
    call = next(span for span in spans if span.span_id == failed.parent_id)
    assert call.name.startswith("Sent.mesh.catalog.v1.Catalog/")
    assert not call.failed
    tries = sorted((a for a in attempts(spans) if a.parent_id == call.span_id), key=lambda a: a.tags["lb.attempt"])
    assert [attempt.tags["lb.attempt"] for attempt in tries] == list(range(1, len(tries) + 1))
    assert [attempt.failed for attempt in tries] == [True] * (len(tries) - 1) + [False]
    assert tries[-1].tags["lb.retry.reason"]
    assert tries[-1].tags["lb.endpoint.id"] != "catalog-refusing"
    # One tree: every parent is there, and only the gateway's span has none.
    ids = {span.span_id for span in spans}
    assert [span.service for span in spans if span.parent_id not in ids] == ["gateway"]


def attempts(spans: list[Span]) -> list[Span]:
    """The spans of attempts."""
    return [span for span in spans if span.name.startswith("Attempt.")]


async def whole_trace(shop: Mesh, tracing: Jaeger, trace_id: str) -> list[Span]:
    """The trace's spans, once all five services have sent theirs and no parent is missing."""
    spans = await tracing.trace(shop.client, trace_id)
    ids = {span.span_id for span in spans}
    orphans = [span for span in spans if span.parent_id not in ids]
    services = {span.service for span in spans}
    return spans if services == {"gateway", *mesh.IN_AN_ORDER} and len(orphans) == 1 else []
