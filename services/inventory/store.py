"""The inventory's tables, and the transactions that keep them true.

A piece is sold once because taking it is one statement: it subtracts where enough is left, and
its row count says whether it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.errors import already_exists, precondition
from services.runtime.validation import LONGEST_ID
from services.shop.assortment import ASSORTMENT, FIRST_DELIVERY
from services.shop.moment import now_us

HELD = "held"
RELEASED = "released"

# How many skus stand in one question: databases limit the number of parameters.
_CHUNK = 500

metadata = MetaData()

stock = Table(
    "stock",
    metadata,
    Column("sku", String(64), primary_key=True),
    Column("available", BigInteger, CheckConstraint("available >= 0"), nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", String(LONGEST_ID), primary_key=True),
    Column("state", String(16), nullable=False),
    # [[sku, quantity], ...] in the order of the sku; always read and written as a whole.
    Column("lines", JSON, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

imports = Table(
    "stock_imports",
    metadata,
    Column("import_id", String(LONGEST_ID), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("line_count", BigInteger, nullable=False),
    Column("sku_count", BigInteger, nullable=False),
    Column("unit_count", BigInteger, nullable=False),
)

Lines = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Reservation:
    """One reservation. ``lines`` are (sku, pieces) in the order of the sku."""

    reservation_id: str
    state: str
    lines: Lines
    created_us: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a delivery brought."""

    lines: int
    skus: int
    units: int


class Store:
    """Stock and reservations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def seed(self) -> None:
        """Give the first delivery to each product of the assortment that is not known yet."""

        async def transaction(connection: AsyncConnection) -> None:
            known = await _available(connection, [item.sku for item in ASSORTMENT])
            rows = [{"sku": item.sku, "available": FIRST_DELIVERY} for item in ASSORTMENT if item.sku not in known]
            if rows:
                await connection.execute(insert(stock), rows)

        await self._database.write(transaction)

    async def available(self, skus: Iterable[str]) -> Mapping[str, int]:
        """Pieces that can still be reserved, of the skus that are known."""
        wanted = sorted(set(skus))
        return await self._database.read(lambda connection: _available(connection, wanted))

    async def reserve(self, reservation_id: str, lines: Lines) -> Reservation:
        """Take all lines (in the order of the sku, no sku twice) or none.

        Raises:
            CallError: FAILED_PRECONDITION, too little stock or released before; ALREADY_EXISTS, other lines.
        """
        wanted = [list(line) for line in lines]

        async def transaction(connection: AsyncConnection) -> Reservation:
            known = await _reservation(connection, reservation_id)
            if known is not None:
                if known.state == RELEASED:
                    text = f"reservation {reservation_id!r} was released"
                    raise precondition([("RELEASED", reservation_id, text)])
                if [list(line) for line in known.lines] != wanted:
                    text = f"reservation {reservation_id!r} holds other lines"
                    raise already_exists("reservation", reservation_id, text)
                return known
            # Recorded first: the same request at another instance waits here, and finds this reservation then. Had
            # it taken pieces before, it would tell of a shortage that this one made.
            made = Reservation(reservation_id, HELD, lines, now_us())
            await _record(connection, made)
            # Every instance takes rows in the order of the sku, so that no two wait for each other in a ring.
            missing = [line for line in lines if not await _take(connection, *line)]
            if missing:
                left = await _available(connection, [sku for sku, _ in missing])
                raise precondition([("STOCK", sku, _shortage(sku, n, left.get(sku, 0))) for sku, n in missing])
            return made

        return await self._database.write(transaction)

    async def release(self, reservation_id: str) -> Reservation:
        """Give the pieces back; an unknown reservation is recorded as released."""

        async def transaction(connection: AsyncConnection) -> Reservation:
            known = await _reservation(connection, reservation_id)
            if known is None:
                known = Reservation(reservation_id, RELEASED, (), now_us())
                await _record(connection, known)
            elif known.state == HELD:
                change = update(reservations).where(
                    reservations.c.reservation_id == reservation_id, reservations.c.state == HELD
                )
                done = await connection.execute(change.values(state=RELEASED))
                if done.rowcount:
                    await _give(connection, dict(known.lines))
                known = Reservation(reservation_id, RELEASED, known.lines, known.created_us)
            return known

        return await self._database.write(transaction)

    async def deliver(self, import_id: str, digest: str, lines: Lines) -> Summary:
        """Add a delivery once. ``digest`` tells it from another one under the same id.

        Raises:
            CallError: ALREADY_EXISTS, when the id stands for another delivery.
        """
        units: dict[str, int] = {}
        for sku, quantity in lines:
            units[sku] = units.get(sku, 0) + quantity
        summary = Summary(len(lines), len(units), sum(units.values()))

        async def transaction(connection: AsyncConnection) -> Summary:
            query = select(imports.c.digest).where(imports.c.import_id == import_id)
            known = (await connection.execute(query)).scalar_one_or_none()
            if known is not None:
                if known != digest:
                    raise already_exists("import", import_id, f"import {import_id!r} was already used with other lines")
                return summary
            present = await _available(connection, sorted(units))
            new = [{"sku": sku, "available": 0} for sku in sorted(units) if sku not in present]
            if new:
                await connection.execute(insert(stock), new)
            await _give(connection, units)
            await connection.execute(
                insert(imports).values(
                    import_id=import_id,
                    digest=digest,
                    line_count=summary.lines,
                    sku_count=summary.skus,
                    unit_count=summary.units,
                )
            )
            return summary

        return await self._database.write(transaction)


async def _take(connection: AsyncConnection, sku: str, quantity: int) -> bool:
    """Take pieces if there are enough of them."""
    enough = update(stock).where(stock.c.sku == sku, stock.c.available >= quantity)
    done = await connection.execute(enough.values(available=stock.c.available - quantity))
    return done.rowcount == 1


async def _give(connection: AsyncConnection, units: Mapping[str, int]) -> None:
    """Add pieces of known skus."""
    if not units:
        return
    add = (
        update(stock)
        .where(stock.c.sku == bindparam("wanted"))
        .values(available=stock.c.available + bindparam("quantity"))
    )
    await connection.execute(add, [{"wanted": sku, "quantity": units[sku]} for sku in sorted(units)])


async def _available(connection: AsyncConnection, skus: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(skus), _CHUNK):
        query = select(stock.c.sku, stock.c.available).where(stock.c.sku.in_(skus[start : start + _CHUNK]))
        found.update((sku, available) for sku, available in await connection.execute(query))
    return found


async def _reservation(connection: AsyncConnection, reservation_id: str) -> Reservation | None:
    query = select(reservations.c.state, reservations.c.lines, reservations.c.created_us).where(
        reservations.c.reservation_id == reservation_id
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    state, lines, created_us = row
    return Reservation(reservation_id, state, tuple((sku, quantity) for sku, quantity in lines), created_us)


async def _record(connection: AsyncConnection, made: Reservation) -> None:
    await connection.execute(
        insert(reservations).values(
            reservation_id=made.reservation_id,
            state=made.state,
            lines=[list(line) for line in made.lines],
            created_us=made.created_us,
        )
    )


def _shortage(sku: str, wanted: int, left: int) -> str:
    return f"{sku}: {wanted} wanted, {left} available"
