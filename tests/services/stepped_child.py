"""Two instances whose wall clocks differ, and are set, share the orders: ``python -m tests.services.stepped_child``.

The argument is a directory for the database. The clock of this process is set before each step to that of the
instance that takes it. Prints what the other instance took for abandoned after each step.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from lb.testing import FakeClock
from services.orders.store import AUTHORIZED, RESERVED, Store, metadata
from services.runtime.database import open_database
from services.runtime.settings import Settings
from tests.support.stepped import step

OWNER_S = 0.0
OTHER_S = 5.0
SET_BACK_S = -3600.0


async def main(folder: str) -> None:
    """An order that is under way at one instance, seen by the other."""
    database = await open_database("orders", Settings(data=Path(folder)), metadata)
    clock = FakeClock()
    owner, other = Store(database), Store(database, clock)
    seen: dict[str, bool] = {}

    async def look(name: str, ahead_s: float = OTHER_S) -> None:
        step(ahead_s)
        swept = [found.order_id for found in await other.sweep(10)]
        known = await other.get(order.order_id)
        assert known is not None
        seen[name] = other.abandoned(known)
        assert swept == ([order.order_id] if seen[name] else [])

    try:
        step(OWNER_S)
        order, _ = await owner.claim("key", b"request", ())
        await look("new, to a clock that is ahead")
        await look("new, to a clock that is behind", -OTHER_S)
        clock.advance(3)
        await look("after 3 s")
        step(SET_BACK_S)
        order = await owner.advance(order, RESERVED)
        clock.advance(3)
        await look("renewed by a clock that was set back")
        clock.advance(3)
        await look("3 s after that")
        step(OWNER_S)
        order = await owner.advance(order, AUTHORIZED)
        clock.advance(3)
        await look("renewed by a clock that was set forward")
        clock.advance(4)
        await look("silent for 4 s")
        step(OTHER_S)
        known = await other.get(order.order_id)
        assert known is not None
        taken = await other.take_over(known)
        assert taken is not None
        clock.advance(3)
        step(OWNER_S)
        late = Store(database, clock)
        seen["taken over, to a third one"] = late.abandoned(taken)
        clock.advance(4)
        seen["taken over, and silent again"] = late.abandoned(taken)
    finally:
        await database.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
