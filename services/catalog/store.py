"""The catalog's table and what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Integer, MetaData, Row, String, Table, Text, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.catalog.v1 import Product
from mesh.common.v1 import Money
from services.runtime.database import Database
from services.shop.assortment import ASSORTMENT, CURRENCY

metadata = MetaData()

products = Table(
    "products",
    metadata,
    Column("sku", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False),
    Column("category", String(64), nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("price_units", BigInteger, nullable=False),
    Column("price_nanos", Integer, nullable=False),
    # Name, description and category in lower case: a comparison that every database does alike.
    Column("words", Text, nullable=False),
)

_SHOWN = (
    products.c.sku,
    products.c.name,
    products.c.description,
    products.c.category,
    products.c.currency_code,
    products.c.price_units,
    products.c.price_nanos,
)


class Store:
    """Reads products."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def seed(self) -> None:
        """Insert what is missing of the first assortment; what is there stays as it is."""

        async def transaction(connection: AsyncConnection) -> None:
            present = set((await connection.execute(select(products.c.sku))).scalars())
            rows = [
                {
                    "sku": item.sku,
                    "name": item.name,
                    "description": item.description,
                    "category": item.category,
                    "currency_code": CURRENCY,
                    "price_units": item.cents // 100,
                    "price_nanos": item.cents % 100 * 10_000_000,
                    "words": f"{item.name}\n{item.category}\n{item.description}".lower(),
                }
                for item in ASSORTMENT
                if item.sku not in present
            ]
            if rows:
                await connection.execute(insert(products), rows)

        await self._database.write(transaction)

    async def get(self, sku: str) -> Product | None:
        """One product."""

        async def transaction(connection: AsyncConnection) -> Product | None:
            row = (await connection.execute(select(*_SHOWN).where(products.c.sku == sku))).one_or_none()
            return _product(row) if row else None

        return await self._database.read(transaction)

    async def page(self, after: str, size: int) -> Sequence[Product]:
        """Up to ``size`` products whose sku comes after ``after``, in the order of their sku."""
        query = select(*_SHOWN).where(products.c.sku > after).order_by(products.c.sku).limit(size)

        async def transaction(connection: AsyncConnection) -> Sequence[Product]:
            return [_product(row) for row in await connection.execute(query)]

        return await self._database.read(transaction)

    async def search(self, words: Sequence[str]) -> list[Product]:
        """The products that contain every word (in lower case), best match first.

        A word in the name counts more than one in the description; then the order of the sku decides.
        """
        query = select(*_SHOWN).where(*(products.c.words.contains(word, autoescape=True) for word in words))

        async def transaction(connection: AsyncConnection) -> list[Product]:
            return [_product(row) for row in await connection.execute(query)]

        found = await self._database.read(transaction)

        def order(product: Product) -> tuple[int, str]:
            return (-sum(word in product.name.lower() for word in words), product.sku)

        return sorted(found, key=order)


def _product(row: Row[str, str, str, str, str, int, int]) -> Product:
    sku, name, description, category, currency_code, units, nanos = row
    price = Money(currency_code=currency_code, units=units, nanos=nanos)
    return Product(sku=sku, name=name, description=description, category=category, price=price)
