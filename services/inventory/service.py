"""mesh.inventory.v1.Inventory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc

from mesh.inventory.v1 import (
    BatchGetStockRequest,
    BatchGetStockResponse,
    ImportStockRequest,
    ImportStockResponse,
    InventoryServicer,
    ReleaseRequest,
    ReleaseResponse,
    Reservation,
    ReservationState,
    ReserveRequest,
    ReserveResponse,
    StockLine,
    add_InventoryServicer_to_server,
)
from services.inventory import store
from services.inventory.store import Store, metadata
from services.runtime.host import Host, Service
from services.shop.checks import Checks
from services.shop.limits import MOST_ITEMS
from services.shop.moment import timestamp

_MOST_RESERVED = 1_000_000
_MOST_IMPORTED_LINES = 10_000
_MOST_IMPORTED = 1_000_000_000
_MOST_ASKED = 1000

_STATES = {
    store.HELD: ReservationState.RESERVATION_STATE_HELD,
    store.RELEASED: ReservationState.RESERVATION_STATE_RELEASED,
}


class Inventory(InventoryServicer):
    """How many pieces there are. The contract stands in protos/mesh/inventory/v1."""

    def __init__(self, stock: Store) -> None:
        self._store = stock

    async def Reserve(
        self, request: ReserveRequest, context: grpc.aio.ServicerContext[ReserveRequest, ReserveResponse]
    ) -> ReserveResponse:
        """Hold pieces: all lines or none."""
        checks = Checks()
        checks.identity("reservation_id", request.reservation_id)
        checks.goods("lines", "line", request.lines, MOST_ITEMS, _MOST_RESERVED)
        checks.done()
        lines = tuple(sorted((line.sku, line.quantity) for line in request.lines))
        return ReserveResponse(reservation=_reservation(await self._store.reserve(request.reservation_id, lines)))

    async def Release(
        self, request: ReleaseRequest, context: grpc.aio.ServicerContext[ReleaseRequest, ReleaseResponse]
    ) -> ReleaseResponse:
        """Give pieces back."""
        checks = Checks()
        checks.identity("reservation_id", request.reservation_id)
        checks.done()
        return ReleaseResponse(reservation=_reservation(await self._store.release(request.reservation_id)))

    async def ImportStock(
        self,
        request_iterator: AsyncIterator[ImportStockRequest],
        context: grpc.aio.ServicerContext[ImportStockRequest, ImportStockResponse],
    ) -> ImportStockResponse:
        """Add a delivery."""
        import_id = ""
        lines: list[tuple[str, int]] = []
        digest = hashlib.sha256()
        async for request in request_iterator:
            number = len(lines)
            path = f"requests[{number}]"
            checks = Checks()
            if not number:
                import_id = request.import_id
                checks.identity(f"{path}.import_id", import_id)
            elif request.import_id not in ("", import_id):
                checks.fail(f"{path}.import_id", f"is {request.import_id!r}; the delivery began as {import_id!r}")
            if number >= _MOST_IMPORTED_LINES:
                checks.fail(path, f"at most {_MOST_IMPORTED_LINES} lines are accepted in a delivery")
            checks.sku(f"{path}.line.sku", request.line.sku)
            checks.within(f"{path}.line.quantity", request.line.quantity, 1, _MOST_IMPORTED)
            checks.done()
            lines.append((request.line.sku, request.line.quantity))
            digest.update(f"{request.line.sku} {request.line.quantity}\n".encode())
        if not lines:
            checks = Checks()
            checks.fail("requests", "is empty; a delivery has at least one line")
            checks.done()
        summary = await self._store.deliver(import_id, digest.hexdigest(), lines)
        return ImportStockResponse(import_id=import_id, lines=summary.lines, skus=summary.skus, units=summary.units)

    async def BatchGetStock(
        self,
        request: BatchGetStockRequest,
        context: grpc.aio.ServicerContext[BatchGetStockRequest, BatchGetStockResponse],
    ) -> BatchGetStockResponse:
        """The available stock of several products."""
        checks = Checks()
        if not 1 <= len(request.skus) <= _MOST_ASKED:
            checks.fail("skus", f"has {len(request.skus)} entries; 1 to {_MOST_ASKED} are accepted")
        for number, sku in enumerate(request.skus[:_MOST_ASKED]):
            checks.sku(f"skus[{number}]", sku)
        checks.done()
        found = await self._store.available(request.skus)
        return BatchGetStockResponse(stocks=[StockLine(sku=sku, quantity=found[sku]) for sku in sorted(found)])


def _reservation(held: store.Reservation) -> Reservation:
    return Reservation(
        reservation_id=held.reservation_id,
        state=_STATES[held.state],
        lines=[StockLine(sku=sku, quantity=quantity) for sku, quantity in held.lines],
        created_at=timestamp(held.created_us),
    )


async def build(host: Host) -> Service:
    """The service on its database."""
    database = await host.database(metadata)
    stock = Store(database)
    await stock.seed()
    return Service(
        add=lambda server: add_InventoryServicer_to_server(Inventory(stock), server),
        checks={"database": database.ping},
    )
