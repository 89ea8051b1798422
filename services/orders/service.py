"""mesh.orders.v1.Orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from mesh.catalog.v1 import CatalogStub
from mesh.common.v1 import Money
from mesh.inventory.v1 import InventoryStub
from mesh.orders.v1 import (
    GetOrderRequest,
    GetOrderResponse,
    Order,
    OrderItem,
    OrderLine,
    OrdersServicer,
    PlaceOrderRequest,
    PlaceOrderResponse,
    PriceBasketRequest,
    PriceBasketResponse,
    WatchOrderRequest,
    WatchOrderResponse,
    add_OrdersServicer_to_server,
)
from mesh.payments.v1 import PaymentsStub
from services.orders import saga, store
from services.orders.dependencies import Stubs
from services.orders.saga import Saga
from services.orders.store import FAILED, FINAL, Line, Store, metadata
from services.runtime.errors import CallError, not_found
from services.runtime.host import Host, Service
from services.runtime.validation import LONGEST_ID
from services.shop import money
from services.shop.checks import Checks
from services.shop.limits import MOST_ITEMS, MOST_PIECES
from services.shop.moment import timestamp

# Time of a call whose caller set no deadline, and the most that any call gets.
_DEFAULT_S = 10.0
_LONGEST_S = 30.0

# How often a watched order is looked after: often at first, for most orders take a moment.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5


class Orders(OrdersServicer):
    """Sells. The contract stands in protos/mesh/orders/v1."""

    def __init__(self, orders: Store, placing: Saga) -> None:
        self._store = orders
        self._saga = placing

    async def PlaceOrder(
        self, request: PlaceOrderRequest, context: grpc.aio.ServicerContext[PlaceOrderRequest, PlaceOrderResponse]
    ) -> PlaceOrderResponse:
        """Price, reserve, authorize, capture."""
        checks = Checks()
        checks.identity("idempotency_key", request.idempotency_key)
        checks.goods("items", "item", request.items, MOST_ITEMS, MOST_PIECES)
        if len(request.payment_method) > LONGEST_ID:
            checks.fail("payment_method", f"at most {LONGEST_ID} characters are accepted")
        checks.done()
        # The caller's deadline ends this call, and every call made for it: see `lb.aio.incoming` in the server.
        longest_s = _DEFAULT_S if context.time_remaining() is None else _LONGEST_S
        try:
            async with asyncio.timeout(longest_s):
                placed = await self._saga.place(
                    request.idempotency_key,
                    request.SerializeToString(deterministic=True),
                    request.items,
                    request.payment_method,
                )
        except TimeoutError as error:
            text = f"the order was not placed within {longest_s:g} s"
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from error
        return PlaceOrderResponse(order=_order(placed), served_by=placed.served_by)

    async def GetOrder(
        self, request: GetOrderRequest, context: grpc.aio.ServicerContext[GetOrderRequest, GetOrderResponse]
    ) -> GetOrderResponse:
        """One order."""
        return GetOrderResponse(order=_order(await self._known(request.order_id)))

    async def WatchOrder(
        self, request: WatchOrderRequest, context: grpc.aio.ServicerContext[WatchOrderRequest, WatchOrderResponse]
    ) -> AsyncIterator[WatchOrderResponse]:
        """Each state of an order; another instance may be the one that changes it."""
        told = 0
        pause_s = _FIRST_LOOK_S
        while True:
            order = await self._known(request.order_id)
            for state, instant in order.history[told:]:
                told += 1
                yield WatchOrderResponse(
                    order_id=order.order_id,
                    state=state,
                    changed_at=timestamp(instant),
                    failure=order.failure if state == FAILED else "",
                )
            if order.state in FINAL:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LAST_LOOK_S)

    async def PriceBasket(
        self,
        request_iterator: AsyncIterator[PriceBasketRequest],
        context: grpc.aio.ServicerContext[PriceBasketRequest, PriceBasketResponse],
    ) -> AsyncIterator[PriceBasketResponse]:
        """Each change of a basket, answered by its new total."""
        basket: dict[str, Line] = {}
        async for change in request_iterator:
            checks = Checks()
            checks.sku("sku", change.sku)
            checks.within("quantity", change.quantity, 0, MOST_PIECES)
            if change.quantity and change.sku not in basket and len(basket) >= MOST_ITEMS:
                checks.fail("sku", f"a basket holds at most {MOST_ITEMS} different products")
            checks.done()
            if change.quantity:
                item = OrderItem(sku=change.sku, quantity=change.quantity)
                basket[change.sku] = await self._saga.price(item)
            else:
                basket.pop(change.sku, None)
            lines = list(basket.values())
            total = saga.total(lines) if lines else Money()
            yield PriceBasketResponse(lines=[_line(line) for line in lines], total=total)

    async def _known(self, order_id: str) -> store.Order:
        checks = Checks()
        checks.identity("order_id", order_id)
        checks.done()
        order = await self._store.get(order_id)
        if order is None:
            raise not_found("order", order_id)
        return order


def _order(order: store.Order) -> Order:
    return Order(
        order_id=order.order_id,
        state=order.state,
        lines=[_line(line) for line in order.lines],
        total=saga.total(order.lines),
        created_at=timestamp(order.created_us),
        reservation_id=saga.reservation_id(order),
        payment_id=saga.payment_id(order),
        failure=order.failure,
    )


def _line(line: Line) -> OrderLine:
    price = line.unit_price
    return OrderLine(
        sku=line.sku,
        name=line.name,
        quantity=line.quantity,
        unit_price=price,
        line_total=money.from_nanos(price.currency_code, money.to_nanos(price) * line.quantity),
    )


async def build(host: Host) -> Service:
    """The service on its database, with channels to what it needs."""
    database = await host.database(metadata)
    stubs = Stubs(
        CatalogStub(await host.channel("catalog")),
        InventoryStub(await host.channel("inventory")),
        PaymentsStub(await host.channel("payments")),
    )
    orders = Store(database)
    placing = Saga(orders, stubs)
    host.stack.push_async_callback(placing.close)
    return Service(
        add=lambda server: add_OrdersServicer_to_server(Orders(orders, placing), server),
        checks={"database": database.ping},
        begin=placing.start,
    )
