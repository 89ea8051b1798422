"""The orders' table, and the lease by which one call owns an order until it is final.

An order is carried out by one call, on one instance. It owns the order by a *lease*: a random owner and a mark,
which is another one after each step. An instance that sees the same lease for longer than a step may take, by its
own monotonic clock, takes the call for dead, and may take the order over, to undo it. No clock is compared with
that of another machine, and none that can be set is asked. Each change names the owner it expects, so a call that
lost its lease changes nothing any more.

An idempotency key belongs to the order that is under way or confirmed under it; a failed order gives it back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.common.v1 import Money
from mesh.orders.v1 import OrderState
from services.runtime.database import Database
from services.runtime.validation import LONGEST_ID
from services.shop.moment import now_us

PENDING = OrderState.ORDER_STATE_PENDING
RESERVED = OrderState.ORDER_STATE_RESERVED
AUTHORIZED = OrderState.ORDER_STATE_AUTHORIZED
CONFIRMED = OrderState.ORDER_STATE_CONFIRMED
FAILED = OrderState.ORDER_STATE_FAILED
FINAL = (CONFIRMED, FAILED)

# A step takes at most 2 s for its call and 1 s for the database.
LEASE_S = 3.5
_GIVEN_UP = 0
# So many orders under way are looked at in one go, the oldest first.
_MOST_WATCHED = 1000
_UNDER_WAY = (PENDING, RESERVED, AUTHORIZED)

metadata = MetaData()

orders = Table(
    "orders",
    metadata,
    Column("order_id", String(64), primary_key=True),
    Column("idempotency_key", String(LONGEST_ID), unique=True, nullable=True),
    # The request under the key, to tell it from another one.
    Column("request", LargeBinary, nullable=False),
    Column("state", Integer, nullable=False),
    # [[state, instant in microseconds], ...]; lines and history are always read and written as a whole.
    Column("history", JSON, nullable=False),
    Column("lines", JSON, nullable=False),
    Column("served_by", JSON, nullable=False),
    Column("failure", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("owner", String(32), nullable=False),
    # The lease's mark: made from the wall clock, but only ever compared with itself.
    Column("lease_us", BigInteger, nullable=False),
    Index("orders_under_way", "state", "created_us"),
)


class LostLeaseError(Exception):
    """Another call took the order over."""


@dataclass(frozen=True, slots=True)
class Line:
    """One product of an order, with its price then."""

    sku: str
    name: str
    quantity: int
    unit_price: Money


@dataclass(frozen=True, slots=True)
class Order:
    """One order as it stands in the table."""

    order_id: str
    request: bytes
    state: OrderState.ValueType
    history: Sequence[tuple[OrderState.ValueType, int]]
    lines: Sequence[Line]
    served_by: Mapping[str, str]
    failure: str
    created_us: int
    owner: str
    lease_us: int


class Store:
    """Orders. ``clock`` tells monotonic seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._seen: dict[str, tuple[str, int, float]] = {}
        """Orders under way: owner and mark of each lease, and since when this instance has seen these."""

    def abandoned(self, order: Order) -> bool:
        """Whether the call that owns it is taken for dead, by what this instance has seen of its lease until now."""
        return order.state not in FINAL and self._stands_still(order.order_id, order.owner, order.lease_us)

    def _stands_still(self, order_id: str, owner: str, mark: int) -> bool:
        if mark == _GIVEN_UP:
            return True
        now = self._clock()
        seen = self._seen.get(order_id)
        if seen is None or seen[:2] != (owner, mark):
            self._seen[order_id] = (owner, mark, now)
            return False
        return now - seen[2] > LEASE_S

    async def get(self, order_id: str) -> Order | None:
        """One order by its id."""
        return await self._database.read(lambda connection: _one(connection, orders.c.order_id == order_id))

    async def under(self, key: str) -> Order | None:
        """The order that is under way or confirmed under an idempotency key."""
        return await self._database.read(lambda connection: _one(connection, orders.c.idempotency_key == key))

    async def claim(self, key: str, request: bytes, lines: Sequence[Line]) -> tuple[Order, bool]:
        """A new order under a free key, owned by the caller; or the order that has the key, and False."""
        now = now_us()
        made = Order(
            order_id=f"ord-{secrets.token_hex(10)}",
            request=request,
            state=PENDING,
            history=((PENDING, now),),
            lines=lines,
            served_by={},
            failure="",
            created_us=now,
            owner=secrets.token_hex(8),
            lease_us=now,
        )

        async def transaction(connection: AsyncConnection) -> tuple[Order, bool]:
            known = await _one(connection, orders.c.idempotency_key == key)
            if known is not None:
                return known, False
            await connection.execute(
                insert(orders).values(
                    order_id=made.order_id,
                    idempotency_key=key,
                    request=request,
                    state=made.state,
                    history=_plain(made.history),
                    lines=[_stored(line) for line in lines],
                    served_by={},
                    failure="",
                    created_us=now,
                    owner=made.owner,
                    lease_us=made.lease_us,
                )
            )
            return made, True

        return await self._database.write(transaction)

    async def advance(
        self,
        order: Order,
        state: OrderState.ValueType,
        *,
        failure: str = "",
        served_by: Mapping[str, str] | None = None,
    ) -> Order:
        """Bring an owned order into its next state, and renew the lease.

        Raises:
            LostLeaseError: it is not owned any more.
        """
        now = now_us()
        after = replace(
            order,
            state=state,
            history=(*order.history, (state, now)),
            failure=failure,
            served_by=order.served_by if served_by is None else dict(served_by),
            lease_us=_next_mark(order),
        )
        values: dict[str, Any] = {
            "state": state,
            "history": _plain(after.history),
            "failure": failure,
            "served_by": dict(after.served_by),
            "lease_us": after.lease_us,
        }
        if state == FAILED:
            values["idempotency_key"] = None
        await self._change(order, values)
        return after

    async def give_up(self, order: Order) -> None:
        """End the lease of an owned order now, so that it is taken over soon."""
        await self._change(order, {"lease_us": _GIVEN_UP})

    async def take_over(self, order: Order) -> Order | None:
        """Own an order that is `abandoned`; None when another was first, or its call lives after all."""
        after = replace(order, owner=secrets.token_hex(8), lease_us=_next_mark(order))
        try:
            values = {"owner": after.owner, "lease_us": after.lease_us}
            await self._change(order, values, orders.c.lease_us == order.lease_us)
        except LostLeaseError:
            return None
        return after

    async def sweep(self, limit: int) -> Sequence[Order]:
        """Look at the orders under way; those that are `abandoned`, oldest first."""
        query = (
            select(orders.c.order_id, orders.c.owner, orders.c.lease_us)
            .where(orders.c.state.in_(_UNDER_WAY))
            .order_by(orders.c.created_us)
            .limit(_MOST_WATCHED)
        )

        async def look(connection: AsyncConnection) -> Sequence[tuple[str, str, int]]:
            return [(row.order_id, row.owner, row.lease_us) for row in await connection.execute(query)]

        under_way = await self._database.read(look)
        dead = [lease[0] for lease in under_way if self._stands_still(*lease)][:limit]
        known = {order_id for order_id, _, _ in under_way}
        if len(known) < _MOST_WATCHED:  # else it is not known who else is under way
            self._seen = {order_id: seen for order_id, seen in self._seen.items() if order_id in known}

        async def read(connection: AsyncConnection) -> Sequence[Order]:
            found = await connection.execute(select(orders).where(orders.c.order_id.in_(dead)))
            return [_order(row) for row in found.mappings()]

        return await self._database.read(read) if dead else ()

    async def _change(self, order: Order, values: Mapping[str, Any], *conditions: Any) -> None:
        """Change a row that is still the owner's."""
        change = (
            update(orders)
            .where(
                orders.c.order_id == order.order_id,
                orders.c.owner == order.owner,
                *conditions,
            )
            .values(**values)
        )

        async def transaction(connection: AsyncConnection) -> int:
            return (await connection.execute(change)).rowcount

        if await self._database.write(transaction) != 1:
            raise LostLeaseError(order.order_id)


def _next_mark(order: Order) -> int:
    """Another mark than the order has, also when the clock was set back."""
    return max(now_us(), order.lease_us + 1)


async def _one(connection: AsyncConnection, condition: Any) -> Order | None:
    row = (await connection.execute(select(orders).where(condition))).mappings().one_or_none()
    return None if row is None else _order(row)


def _order(row: Mapping[Any, Any]) -> Order:
    return Order(
        order_id=row["order_id"],
        request=row["request"],
        state=row["state"],
        history=tuple((state, instant) for state, instant in row["history"]),
        lines=tuple(_loaded(line) for line in row["lines"]),
        served_by=row["served_by"],
        failure=row["failure"],
        created_us=row["created_us"],
        owner=row["owner"],
        lease_us=row["lease_us"],
    )


def _plain(history: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [[state, instant] for state, instant in history]


def _stored(line: Line) -> list[Any]:
    price = line.unit_price
    return [line.sku, line.name, line.quantity, price.currency_code, price.units, price.nanos]


def _loaded(stored: Sequence[Any]) -> Line:
    sku, name, quantity, currency_code, units, nanos = stored
    return Line(sku, name, quantity, Money(currency_code=currency_code, units=units, nanos=nanos))
