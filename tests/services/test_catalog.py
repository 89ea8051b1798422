"""mesh.catalog.v1.Catalog over a real socket."""

from __future__ import annotations

import grpc

from mesh.catalog.v1 import (
    CatalogStub,
    GetProductRequest,
    ListProductsRequest,
    Product,
    SearchProductsRequest,
)
from services.shop.assortment import ASSORTMENT
from tests.services.conftest import Serve, Shop, fields, refused


async def test_get_product(serve: Serve) -> None:
    """A product comes with its price as units and nanos, and the instance says who it is in the trailers."""
    catalog = CatalogStub(await serve("catalog"))
    call = catalog.GetProduct(GetProductRequest(sku="moka-3"))
    product = (await call).product
    assert (product.sku, product.category) == ("moka-3", "brewing")
    assert (product.price.currency_code, product.price.units, product.price.nanos) == ("EUR", 29, 900_000_000)
    assert ("mesh-instance-id", "catalog-1") in list(await call.trailing_metadata() or ())
    assert not list(await call.initial_metadata())


async def test_unknown_product(serve: Serve) -> None:
    """An unknown sku is NOT_FOUND and named."""
    error = await refused(CatalogStub(await serve("catalog")).GetProduct(GetProductRequest(sku="no-such-thing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "no-such-thing" in (error.details() or "")


async def test_bad_requests_name_their_fields(serve: Serve) -> None:
    """Each bad field of each method is named by a BadRequest."""
    catalog = CatalogStub(await serve("catalog"))
    assert fields(await refused(catalog.GetProduct(GetProductRequest()))) == ["sku"]
    assert fields(await refused(catalog.GetProduct(GetProductRequest(sku="Ä b")))) == ["sku"]
    bad = ListProductsRequest(page_size=-1, page_token="made up")
    assert fields(await refused(catalog.ListProducts(bad))) == ["page_size", "page_token"]
    assert fields(await refused(catalog.ListProducts(ListProductsRequest(page_size=201)))) == ["page_size"]
    bad_search = SearchProductsRequest(query="  ", limit=201)
    assert fields(await refused(catalog.SearchProducts(bad_search))) == ["query", "limit"]
    assert fields(await refused(catalog.SearchProducts(SearchProductsRequest(query="x" * 201)))) == ["query"]


async def test_pages_cover_everything_once(serve: Serve) -> None:
    """Pages of any size, put together, are the assortment in the order of the sku."""
    catalog = CatalogStub(await serve("catalog"))
    everything = sorted(item.sku for item in ASSORTMENT)
    for size in (1, 7, len(everything), 200):
        found: list[Product] = []
        token = ""
        while True:
            page = await catalog.ListProducts(ListProductsRequest(page_size=size, page_token=token))
            assert len(page.products) <= size
            found += page.products
            token = page.next_page_token
            if not token:
                break
            assert len(page.products) == size
        assert [product.sku for product in found] == everything


async def test_search_ranks_names_first(serve: Serve) -> None:
    """Every word must be there; a product that has it in its name comes before one that only describes it."""
    catalog = CatalogStub(await serve("catalog"))

    async def search(query: str, limit: int = 0) -> list[str]:
        call = catalog.SearchProducts(SearchProductsRequest(query=query, limit=limit))
        return [answer.product.sku async for answer in call]

    assert await search("MOKA pot") == ["moka-3", "moka-6"]
    assert await search("moka", limit=1) == ["moka-3"]
    honey = await search("honey")
    assert honey == ["honey-linden-500"]
    matcha = await search("matcha")
    assert set(matcha[:2]) == {"bowl-matcha", "matcha-30"}
    assert "whisk-bamboo" in matcha[2:]
    assert await search("100%_") == []
    assert await search("no-such-word") == []


async def test_seeding_twice_changes_nothing(shop: Shop) -> None:
    """A second instance on the same database finds the assortment and adds nothing."""
    first = CatalogStub(await shop.channel(await shop.start("catalog")))
    before = await first.ListProducts(ListProductsRequest(page_size=200))
    second = CatalogStub(await shop.channel(await shop.start("catalog", instance_id="catalog-2")))
    assert await second.ListProducts(ListProductsRequest(page_size=200)) == before
    assert len(before.products) == len(ASSORTMENT)
