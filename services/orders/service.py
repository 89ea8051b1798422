"""mesh.orders.v1.Orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from mesh.common.v1 import Money
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
from services.orders import saga, store
from services.orders.dependencies import Deadline, Dependencies
from services.orders.saga import Saga
from services.orders.store import FAILED, FINAL, Line, Store, metadata
from services.runtime import money
from services.runtime.errors import CallError, not_found
from services.runtime.host import Host, Service
from services.runtime.moment import timestamp
from services.runtime.validation import LONGEST_ID, Checks

_MOST_ITEMS = 100
_MOST_PIECES = 1000

# Time of a call whose caller set no deadline, and the most that any call gets.
_DEFAULT_S = 10.0
_LONGEST_S = 30.0

# How often a watched order is looked after: often at first, for most orders take a moment.
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5


class Orders(OrdersServicer):
    """Sells. The contract stands in protos/mesh/orders/v1."""

    def __init__(self, orders: Store, placing: Saga, dependencies: Dependencies) -> None:
        self._store = orders
        self._saga = placing
        self._dependencies = dependencies

    async def PlaceOrder(
        self, request: PlaceOrderRequest, context: grpc.aio.ServicerContext[PlaceOrderRequest, PlaceOrderResponse]
    ) -> PlaceOrderResponse:
        """Price, reserve, authorize, capture."""
        checks = Checks()
        checks.identity("idempotency_key", request.idempotency_key)
        if not 1 <= len(request.items) <= _MOST_ITEMS:
            checks.fail("items", f"has {len(request.items)} items; 1 to {_MOST_ITEMS} are accepted")
        seen: set[str] = set()
        for number, item in enumerate(request.items[:_MOST_ITEMS]):
            checks.sku(f"items[{number}].sku", item.sku)
            checks.within(f"items[{number}].quantity", item.quantity, 1, _MOST_PIECES)
            if item.sku in seen:
                checks.fail(f"items[{number}].sku", f"{item.sku!r} stands in an earlier item")
            seen.add(item.sku)
        if len(request.payment_method) > LONGEST_ID:
            checks.fail("payment_method", f"at most {LONGEST_ID} characters are accepted")
        checks.done()
        timeout_s = _timeout_s(context.time_remaining())
        try:
            async with asyncio.timeout(timeout_s):
                placed = await self._saga.place(
                    request.idempotency_key,
                    request.SerializeToString(deterministic=True),
                    request.items,
                    request.payment_method,
                    Deadline(timeout_s),
                )
        except TimeoutError as error:
            text = f"the order was not placed within {timeout_s:.3g} s"
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
            checks.within("quantity", change.quantity, 0, _MOST_PIECES)
            if change.quantity and change.sku not in basket and len(basket) >= _MOST_ITEMS:
                checks.fail("sku", f"a basket holds at most {_MOST_ITEMS} different products")
            checks.done()
            if change.quantity:
                item = OrderItem(sku=change.sku, quantity=change.quantity)
                deadline = Deadline(_timeout_s(context.time_remaining()))
                (basket[change.sku],) = await self._saga.price([item], deadline, {})
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


def _timeout_s(remaining_s: float | None) -> float:
    return _DEFAULT_S if remaining_s is None else min(remaining_s, _LONGEST_S)


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
    dependencies = Dependencies(
        await host.channel("catalog"), await host.channel("inventory"), await host.channel("payments")
    )
    orders = Store(database)
    placing = Saga(orders, dependencies)
    host.stack.push_async_callback(placing.close)
    placing.start()
    return Service(
        names=("mesh.orders.v1.Orders",),
        add=lambda server: add_OrdersServicer_to_server(Orders(orders, placing, dependencies), server),
        checks={"database": database.ping},
    )
