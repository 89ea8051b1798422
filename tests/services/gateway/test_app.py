"""The gateway's HTTP interface in front of scripted services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from lb.core.outcome import PUSHBACK_KEY
from services.runtime.errors import (
    CallError,
    already_exists,
    bad_request,
    not_found,
    precondition,
    unavailable,
)
from tests.services.gateway.conftest import Bench, instance
from tests.support.wait import longer

ORDER = {"items": [{"sku": "tea", "quantity": 2}, {"sku": "cup", "quantity": 1}]}


def failing(error: CallError) -> Callable[[Any], Any]:
    """A script that ends each call with this error."""

    async def script(request: Any) -> None:
        raise error

    return script


async def test_an_order(bench: Bench) -> None:
    """201 with its place, who served it and a trace id, which is that of the span of the request."""
    answer = await bench.client.post("/api/orders", json={**ORDER, "idempotency_key": "k-1"})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/orders/o-1"
    body = answer.json()
    assert body["order_id"] == "o-1"
    assert body["served_by"] == {"catalog": "catalog-2", "orders": "orders-2", "payments": "payments-1"}
    request = bench.shop.seen[0]
    assert [(item.sku, item.quantity) for item in request.items] == [("tea", 2), ("cup", 1)]
    assert request.idempotency_key == "k-1"
    (span,) = bench.spans.get_finished_spans()
    assert span.name == "POST /api/orders"
    assert span.context is not None
    assert body["trace_id"] == f"{span.context.trace_id:032x}"
    (listed,) = (await bench.client.get("/api/orders")).json()["orders"]
    assert (listed["order_id"], listed["trace_id"]) == ("o-1", body["trace_id"])


async def test_a_key_is_made_when_there_is_none(bench: Bench) -> None:
    """Two orders without a key are two orders."""
    for _ in range(2):
        assert (await bench.client.post("/api/orders", json=ORDER)).status_code == 201
    first, second = (request.idempotency_key for request in bench.shop.seen)
    assert first
    assert first != second


async def test_get_an_order(bench: Bench) -> None:
    """An order has its items and exact money; an unknown one is 404 and says which field."""
    body = (await bench.client.get("/api/orders/o-1")).json()
    assert body["state"] == "CONFIRMED"
    assert body["total"] == {"currency_code": "EUR", "units": 4, "nanos": 500_000_000}
    assert body["items"][0]["sku"] == "tea"
    assert body["created_at"] == "2026-11-23T10:00:00Z"
    for order_id in ("o-2", "x" * 200, "%0a"):
        answer = await bench.client.get(f"/api/orders/{order_id}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["errors"][0]["field"] == "order_id"


async def test_products_of_all_pages_with_stock(bench: Bench) -> None:
    """Catalog and inventory joined; what the inventory does not know has no stock."""
    body = (await bench.client.get("/api/products")).json()
    assert [(product["sku"], product["stock"]) for product in body["products"]] == [
        ("coffee", 10),
        ("cup", 0),
        ("tea", 10),
    ]
    assert body["products"][0]["price"]["units"] == 4


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (bad_request([("items[0].sku", "is strange")]), 400, "items[0].sku"),
        (not_found("product", "cup"), 404, "items[1].sku"),
        (precondition([("STOCK", "cup", "1 is wanted, 0 are there")]), 409, "items[1].quantity"),
        (precondition([("PAYMENT", "p-1", "card_declined")]), 402, None),
        (already_exists("order", "k", "another request"), 409, "idempotency_key"),
        (CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down"), 429, None),
        (unavailable("payments is away"), 503, None),
        (CallError(grpc.StatusCode.CANCELLED, "gone"), 503, None),
        (CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), 504, None),
        (CallError(grpc.StatusCode.INTERNAL, "secret words"), 502, None),
    ],
)
async def test_what_a_service_says_in_http(bench: Bench, error: CallError, status: int, field: str | None) -> None:
    """Each gRPC status has one HTTP status, as a problem document that names the field and the trace."""
    bench.shop.script = failing(error)
    answer = await bench.client.post("/api/orders", json=ORDER)
    body = answer.json()
    assert answer.status_code == body["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["instance"] == "/api/orders"
    assert len(body["trace_id"]) == 32
    assert "secret" not in answer.text
    assert [each["field"] for each in body.get("errors", [])] == ([field] if field else [])
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_retry_after_is_what_the_service_asks_for(bench: Bench) -> None:
    """google.rpc.RetryInfo becomes whole seconds."""
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(2100)
    bench.shop.script = failing(CallError(grpc.StatusCode.UNAVAILABLE, "busy", [info]))
    answer = await bench.client.post("/api/orders", json=ORDER)
    assert answer.headers["retry-after"] == "3"


async def test_retry_after_is_what_a_full_service_asks_for(bench: Bench) -> None:
    """Its push-back, of the last instance that refused the call; a second where it says "not again", or nonsense."""
    for pushback, told in (("3500", "4"), ("0", "1"), ("-1", "1"), ("soon", "1")):
        trailers = ((PUSHBACK_KEY, pushback),)
        bench.shop.script = failing(CallError(grpc.StatusCode.UNAVAILABLE, "full", trailers=trailers))
        answer = await bench.client.get("/api/products")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, told)


async def test_the_deadline_travels_and_ends_in_504(bench: Bench) -> None:
    """A call has 5 s, or what the header asks for; a service that hangs is 504 in that time."""
    assert (await bench.client.get("/api/orders/o-1")).status_code == 200
    assert 2 < bench.shop.timeouts[0] <= 5.1

    async def hang(request: Any) -> None:
        await asyncio.Event().wait()

    bench.shop.script = hang
    for wanted in longer(0.2):
        answer = await bench.client.get("/api/orders/o-1", headers={"Request-Timeout": f"{wanted:g}"})
        assert answer.status_code == 504
        if len(bench.shop.timeouts) > 1:
            break  # else it had not reached the service in that time
    assert bench.shop.timeouts[1] <= wanted + 0.1
    for text in ("soon", "0", "-1", "nan", "inf"):
        answer = await bench.client.get("/api/orders/o-1", headers={"Request-Timeout": text})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "Request-Timeout"


async def test_a_client_that_hangs_up_cancels_its_call(bench: Bench) -> None:
    """The service sees the cancellation; nobody works for somebody who is gone."""
    reached = asyncio.Event()

    async def hang(request: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    bench.shop.script = hang
    _, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    body = b'{"items": [{"sku": "tea", "quantity": 1}]}'
    writer.write(
        b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    async with asyncio.timeout(30):
        await reached.wait()
        writer.close()
        await writer.wait_closed()
        await bench.shop.cancelled.wait()


async def test_what_is_not_there_is_a_problem_too(bench: Bench) -> None:
    """Unknown paths, wrong methods and wrong types are problem documents with the usual headers."""
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/api/orders/", 404),
        ("DELETE", "/api/orders", 405),
        ("POST", "/api/products", 405),
    ):
        answer = await bench.client.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert (status == 405) == ("allow" in answer.headers)
    answer = await bench.client.request("DELETE", "/api/orders")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    for headers in ({"Content-Type": "text/xml"}, {"Content-Type": "text/plain", "Origin": "http://elsewhere.test"}):
        answer = await bench.client.post("/api/orders", content=b'{"items": []}', headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["detail"]
    # `curl -d` calls everything a form
    answer = await bench.client.post(
        "/api/orders", content=b"[]", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == 400
    answer = await bench.client.post("/api/orders", content=b"[]", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


async def test_only_the_shop_is_traced(bench: Bench) -> None:
    """Looking at the page, the mesh, traces and health leaves no spans."""
    for path in ("/", "/api/mesh", "/api/orders", f"/api/traces/{'1' * 32}", "/healthz", "/nothing"):
        await bench.client.get(path)
    await bench.client.post("/v1/traces", content=b"", headers={"Content-Type": "application/x-protobuf"})
    assert not bench.spans.get_finished_spans()
    await bench.client.get("/api/orders/o-1")
    await bench.client.get("/api/products")
    names = [span.name for span in bench.spans.get_finished_spans()]
    assert names == ["GET /api/orders/{order_id}", "GET /api/products"]


async def test_a_trace_goes_on(bench: Bench) -> None:
    """A caller's traceparent is the parent of the gateway's span."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    body = (await bench.client.post("/api/orders", json=ORDER, headers=headers)).json()
    assert body["trace_id"] == trace_id


async def test_health_tells_starting_ready_and_leaving(bench: Bench) -> None:
    """503 until each service has been there once, then 200 whatever becomes of them, 503 again when leaving."""
    answer = await bench.client.get("/healthz")
    assert answer.status_code == 503
    assert "catalog" in answer.json()["detail"]
    for name in ("catalog", "inventory", "orders", "payments"):
        bench.registered[name] = [instance("shop-1", bench.shop_address)]
    bench.topology.expire()
    assert (await bench.client.get("/healthz")).status_code == 200
    bench.registered.clear()
    bench.topology.expire()
    assert (await bench.client.get("/healthz")).status_code == 200
    bench.gateway.leaving = True
    assert (await bench.client.get("/healthz")).status_code == 503


async def test_health_does_not_depend_on_being_asked(bench: Bench) -> None:
    """The gateway looks for the services itself: once each was there, the first to ask is told so."""
    for name in ("catalog", "inventory", "orders", "payments"):
        bench.registered[name] = [instance("shop-1", bench.shop_address)]
    async with asyncio.timeout(30):
        await bench.gateway.start()
    bench.registered.clear()
    assert (await bench.client.get("/healthz")).status_code == 200


async def test_the_page_loads_nothing_from_elsewhere(bench: Bench) -> None:
    """One file, no address of another server in it."""
    answer = await bench.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text
    assert "https://" not in text
    assert "connect-src 'self'" in answer.headers["content-security-policy"]


async def test_a_bug_is_a_problem_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised inside comes out as 500 without its words."""

    async def broken() -> dict[str, object]:
        raise RuntimeError("secret words")

    monkeypatch.setattr(bench.topology, "get", broken)
    answer = await bench.client.get("/api/mesh")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
