"""A gateway on a real port in front of scripted gRPC services on real ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import ASGIApp, Receive, Scope, Send

import lb
from lb.aio.consul import ConsulError, Instance
from lb.server import Places
from mesh.catalog.v1 import CatalogServicer, ListProductsRequest, ListProductsResponse, Product
from mesh.catalog.v1 import add_CatalogServicer_to_server as add_catalog
from mesh.common.v1 import Money
from mesh.inventory.v1 import BatchGetStockRequest, BatchGetStockResponse, InventoryServicer, StockLine
from mesh.inventory.v1 import add_InventoryServicer_to_server as add_inventory
from mesh.orders.v1 import (
    GetOrderRequest,
    GetOrderResponse,
    Order,
    OrderLine,
    OrdersServicer,
    OrderState,
    PlaceOrderRequest,
    PlaceOrderResponse,
)
from mesh.orders.v1 import add_OrdersServicer_to_server as add_orders
from mesh.runtime.v1 import DescribeRequest, DescribeResponse, RuntimeServicer
from mesh.runtime.v1 import add_RuntimeServicer_to_server as add_runtime
from services.gateway.app import Gateway
from services.gateway.backends import Backends
from services.gateway.connection import Server, config
from services.gateway.limits import Bounds
from services.gateway.topology import Topology
from services.gateway.traces import TraceStore
from services.runtime.errors import not_found
from services.runtime.interceptors import INSTANCE_KEY, Boundary

EUR_4_50 = Money(currency_code="EUR", units=4, nanos=500_000_000)

Script = Callable[[Any], Awaitable[None]]


class Shop(OrdersServicer, CatalogServicer, InventoryServicer, RuntimeServicer):
    """Orders, catalog and inventory in one server. ``script`` runs first in each business method."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self.seen: list[Any] = []
        self.timeouts: list[float] = []
        self.priorities: list[str | None] = []
        self.cancelled = asyncio.Event()
        self.calls_total = 7

    async def _run(self, request: Any, context: Any) -> None:
        self.seen.append(request)
        self.timeouts.append(context.time_remaining())
        self.priorities.append(dict(context.invocation_metadata()).get("lb-priority"))
        if self.script is not None:
            try:
                await self.script(request)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def PlaceOrder(self, request: PlaceOrderRequest, context: Any) -> PlaceOrderResponse:
        """Sells everything at 4.50 EUR."""
        await self._run(request, context)
        order = Order(order_id="o-1", state=OrderState.ORDER_STATE_CONFIRMED, total=EUR_4_50)
        return PlaceOrderResponse(order=order, served_by={"catalog": "catalog-2", "payments": "payments-1"})

    async def GetOrder(self, request: GetOrderRequest, context: Any) -> GetOrderResponse:
        """Knows o-1."""
        await self._run(request, context)
        if request.order_id != "o-1":
            raise not_found("order", request.order_id)
        line = OrderLine(sku="tea", name="Tea", quantity=1, unit_price=EUR_4_50, line_total=EUR_4_50)
        order = Order(order_id="o-1", state=OrderState.ORDER_STATE_CONFIRMED, lines=[line], total=EUR_4_50)
        order.created_at.FromJsonString("2026-11-23T10:00:00Z")
        return GetOrderResponse(order=order)

    async def ListProducts(self, request: ListProductsRequest, context: Any) -> ListProductsResponse:
        """Three products on two pages."""
        await self._run(request, context)
        if not request.page_token:
            page = [Product(sku="coffee", name="Coffee", price=EUR_4_50), Product(sku="cup", name="Cup")]
            return ListProductsResponse(products=page, next_page_token="2")
        return ListProductsResponse(products=[Product(sku="tea", name="Tea", price=EUR_4_50)])

    async def BatchGetStock(self, request: BatchGetStockRequest, context: Any) -> BatchGetStockResponse:
        """Does not know the cup."""
        await self._run(request, context)
        stocks = [StockLine(sku=sku, quantity=10) for sku in request.skus if sku != "cup"]
        return BatchGetStockResponse(stocks=stocks)

    GetProduct: Any = None
    SearchProducts: Any = None
    Reserve: Any = None
    Release: Any = None
    ImportStock: Any = None
    WatchOrder: Any = None
    PriceBasket: Any = None

    async def Describe(self, request: DescribeRequest, context: Any) -> DescribeResponse:
        """Says that it is shop-1."""
        return DescribeResponse(instance_id="shop-1", pid=42, calls_total=self.calls_total)


@dataclass
class Bench:
    """What a test works with."""

    client: httpx2.AsyncClient
    port: int
    shop: Shop
    shop_address: str
    gateway: Gateway
    store: TraceStore
    spans: InMemorySpanExporter
    topology: Topology
    consul: Registered

    @property
    def registered(self) -> dict[str, Sequence[Instance]]:
        """The instances of each service, as Consul has them."""
        return self.consul.instances


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[int]:
    """Serves an application by uvicorn, as the gateway's process does."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(config(app, drain_s=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def instance(id: str, address: str, status: Any = "passing", weight: int = 1, **metadata: str) -> Instance:
    """An instance as Consul would tell it."""
    return Instance(lb.Endpoint(address, id=id, weight=weight, metadata=metadata), status, True, ("node", 1))


class Registered:
    """A Consul: the instances of each service, or ``error`` when it does not answer. ``asked`` counts questions."""

    def __init__(self) -> None:
        self.instances: dict[str, Sequence[Instance]] = {}
        self.error: ConsulError | None = None
        self.asked = 0

    async def __call__(self, service: str) -> Sequence[Instance]:
        """As `lb.aio.consul.Registry.instances`."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.instances.get(service, ())


class Switch:
    """An application that hands each request to the one of the test."""

    target: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on."""
        await self.target(scope, receive, send)


@dataclass
class Door:
    """The HTTP server of a module's tests: starting and stopping one takes a third of a second."""

    switch: Switch
    port: int


@pytest.fixture(scope="module")
async def door() -> AsyncIterator[Door]:
    """An HTTP server without an application yet."""
    switch = Switch()
    async with serve(switch) as port:
        yield Door(switch, port)


@pytest.fixture
async def bench(door: Door) -> AsyncIterator[Bench]:
    """A gateway in front of one scripted server."""
    shop = Shop()
    server = grpc.aio.server(interceptors=[Boundary(((INSTANCE_KEY, "orders-2"),))])
    for add in (add_orders, add_catalog, add_inventory, add_runtime):
        add(shop, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    consul = Registered()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        channel = await stack.enter_async_context(lb.aio.channel(f"static:///{address}", retry=False))
        topology = Topology(consul)
        stack.push_async_callback(topology.close)
        store = TraceStore()
        gateway = Gateway(Backends(channel, channel, channel), topology, store, store, provider=provider)
        door.switch.target = Bounds(gateway.asgi, Places())
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{door.port}", trust_env=False, timeout=60)
        )
        yield Bench(client, door.port, shop, address, gateway, store, spans, topology, consul)
    provider.shutdown()
