"""The whole shop under five times the orders that it can take: a part of ``make bench-overload``.

The demo runs as ``make demo`` starts it. Buyers that wait for each other's places find its capacity; then five times as
many orders a second arrive, whatever becomes of them. Ten seconds later every order must be in a final state, and what
was sold, taken from the stock and paid must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.goals import Goal, finish
from bench.pressure import Generators, Kind, Phase, generators
from mesh.orders.v1 import OrderState
from services.orders.store import CONFIRMED, FINAL
from services.shop.assortment import ASSORTMENT, FIRST_DELIVERY
from tests.support import mesh

TIMES = 5.0
GOODPUT, P99_S = 0.8, 2.0
BUYERS = 24
SETTLED_S = 10.0
TIMEOUT_S = 10.0
_GATEWAY_TIMEOUT = "504"


@dataclass(frozen=True)
class Books:
    """What the databases of the shop's services say together."""

    orders: int
    unfinished: Counter[str]
    """How many orders are in no final state, by state."""
    wrong: list[str]
    """What does not add up."""

    @property
    def words(self) -> str:
        """What is wrong."""
        open_ = [f"{count} orders are {state}" for state, count in self.unfinished.items()]
        return "; ".join([*open_, *self.wrong]) or "none"


@dataclass
class Shop:
    """What was found."""

    capacity: float = 0.0
    goodput: float = 0.0
    p99_s: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    books: Books = field(default_factory=lambda: Books(0, Counter(), []))
    lag_ms: float = 0.0
    void: bool = False


async def measure(load: Generators, capacity_s: float, over_s: float) -> Shop:
    """Start the shop, find its capacity, ask for five times as much, look at the books."""
    found = Shop()
    kinds = [Kind(item.sku) for item in ASSORTMENT]
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        async with mesh.running(data / "output", order_rate=0.0, MESH_DATA=str(data)) as shop:
            phase = Phase(2.0 + capacity_s, kinds, callers=BUYERS, timeout_s=TIMEOUT_S, skip_s=2.0)
            (usual,) = await asyncio.to_thread(load.run, [shop.url], [phase], "http")
            found.capacity = usual.goodput()
            rate = max(1.0, TIMES * found.capacity)
            phase = Phase(over_s, kinds, rate=rate, poisson=True, timeout_s=TIMEOUT_S)
            (over,) = await asyncio.to_thread(load.run, [shop.url], [phase], "http")
            await asyncio.sleep(SETTLED_S)
            found.books = books(data, usual.codes["OK"] + over.codes["OK"])
    found.goodput, found.p99_s, found.answers = over.goodput(), over.p99_ms() / 1000, over.codes
    found.lag_ms, found.void = over.lag_ms, over.void
    return found


def books(data: Path, answered: int) -> Books:
    """Compare the databases of the shop's services, of which buyers were told of so many orders."""
    wrong = []
    with contextlib.ExitStack() as stack:
        orders, stock, payments = (
            stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{data / name}.db?mode=ro", uri=True)))
            for name in ("orders", "inventory", "payments")
        )
        placed = orders.execute("SELECT state, lines FROM orders").fetchall()
        unfinished = Counter(OrderState.Name(state) for state, _ in placed if state not in FINAL)
        confirmed = [json.loads(lines) for state, lines in placed if state == CONFIRMED]
        if len(confirmed) < answered:
            wrong.append(f"{answered} orders were answered as placed, and {len(confirmed)} are confirmed")
        sold = Counter[str]()
        for lines in confirmed:
            for sku, _, quantity, *_ in lines:
                sold[sku] += quantity
        left = dict(stock.execute("SELECT sku, available FROM stock"))
        for item in ASSORTMENT:
            taken = FIRST_DELIVERY - left[item.sku]
            if taken != sold[item.sku]:
                wrong.append(f"{item.sku}: {taken} taken from the stock, {sold[item.sku]} sold")
        cents = {item.sku: item.cents for item in ASSORTMENT}
        owed = sum(cents[sku] * pieces for sku, pieces in sold.items())
        query = "SELECT sum(amount_units) * 100 + sum(amount_nanos) / 10000000 FROM payments WHERE state = 'CAPTURED'"
        paid = payments.execute(query).fetchone()[0] or 0
        if paid != owed:
            wrong.append(f"{paid} cents were paid, and {owed} are owed")
        held = payments.execute("SELECT count(*) FROM payments WHERE state = 'AUTHORIZED'").fetchone()[0]
        if held:
            wrong.append(f"{held} payments are authorized, and neither captured nor voided")
    return Books(len(placed), unfinished, wrong)


def goals_of(found: Shop) -> list[Goal]:
    """What is asked of the shop."""
    return [
        Goal("the shop: goodput / capacity", found.goodput / max(1e-9, found.capacity), least=GOODPUT, void=found.void),
        Goal("the shop: p99 of what is accepted, s", found.p99_s, most=P99_S, promise=TIMEOUT_S, void=found.void),
        Goal("the shop: answers of 504", found.answers[_GATEWAY_TIMEOUT], most=0, void=found.void),
        # No matter how busy the machine is.
        Goal("the shop: orders in no final state", found.books.unfinished.total(), most=0, promise=0),
        Goal("the shop: sums that do not add up", len(found.books.wrong), most=0, promise=0),
    ]


def words(found: Shop) -> str:
    """What was found, in Markdown."""
    answers = ", ".join(f"{count} x {code}" for code, count in found.answers.most_common())
    lines = [
        f"The shop: {found.capacity:.0f} orders a second are its capacity; at {TIMES:.0f} times that it answered"
        f" {found.goodput:.0f}, with a p99 of {found.p99_s:.2f} s ({answers}).",
        f"{SETTLED_S:.0f} s later {found.books.orders} orders were in the books; mistakes: {found.books.words}.",
        f"The generator's lag: {found.lag_ms:.1f} ms{' (**void**)' if found.void else ''}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    with generators() as load:
        found = asyncio.run(measure(load, *((3.0, 4.0) if "--short" in sys.argv else (6.0, 12.0))))
    return finish("shop", [words(found)], goals_of(found), keep=False)


if __name__ == "__main__":
    sys.exit(main())
