"""mesh.orders.v1.Orders, with the other services behind it; each of their calls can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import PreconditionFailure, ResourceInfo

from mesh.common.v1 import Money
from mesh.inventory.v1 import (
    BatchGetStockRequest,
    InventoryAsyncStub,
    InventoryStub,
    ReserveRequest,
    StockLine,
)
from mesh.orders.v1 import (
    GetOrderRequest,
    Order,
    OrderItem,
    OrdersAsyncStub,
    OrdersStub,
    OrderState,
    PlaceOrderRequest,
    PriceBasketRequest,
    PriceBasketResponse,
    WatchOrderRequest,
    WatchOrderResponse,
)
from mesh.payments.v1 import AuthorizeRequest, CaptureRequest, PaymentsAsyncStub, PaymentsStub
from services.orders import dependencies, saga, store
from services.orders.store import AUTHORIZED, RESERVED, Line, LostLeaseError, Store, metadata
from services.runtime.database import open_database
from services.runtime.errors import detail
from tests.services.conftest import Shop, fields, refused
from tests.support.stepped import needs_faketime, run
from tests.support.wait import longer, until

CONFIRMED = OrderState.ORDER_STATE_CONFIRMED
FAILED = OrderState.ORDER_STATE_FAILED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SKU = "moka-3"
STOCK = 1_000_000
NEVER_S = 10.0**9


@dataclass
class Counter:
    """The whole shop, and what its tests ask of it."""

    shop: Shop
    orders: OrdersAsyncStub
    inventory: InventoryAsyncStub
    payments: PaymentsAsyncStub

    async def stock(self, sku: str = SKU) -> int:
        """Available pieces."""
        answer = await self.inventory.BatchGetStock(BatchGetStockRequest(skus=[sku]))
        return answer.stocks[0].quantity

    async def payment_is(self, order: Order) -> str:
        """The state of an order's payment, seen by what it refuses."""
        request = CaptureRequest(idempotency_key="probe", payment_id=order.payment_id)
        error = await refused(self.payments.Capture(request))
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "NONE"
        failure = detail(error, PreconditionFailure)
        assert failure is not None, error
        return str(failure.violations[0].type)

    async def states(self, order_id: str) -> list[str]:
        """The states that WatchOrder tells, to the end."""
        call = self.orders.WatchOrder(WatchOrderRequest(order_id=order_id), timeout=60)
        return [OrderState.Name(seen.state).removeprefix("ORDER_STATE_") async for seen in call]


@pytest.fixture
async def counter(shop: Shop) -> Counter:
    """All four services, one instance each."""
    for name in ("catalog", "inventory", "payments", "orders"):
        await shop.start(name)
    channels = [await shop.channel(shop.instances[name]) for name in ("orders", "inventory", "payments")]
    return Counter(shop, OrdersStub(channels[0]), InventoryStub(channels[1]), PaymentsStub(channels[2]))


def place(key: str = "k1", *items: tuple[str, int], method: str = "") -> PlaceOrderRequest:
    """A request, for one piece of ``SKU`` unless said otherwise."""
    wanted = [OrderItem(sku=sku, quantity=quantity) for sku, quantity in items or ((SKU, 1),)]
    return PlaceOrderRequest(items=wanted, idempotency_key=key, payment_method=method)


async def test_place_order(counter: Counter) -> None:
    """An order is priced, its pieces are taken, its money too, and the answer says who served it."""
    request = place("k1", (SKU, 2), ("mug-enamel", 1), ("tea-assam-100", 3))
    call = counter.orders.PlaceOrder(request)
    answer = await call
    order = answer.order
    assert order.state == CONFIRMED
    assert [(line.sku, line.quantity) for line in order.lines] == [(SKU, 2), ("mug-enamel", 1), ("tea-assam-100", 3)]
    assert order.lines[0].name == "Moka pot, 3 cups"
    assert order.lines[0].line_total == Money(currency_code="EUR", units=59, nanos=800_000_000)
    assert order.total == Money(currency_code="EUR", units=99, nanos=400_000_000)
    assert dict(answer.served_by) == {"catalog": "catalog-1", "inventory": "inventory-1", "payments": "payments-1"}
    assert ("mesh-instance-id", "orders-1") in list(await call.trailing_metadata() or ())
    assert await counter.stock() == STOCK - 2
    assert await counter.payment_is(order) == "CAPTURED"
    assert (await counter.orders.GetOrder(GetOrderRequest(order_id=order.order_id))).order == order
    assert await counter.states(order.order_id) == ["PENDING", "RESERVED", "AUTHORIZED", "CONFIRMED"]


async def test_the_same_key_is_the_same_order(counter: Counter) -> None:
    """Repeating a request sells nothing twice and gives the same answer; another one under the key is refused."""
    first = await counter.orders.PlaceOrder(place())
    assert await counter.orders.PlaceOrder(place()) == first
    assert await counter.stock() == STOCK - 1
    error = await refused(counter.orders.PlaceOrder(place("k1", (SKU, 2))))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert await counter.stock() == STOCK - 1


async def test_one_key_at_two_instances_at_once(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request at two instances at the same moment, many times over, is one order."""
    monkeypatch.setattr(dependencies, "STEP_S", 60.0)  # a busy machine may take its time
    second = OrdersStub(await counter.shop.channel(await counter.shop.start("orders", instance_id="orders-2")))
    stubs = [counter.orders, second] * 5
    for number in range(5):
        answers = await asyncio.gather(*(stub.PlaceOrder(place(f"k{number}"), timeout=60) for stub in stubs))
        assert all(answer == answers[0] for answer in answers)
    assert await counter.stock() == STOCK - 5


async def test_unknown_sku(counter: Counter) -> None:
    """A sku that the catalog does not know is NOT_FOUND and named; nothing is taken."""
    error = await refused(counter.orders.PlaceOrder(place("k1", (SKU, 1), ("no-such-thing", 1))))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    info = detail(error, ResourceInfo)
    assert info is not None
    assert info.resource_name == "no-such-thing"
    assert await counter.stock() == STOCK


async def test_too_little_stock(counter: Counter) -> None:
    """Too little stock is FAILED_PRECONDITION naming the sku; the order failed, and its key may be used again."""
    all_but_one = StockLine(sku="mug-enamel", quantity=STOCK - 1)
    await counter.inventory.Reserve(ReserveRequest(reservation_id="other", lines=[all_but_one]))
    request = place("short", (SKU, 1), ("mug-enamel", 2))
    for _ in range(2):
        error = await refused(counter.orders.PlaceOrder(request))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        failure = detail(error, PreconditionFailure)
        assert failure is not None
        assert [(found.type, found.subject) for found in failure.violations] == [("STOCK", "mug-enamel")]
    assert await counter.stock() == STOCK


async def test_declined_payment(counter: Counter) -> None:
    """A declined payment fails the order and gives the pieces back."""
    error = await refused(counter.orders.PlaceOrder(place(method="tok_declined")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    failure = detail(error, PreconditionFailure)
    assert failure is not None
    assert failure.violations[0].type == "PAYMENT"
    assert "card_declined" in (error.details() or "")
    assert await counter.stock() == STOCK


STEPS = [("inventory", "Reserve"), ("payments", "Authorize"), ("payments", "Capture")]


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize(("service", "method"), STEPS)
async def test_each_failing_step_is_undone(counter: Counter, service: str, method: str, how: str) -> None:
    """Whichever step fails, executed or not, stock and money are as before, and the key may be used again.

    The one exception is a capture whose answer was lost: the order is paid, and so it is confirmed.
    """
    counter.shop.faults[service].next(method, how)
    if (method, how) == ("Capture", "after"):
        answer = await counter.orders.PlaceOrder(place())
        assert answer.order.state == CONFIRMED
        assert await counter.payment_is(answer.order) == "CAPTURED"
    else:
        error = await refused(counter.orders.PlaceOrder(place()))
        assert error.code() is UNAVAILABLE
        assert service in (error.details() or "")
        assert await counter.stock() == STOCK
        answer = await counter.orders.PlaceOrder(place())
    assert await counter.stock() == STOCK - 1
    assert await counter.orders.PlaceOrder(place()) == answer


@pytest.mark.parametrize("undo", [("payments", "Void"), ("inventory", "Release")])
async def test_an_undo_that_fails_is_done_later(counter: Counter, undo: tuple[str, str]) -> None:
    """When undoing fails too, it is tried again in the background until it is done."""
    service, method = undo
    counter.shop.faults["payments"].next("Authorize", "after")
    counter.shop.faults[service].next(method, "before", times=2)
    assert (await refused(counter.orders.PlaceOrder(place()))).code() is UNAVAILABLE

    async def back() -> bool:
        return await counter.stock() == STOCK

    await until(back, within_s=60, what="the pieces are back")
    assert counter.shop.faults[service].seen[method] == 3


@pytest.mark.parametrize(("service", "method"), STEPS)
async def test_cancellation_is_undone(
    counter: Counter, service: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that goes away in the middle of any step leaves nothing behind: undoing is not cancelled with it."""
    monkeypatch.setattr(store, "LEASE_S", NEVER_S)  # nobody else undoes it
    faults = counter.shop.faults[service]
    faults.next(method, "hang")
    call = counter.orders.PlaceOrder(place())
    waiting = asyncio.ensure_future(call)
    await asyncio.wait_for(faults.hanging.wait(), 30)
    call.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    async def settled() -> bool:
        return bool(counter.shop.faults["inventory"].seen.get("Release")) and await counter.stock() == STOCK

    await until(settled, within_s=30, what="the pieces are back")
    answer = await counter.orders.PlaceOrder(place(), timeout=60)
    assert answer.order.state == CONFIRMED
    assert await counter.stock() == STOCK - 1


async def test_deadline_is_undone(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that passes in the middle of a step is obeyed at once, and the order is undone."""
    monkeypatch.setattr(store, "LEASE_S", NEVER_S)  # nobody else undoes it
    faults = counter.shop.faults["payments"]
    faults.next("Authorize", "hang")
    for timeout in longer(0.4):
        error = await refused(counter.orders.PlaceOrder(place(f"k{timeout}"), timeout=timeout))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if faults.hanging.is_set():
            break  # else it had not come so far in that time
    assert faults.hanging.is_set()

    async def settled() -> bool:
        return bool(counter.shop.faults["inventory"].seen.get("Release")) and await counter.stock() == STOCK

    await until(settled, within_s=30, what="the pieces are back")


async def test_deadlines_are_inherited(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step has what is left of the caller's time, and no more; undoing has ``UNDO_S`` of its own."""
    monkeypatch.setattr(dependencies, "STEP_S", NEVER_S)
    counter.shop.faults["payments"].next("Capture", "before")
    error = await refused(counter.orders.PlaceOrder(place(), timeout=60))
    assert error.code() is UNAVAILABLE
    catalog, inventory, payments = (counter.shop.faults[name].left_s for name in ("catalog", "inventory", "payments"))
    steps = [catalog["GetProduct"], inventory["Reserve"], payments["Authorize"], payments["Capture"]]
    rounding_s = 1  # gRPC sends 3 s as 3.01 s, and 60 s by whole ones
    assert all(saga.UNDO_S + rounding_s < left_s <= 60 + rounding_s for left_s in steps)
    assert all(0 < left_s <= saga.UNDO_S + rounding_s for left_s in (payments["Void"], inventory["Release"]))


async def test_priority_is_inherited_and_undoing_is_critical(counter: Counter) -> None:
    """Every step is as important as the order. Undoing frees goods and money: full services refuse it last."""
    counter.shop.faults["payments"].next("Capture", "before")
    await refused(counter.orders.PlaceOrder(place(), metadata=(("lb-priority", "sheddable"),)))
    seen = {name: how for faults in counter.shop.faults.values() for name, how in faults.priority.items()}
    steps = ("GetProduct", "Reserve", "Authorize", "Capture")
    assert {seen[name] for name in steps} == {"sheddable"}
    assert (seen["Void"], seen["Release"]) == ("critical", "critical")


async def test_a_step_that_hangs_is_given_up(counter: Counter) -> None:
    """A dependency that does not answer is UNAVAILABLE after its step's time, long before the caller's deadline."""
    counter.shop.faults["inventory"].next("Reserve", "hang")
    error = await refused(counter.orders.PlaceOrder(place(), timeout=20))
    assert error.code() is UNAVAILABLE
    assert "inventory" in (error.details() or "")
    assert await counter.stock() == STOCK


async def test_an_instance_that_dies_is_cleaned_up_after(counter: Counter) -> None:
    """An order whose instance stopped dead in the middle is undone by another, and its key is free again."""
    price = Money(currency_code="EUR", units=29, nanos=900_000_000)
    database = await open_database("orders", counter.shop.settings(), metadata)
    try:
        store = Store(database)
        request = place().SerializeToString(deterministic=True)
        dead, mine = await store.claim("k1", request, [Line(SKU, "Moka pot, 3 cups", 1, price)])
        assert mine
        held = [StockLine(sku=SKU, quantity=1)]
        await counter.inventory.Reserve(ReserveRequest(reservation_id=saga.reservation_id(dead), lines=held))
        dead = await store.advance(dead, RESERVED)
        authorize = AuthorizeRequest(idempotency_key="dead", payment_id=saga.payment_id(dead), amount=price)
        await counter.payments.Authorize(authorize)

        answer = await counter.orders.PlaceOrder(place(), timeout=60)
        assert answer.order.state == CONFIRMED
        assert answer.order.order_id != dead.order_id
        assert await counter.stock() == STOCK - 1
        assert await counter.states(dead.order_id) == ["PENDING", "RESERVED", "FAILED"]
        # Should it live after all, it can do nothing any more.
        with pytest.raises(LostLeaseError):
            await store.advance(dead, AUTHORIZED)
        late = CaptureRequest(idempotency_key="late", payment_id=saga.payment_id(dead))
        assert (await refused(counter.payments.Capture(late))).code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        await database.close()


async def test_a_paid_order_of_a_dead_instance_is_confirmed(counter: Counter) -> None:
    """An instance that died after the capture leaves a paid order: it is confirmed, not undone."""
    faults = counter.shop.faults["payments"]
    faults.next("Capture", "after")
    faults.next("Void", "before", times=1)
    assert (await refused(counter.orders.PlaceOrder(place()))).code() is UNAVAILABLE
    answer = await counter.orders.PlaceOrder(place(), timeout=60)
    assert await counter.payment_is(answer.order) == "CAPTURED"
    assert await counter.states(answer.order.order_id) == ["PENDING", "RESERVED", "AUTHORIZED", "CONFIRMED"]
    assert await counter.stock() == STOCK - 1


async def test_watch_follows_an_order_on_another_instance(counter: Counter) -> None:
    """A watcher at one instance sees each state that another instance brings the order into."""
    second = OrdersStub(await counter.shop.channel(await counter.shop.start("orders", instance_id="orders-2")))
    faults = counter.shop.faults["payments"]
    faults.next("Capture", "hold")
    placing = asyncio.ensure_future(counter.orders.PlaceOrder(place()))
    await asyncio.wait_for(faults.hanging.wait(), 30)
    order_id = await _order_under("k1", counter.shop)
    call = second.WatchOrder(WatchOrderRequest(order_id=order_id), timeout=60)
    seen = [(await _next(call)).state for _ in range(3)]
    assert OrderState.Name(seen[-1]) == "ORDER_STATE_AUTHORIZED"
    faults.release.set()
    assert (await _next(call)).state == CONFIRMED
    assert await call.read() is grpc.aio.EOF
    assert (await placing).order.order_id == order_id


async def _next(call: Any) -> WatchOrderResponse:
    answer = await call.read()
    assert isinstance(answer, WatchOrderResponse), answer
    return answer


async def _order_under(key: str, shop: Shop) -> str:
    """The id of the order that is under way under a key, from the database."""
    database = await open_database("orders", shop.settings(), metadata)
    try:
        order = await Store(database).under(key)
    finally:
        await database.close()
    assert order is not None
    return order.order_id


async def test_unknown_orders(counter: Counter) -> None:
    """An order that is not there is NOT_FOUND, to read and to watch."""
    calls: Sequence[Any] = (
        counter.orders.GetOrder(GetOrderRequest(order_id="ord-x")),
        counter.orders.WatchOrder(WatchOrderRequest(order_id="ord-x")),
    )
    for call in calls:
        assert (await refused(call)).code() is grpc.StatusCode.NOT_FOUND


async def test_price_basket(counter: Counter) -> None:
    """Each change is answered by the new total, in order; removing everything leaves an empty total."""
    call = counter.orders.PriceBasket()
    totals = []
    for sku, quantity in ((SKU, 1), ("mug-enamel", 2), (SKU, 3), (SKU, 0), ("mug-enamel", 0)):
        await call.write(PriceBasketRequest(sku=sku, quantity=quantity))
        answer = await call.read()
        assert isinstance(answer, PriceBasketResponse)
        totals.append((answer.total.currency_code, answer.total.units, answer.total.nanos // 10_000_000))
    assert totals == [("EUR", 29, 90), ("EUR", 55, 70), ("EUR", 115, 50), ("EUR", 25, 80), ("", 0, 0)]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_price_basket_ends_at_an_unknown_sku(counter: Counter) -> None:
    """An unknown sku ends the stream with NOT_FOUND; a bad quantity with its field."""
    call = counter.orders.PriceBasket()
    await call.write(PriceBasketRequest(sku="no-such-thing", quantity=1))
    assert (await refused(call)).code() is grpc.StatusCode.NOT_FOUND
    call = counter.orders.PriceBasket()
    await call.write(PriceBasketRequest(sku=SKU, quantity=1001))
    assert fields(await refused(call)) == ["quantity"]


async def test_bad_requests_name_their_fields(counter: Counter) -> None:
    """Each bad field is named by a BadRequest, with its place in the list."""
    bad = place("", (SKU, 0), ("BAD", 1001), (SKU, 1), method="x" * 129)
    assert fields(await refused(counter.orders.PlaceOrder(bad))) == [
        "idempotency_key", "items[0].quantity", "items[1].sku", "items[1].quantity", "items[2].sku", "payment_method",
    ]  # fmt: skip
    empty = PlaceOrderRequest(idempotency_key="k")
    assert fields(await refused(counter.orders.PlaceOrder(empty))) == ["items"]
    assert fields(await refused(counter.orders.GetOrder(GetOrderRequest()))) == ["order_id"]
    assert fields(await refused(counter.orders.WatchOrder(WatchOrderRequest()))) == ["order_id"]


@needs_faketime
async def test_leases_are_no_matter_of_wall_clocks(tmp_path: Path) -> None:
    """Clocks differ by 5 s or are set by an hour: a lease that is renewed is left alone, a silent one is taken over."""
    seen = await asyncio.to_thread(run, "tests.services.stepped_child", str(tmp_path))
    assert seen == {
        "new, to a clock that is ahead": False,
        "new, to a clock that is behind": False,
        "after 3 s": False,
        "renewed by a clock that was set back": False,
        "3 s after that": False,
        "renewed by a clock that was set forward": False,
        "silent for 4 s": True,
        "taken over, to a third one": False,
        "taken over, and silent again": True,
    }
