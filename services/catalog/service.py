"""mesh.catalog.v1.Catalog."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator

import grpc

from mesh.catalog.v1 import (
    CatalogServicer,
    GetProductRequest,
    GetProductResponse,
    ListProductsRequest,
    ListProductsResponse,
    SearchProductsRequest,
    SearchProductsResponse,
    add_CatalogServicer_to_server,
)
from services.catalog.store import Store, metadata
from services.runtime.errors import not_found
from services.runtime.host import Host, Service
from services.shop.checks import Checks

_PAGE = 50
_LARGEST_PAGE = 200
_LONGEST_QUERY = 200


class Catalog(CatalogServicer):
    """What the shop sells. The contract stands in protos/mesh/catalog/v1."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetProduct(
        self, request: GetProductRequest, context: grpc.aio.ServicerContext[GetProductRequest, GetProductResponse]
    ) -> GetProductResponse:
        """One product."""
        checks = Checks()
        checks.sku("sku", request.sku)
        checks.done()
        product = await self._store.get(request.sku)
        if product is None:
            raise not_found("product", request.sku)
        return GetProductResponse(product=product)

    async def ListProducts(
        self, request: ListProductsRequest, context: grpc.aio.ServicerContext[ListProductsRequest, ListProductsResponse]
    ) -> ListProductsResponse:
        """A page of products."""
        checks = Checks()
        checks.within("page_size", request.page_size, 0, _LARGEST_PAGE)
        after = _after(request.page_token)
        if after is None:
            checks.fail("page_token", "is not a page token from this method")
        checks.done()
        size = request.page_size or _PAGE
        found = await self._store.page(after or "", size + 1)
        more = _token(found[size - 1].sku) if len(found) > size else ""
        return ListProductsResponse(products=found[:size], next_page_token=more)

    async def SearchProducts(
        self,
        request: SearchProductsRequest,
        context: grpc.aio.ServicerContext[SearchProductsRequest, SearchProductsResponse],
    ) -> AsyncIterator[SearchProductsResponse]:
        """The products that match."""
        checks = Checks()
        words = request.query.lower().split()
        if not words:
            checks.fail("query", "is required")
        elif len(request.query) > _LONGEST_QUERY:
            checks.fail("query", f"has {len(request.query)} characters; at most {_LONGEST_QUERY} are accepted")
        checks.within("limit", request.limit, 0, _LARGEST_PAGE)
        checks.done()
        for product in (await self._store.search(words))[: request.limit or _PAGE]:
            yield SearchProductsResponse(product=product)


def _token(sku: str) -> str:
    return base64.urlsafe_b64encode(f"1:{sku}".encode()).decode()


def _after(token: str) -> str | None:
    """The sku that a page token stands for; None when it is none of ours."""
    if not token:
        return ""
    try:
        version, colon, sku = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return sku if (version, colon) == ("1", ":") and sku else None


async def build(host: Host) -> Service:
    """The service on its database."""
    database = await host.database(metadata)
    store = Store(database)
    await store.seed()
    return Service(
        add=lambda server: add_CatalogServicer_to_server(Catalog(store), server),
        checks={"database": database.ping},
    )
