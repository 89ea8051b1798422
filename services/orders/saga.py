"""How an order is carried out, and undone.

::

    claim ─► PENDING ─ reserve ─► RESERVED ─ authorize ─► AUTHORIZED ─ capture ─► CONFIRMED
                │                    │                        │
                └────────────────────┴── void, release ───────┴─► FAILED

The payment decides: an order whose payment was captured is confirmed, whatever happened to the call
that captured it, and one whose payment was voided never will be. So undoing begins with the void. Reservation
and payment are named before they are made, and both services remember a release or a void that came
first: what a lost call still does later changes nothing.

Whoever owns the order (see ``store``) carries it out or undoes it. When the owner dies, its lease stands still, and
the next call under the same key, or the sweeper of any instance, takes the order over and undoes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

import lb
from mesh.common.v1 import Money
from mesh.orders.v1 import OrderItem
from mesh.payments.v1 import PaymentState
from services.orders.dependencies import Dependencies, Stubs
from services.orders.store import AUTHORIZED, CONFIRMED, FAILED, PENDING, RESERVED, Line, LostLeaseError, Order, Store
from services.runtime.errors import CallError, already_exists, precondition
from services.shop import money
from services.shop.limits import MOST_UNITS

log = structlog.get_logger()

UNDO_S = 3.0
"""Undoing has time of its own: it is most needed when the call's time is over."""

# Prices of one order that are asked for at the same time.
_AT_ONCE = 8
# How often a call looks after an order that another call carries out.
_LOOK_S = 0.05
_SWEEP_EVERY_S = 1.0
_SWEEP_AT_ONCE = 16


class Saga:
    """Carries orders out on one instance. ``close`` ends what it does in the background."""

    def __init__(self, store: Store, stubs: Stubs) -> None:
        self._store = store
        self._stubs = stubs
        self._undoing: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for orders whose owner died."""
        self._sweeper = asyncio.create_task(self._sweep(), name="orders-sweeper")

    async def close(self) -> None:
        """End the sweeper and let what is being undone end, for at most about ``UNDO_S`` seconds."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=UNDO_S + 1)
        for task in self._undoing:
            task.cancel()
        await asyncio.gather(*self._undoing, return_exceptions=True)

    async def place(self, key: str, request: bytes, items: Sequence[OrderItem], method: str) -> Order:
        """The confirmed order under ``key``: carried out now, or before, by whichever instance.

        ``request`` tells the purchase from another one under the same key.

        Raises:
            CallError: as the contract of PlaceOrder says.
        """
        order = await self._store.under(key)
        needs = Dependencies(self._stubs)
        while True:
            mine = False
            if order is None:
                lines = await _priced(items, needs)
                require_payable(lines)
                order, mine = await self._store.claim(key, request, lines)
            if order.request != request:
                raise already_exists(
                    "idempotency_key", key, f"the idempotency key {key!r} was already used for another order"
                )
            if order.state == CONFIRMED:
                return order
            if mine:
                try:
                    return await self._carry_out(order, method, needs)
                except LostLeaseError:
                    log.warning("order was taken over", order_id=order.order_id)
            elif self._store.abandoned(order):
                await self._recover(order)
            else:
                await asyncio.sleep(_LOOK_S)
            order = await self._store.under(key)

    async def price(self, item: OrderItem) -> Line:
        """One item with its name and price from the catalog."""
        return await _line(item, Dependencies(self._stubs))

    async def _carry_out(self, order: Order, method: str, needs: Dependencies) -> Order:
        """Bring an owned, pending order to CONFIRMED, or undo it and raise why."""
        try:
            await needs.reserve(reservation_id(order), order.lines)
            order = await self._store.advance(order, RESERVED)
            payment = await needs.authorize(payment_id(order), total(order.lines), method)
            if payment.state == PaymentState.PAYMENT_STATE_DECLINED:
                text = f"the payment was declined: {payment.decline_reason}"
                raise precondition([("PAYMENT", payment.payment_id, text)])
            order = await self._store.advance(order, AUTHORIZED)
            await needs.capture(payment_id(order))
            return await self._store.advance(order, CONFIRMED, served_by=needs.served_by)
        except LostLeaseError:
            raise
        except BaseException as error:
            why = error.message if isinstance(error, CallError) else "the call was given up"
            undoing = self._in_background(self._undo(order, why))
            # A cancelled call has nobody to tell; another one is told when it is undone, so that the
            # caller may try again at once.
            if isinstance(error, Exception):
                done = await asyncio.shield(undoing)
                if done is not None and done.state == CONFIRMED:
                    return done
            raise

    async def _undo(self, order: Order, why: str) -> Order | None:
        """Undo an owned order: FAILED, or CONFIRMED when it was paid after all; None when it has to be tried again."""
        needs = Dependencies(self._stubs)
        try:
            # A full service that refuses new orders must not refuse what frees the goods and the money of failed ones.
            with lb.deadline(UNDO_S), lb.priority(lb.Priority.CRITICAL):
                if order.state != PENDING and not await needs.void(payment_id(order)):
                    return await self._store.advance(order, CONFIRMED)
                await needs.release(reservation_id(order))
                return await self._store.advance(order, FAILED, failure=why)
        except LostLeaseError:
            return None
        except Exception as error:  # noqa: BLE001 - what cannot be undone now is undone by a sweeper
            log.warning("rollback failed, will be tried again", order_id=order.order_id, why=str(error))
        with contextlib.suppress(CallError, LostLeaseError):  # else the lease stands still by itself
            await self._store.give_up(order)
        return None

    async def _recover(self, order: Order) -> None:
        """Take over an order whose owner died, and undo it."""
        mine = await self._store.take_over(order)
        if mine is not None:
            log.info("rolling back an order whose instance stopped", order_id=order.order_id)
            await asyncio.shield(self._in_background(self._undo(mine, "the instance that placed the order stopped")))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                for order in await self._store.sweep(_SWEEP_AT_ONCE):
                    await self._recover(order)
            except CallError as error:
                log.debug("sweep failed", why=error.message)

    def _in_background(self, work: Coroutine[Any, Any, Order | None]) -> asyncio.Task[Order | None]:
        with lb.detached():  # the call that made it necessary is mostly over, or out of time
            task = asyncio.create_task(work)
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)
        return task


async def _priced(items: Sequence[OrderItem], needs: Dependencies) -> list[Line]:
    """The items with names and prices from the catalog; the first failure wins."""
    if len(items) == 1:
        return [await _line(items[0], needs)]
    limit = asyncio.Semaphore(_AT_ONCE)

    async def line(item: OrderItem) -> Line:
        async with limit:
            return await _line(item, needs)

    tasks = [asyncio.create_task(line(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _line(item: OrderItem, needs: Dependencies) -> Line:
    product = await needs.product(item.sku)
    return Line(item.sku, product.name, item.quantity, product.price)


def reservation_id(order: Order) -> str:
    """The inventory's name for what an order holds."""
    return f"res-{order.order_id}"


def payment_id(order: Order) -> str:
    """The payments' name for what an order costs."""
    return f"pay-{order.order_id}"


def require_payable(lines: Sequence[Line]) -> None:
    """Raise what ``total`` raises, before anything is done for an order that nobody can pay."""
    total(lines)


def total(lines: Sequence[Line]) -> Money:
    """Sum of the lines.

    Raises:
        CallError: FAILED_PRECONDITION, the currencies differ or the sum cannot be paid.
    """
    currencies = {line.unit_price.currency_code for line in lines}
    if len(currencies) != 1:
        raise precondition([("CURRENCY", "total", f"prices in several currencies: {', '.join(sorted(currencies))}")])
    nanos = sum(money.to_nanos(line.unit_price) * line.quantity for line in lines)
    if not 0 < nanos <= MOST_UNITS * money.NANOS:
        raise precondition([("AMOUNT", "total", f"an order costs more than 0 and at most {MOST_UNITS} units")])
    return money.from_nanos(currencies.pop(), nanos)
