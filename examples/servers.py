"""The servers that other examples call: a Consul agent for this machine, and three servers of a catalog.

::

    python examples/servers.py              # Ctrl-C stops it

Two of the servers are faulty, so that there is something to see: catalog-1 refuses every second
call, catalog-2 takes a quarter of a second for each call. catalog-3 works normally.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2_grpc

import lb
from lb.testing import Agent
from mesh.catalog.v1 import (
    CatalogServicer,
    GetProductRequest,
    GetProductResponse,
    ListProductsRequest,
    ListProductsResponse,
    Product,
    SearchProductsRequest,
    SearchProductsResponse,
    add_CatalogServicer_to_server,
)
from mesh.common.v1 import Money

PRODUCTS = {
    "espresso": Product(sku="espresso", name="Espresso, 250 g", price=Money(currency_code="EUR", units=9)),
    "filter": Product(sku="filter", name="Filter coffee, 500 g", price=Money(currency_code="EUR", units=12)),
}


class Catalog(CatalogServicer):
    """Two products."""

    def __init__(self, *, refuses_every: int = 0, takes_s: float = 0.0) -> None:
        self.refuses_every = refuses_every
        self.takes_s = takes_s
        self.calls = itertools.count(1)

    async def GetProduct(
        self, request: GetProductRequest, context: grpc.aio.ServicerContext[GetProductRequest, GetProductResponse]
    ) -> GetProductResponse:
        """One product; NOT_FOUND if it does not exist."""
        if self.refuses_every and next(self.calls) % self.refuses_every == 0:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        await asyncio.sleep(self.takes_s)
        product = PRODUCTS.get(request.sku)
        if product is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no product {request.sku!r}")
        return GetProductResponse(product=product)

    async def ListProducts(
        self, request: ListProductsRequest, context: grpc.aio.ServicerContext[ListProductsRequest, ListProductsResponse]
    ) -> ListProductsResponse:
        """All products."""
        return ListProductsResponse(products=PRODUCTS.values())

    async def SearchProducts(
        self,
        request: SearchProductsRequest,
        context: grpc.aio.ServicerContext[SearchProductsRequest, SearchProductsResponse],
    ) -> AsyncIterator[SearchProductsResponse]:
        """Products whose name contains the words, one by one."""
        for product in PRODUCTS.values():
            if request.query.lower() in product.name.lower():
                yield SearchProductsResponse(product=product)


@asynccontextmanager
async def running(name: str, catalog: Catalog, consul: str) -> AsyncIterator[None]:
    """A server that is registered in Consul while the block lasts."""
    # `incoming`: calls that a handler makes through an lb channel inherit its deadline and cancellation.
    server = grpc.aio.server(interceptors=[lb.aio.incoming()], options=[("grpc.so_reuseport", 0)])
    add_CatalogServicer_to_server(catalog, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # Consul's check asks it
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    # The server answers already, so its check may start as passing.
    async with lb.aio.registration(
        "catalog", address=f"127.0.0.1:{port}", id=name, consul=consul, status="passing"
    ) as registration:
        yield
        await registration.drain()  # no new calls; in production, wait a second here until clients have noticed
    await server.stop(grace=1)


async def main(port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with (
        Agent(port=port) as agent,
        running("catalog-1", Catalog(refuses_every=2), agent.address),
        running("catalog-2", Catalog(takes_s=0.25), agent.address),
        running("catalog-3", Catalog(), agent.address),
    ):
        print(f"CONSUL_HTTP_ADDR={agent.address}", flush=True)
        await done.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A Consul, and three servers of a catalog.")
    parser.add_argument("--port", type=int, default=8500, help="Consul's port; 0 takes a free one (default 8500)")
    asyncio.run(main(parser.parse_args().port))
