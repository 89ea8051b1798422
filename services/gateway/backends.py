"""The services behind the gateway, and how their answers look in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc.aio

from mesh.catalog.v1 import CatalogStub, ListProductsRequest, Product
from mesh.common.v1 import Money
from mesh.inventory.v1 import BatchGetStockRequest, InventoryStub
from mesh.orders.v1 import GetOrderRequest, Order, OrderItem, OrdersStub, OrderState, PlaceOrderRequest
from services.gateway.bodies import OrderForm
from services.gateway.problems import Problem, from_rpc
from services.runtime.channels import served_by

if TYPE_CHECKING:
    from mesh.catalog.v1 import CatalogAsyncStub
    from mesh.inventory.v1 import InventoryAsyncStub
    from mesh.orders.v1 import OrdersAsyncStub

_PAGE = 200
_MOST_PAGES = 50
_MOST_SKUS = 1000


class Backends:
    """Orders, catalog and inventory as the gateway uses them.

    Every method raises ``Problem``, and answers plain JSON values. No call has a timeout of its own: the block
    of `lb.deadline` around the request's work bounds them all, and that of `lb.priority` says how important they are.
    """

    def __init__(self, orders: grpc.aio.Channel, catalog: grpc.aio.Channel, inventory: grpc.aio.Channel) -> None:
        self._orders: OrdersAsyncStub = OrdersStub(orders)
        self._catalog: CatalogAsyncStub = CatalogStub(catalog)
        self._inventory: InventoryAsyncStub = InventoryStub(inventory)

    async def place_order(self, form: OrderForm, idempotency_key: str) -> dict[str, object]:
        """Buy. ``served_by`` names the instance of each service that had a part in it."""
        request = PlaceOrderRequest(
            items=[OrderItem(sku=item.sku, quantity=item.quantity) for item in form.items],
            idempotency_key=idempotency_key,
        )
        with _translated("orders", form.fields()):
            call = self._orders.PlaceOrder(request)
            answer = await call
            instance = await served_by(call)
        instances = {**answer.served_by, "orders": instance} if instance else dict(answer.served_by)
        order = order_json(answer.order)
        return {
            "order_id": order["order_id"],
            "state": order["state"],
            "total": order["total"],
            "served_by": dict(sorted(instances.items())),
        }

    async def get_order(self, order_id: str) -> dict[str, object]:
        """One order."""
        with _translated("orders", {order_id: "order_id"}):
            answer = await self._orders.GetOrder(GetOrderRequest(order_id=order_id))
        return order_json(answer.order)

    async def products(self) -> list[dict[str, object]]:
        """The whole assortment with the stock of each product; what the inventory does not know has 0."""
        products: list[Product] = []
        request = ListProductsRequest(page_size=_PAGE)
        with _translated("catalog"):
            for _ in range(_MOST_PAGES):
                page = await self._catalog.ListProducts(request)
                products.extend(page.products)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
            else:
                raise Problem(502, f"catalog has more than {_PAGE * _MOST_PAGES} products")
        stock: dict[str, int] = {}
        skus = [product.sku for product in products]
        with _translated("inventory"):
            for start in range(0, len(skus), _MOST_SKUS):
                asked = BatchGetStockRequest(skus=skus[start : start + _MOST_SKUS])
                answer = await self._inventory.BatchGetStock(asked)
                stock.update((line.sku, line.quantity) for line in answer.stocks)
        return [
            {
                "sku": product.sku,
                "name": product.name,
                "price": money_json(product.price),
                "stock": stock.get(product.sku, 0),
            }
            for product in products
        ]


@contextmanager
def _translated(service: str, fields: Mapping[str, str] | None = None) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, service, fields) from error


def money_json(money: Money) -> dict[str, object]:
    """Money as in the contracts: ``{"currency_code": "EUR", "units": 4, "nanos": 500000000}``."""
    return {"currency_code": money.currency_code, "units": money.units, "nanos": money.nanos}


def order_json(order: Order) -> dict[str, object]:
    """An order; ``state`` is a word such as ``CONFIRMED``, ``failure`` is there only when it failed."""
    answer: dict[str, object] = {
        "order_id": order.order_id,
        "state": OrderState.Name(order.state).removeprefix("ORDER_STATE_"),
        "items": [
            {
                "sku": line.sku,
                "name": line.name,
                "quantity": line.quantity,
                "unit_price": money_json(line.unit_price),
                "line_total": money_json(line.line_total),
            }
            for line in order.lines
        ],
        "total": money_json(order.total),
        "created_at": order.created_at.ToJsonString(),
    }
    if order.failure:
        answer["failure"] = order.failure
    return answer
