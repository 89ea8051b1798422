"""What an order may look like, and what is said about one that may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.bodies import Item, parse_order
from services.gateway.problems import Problem


def order(*items: Any, **more: Any) -> bytes:
    """An order as JSON."""
    return json.dumps({"items": list(items), **more}).encode()


TEA = {"sku": "tea", "quantity": 1}


def test_a_good_order() -> None:
    """Items and key come out as they went in, and each sku knows its field."""
    form = parse_order(order(TEA, {"sku": "cup-2", "quantity": 1000}, idempotency_key="k" * 128))
    assert form.items == (Item("tea", 1), Item("cup-2", 1000))
    assert form.idempotency_key == "k" * 128
    assert form.fields() == {"tea": "items[0].sku", "cup-2": "items[1].sku"}
    assert parse_order(order(TEA, idempotency_key=None)).idempotency_key is None


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (order(), ["items"]),
        (order(*[{"sku": f"s{n}", "quantity": 1} for n in range(101)]), ["items"]),
        (b"{}", ["items"]),
        (b'{"items": {}}', ["items"]),
        (b'{"items": null}', ["items"]),
        (order("tea"), ["items[0]"]),
        (order({}), ["items[0].sku", "items[0].quantity"]),
        (order({"sku": 7, "quantity": "1"}), ["items[0].sku", "items[0].quantity"]),
        (order({"sku": "", "quantity": 1}), ["items[0].sku"]),
        (order({"sku": "x" * 65, "quantity": 1}), ["items[0].sku"]),
        (order({"sku": "te\na", "quantity": 1}), ["items[0].sku"]),
        (b'{"items": [{"sku": "\\ud800", "quantity": 1}]}', ["items[0].sku"]),
        (order({"sku": "tea", "quantity": 0}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": -1}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": 1001}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": 10**30}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": True}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": 1.0}), ["items[0].quantity"]),
        (order({"sku": "tea", "quantity": None}), ["items[0].quantity"]),
        (order(TEA, TEA), ["items[1].sku"]),
        (order({**TEA, "price": 0}), ["items[0].price"]),
        (order(TEA, coupon="x"), ["coupon"]),
        (order(TEA, idempotency_key=""), ["idempotency_key"]),
        (order(TEA, idempotency_key="k" * 129), ["idempotency_key"]),
        (order(TEA, idempotency_key=5), ["idempotency_key"]),
        (order({"sku": "tea", "quantity": 0}, {"sku": 1, "quantity": 1}), ["items[0].quantity", "items[1].sku"]),
    ],
)
def test_a_bad_field_is_named(body: bytes, fields: list[str]) -> None:
    """400, and every field that is wrong is named with what is accepted."""
    with pytest.raises(Problem) as caught:
        parse_order(body)
    assert caught.value.status == 400
    assert [error.field for error in caught.value.errors] == fields
    assert all("expected" in error.detail for error in caught.value.errors)
    assert caught.value.response(instance="/api/orders").body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b'{"items": [',
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"items": [{"sku": "tea", "quantity": NaN}]}',
        b'{"items": [], "items": []}',
        b'{"items": [{"sku": "tea", "quantity": ' + b"9" * 5000 + b"}]}",
        b"[" * 60000,
    ],
)
def test_a_body_that_is_no_order(body: bytes) -> None:
    """400 with a reason in words, whatever the bytes."""
    with pytest.raises(Problem) as caught:
        parse_order(body)
    assert caught.value.status == 400
    assert caught.value.detail.startswith("the body")


@pytest.mark.parametrize("sku", ["NOPE", "no_such", "tea ", "été"])
def test_a_sku_that_no_product_can_have_is_unknown(sku: str) -> None:
    """It is 404 like every unknown sku: the contract's pattern is nobody's business here."""
    with pytest.raises(Problem) as caught:
        parse_order(order(TEA, {"sku": sku, "quantity": 1}))
    assert caught.value.status == 404
    assert [error.field for error in caught.value.errors] == ["items[1].sku"]
