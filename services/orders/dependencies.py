"""The services that an order needs.

A dependency's error is told in the words of the orders' contract: what the buyer can change stays what it
is (NOT_FOUND, FAILED_PRECONDITION), a service that is away or slow is UNAVAILABLE, and anything else is
a defect between the services, which is not the caller's business: it is logged and told as INTERNAL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.rpc.error_details_pb2 import PreconditionFailure

from mesh.catalog.v1 import GetProductRequest, Product
from mesh.common.v1 import Money
from mesh.inventory.v1 import ReleaseRequest, ReserveRequest, StockLine
from mesh.payments.v1 import AuthorizeRequest, CaptureRequest, Payment, VoidRequest
from services.orders.store import Line
from services.runtime.channels import served_by
from services.runtime.errors import CallError, detail, not_found, precondition, unavailable

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryCall

    from mesh.catalog.v1 import CatalogAsyncStub
    from mesh.inventory.v1 import InventoryAsyncStub
    from mesh.payments.v1 import PaymentsAsyncStub

log = structlog.get_logger()

STEP_S = 2.0
"""The longest that one call to a dependency may take, retries included; the inherited deadline may be nearer."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services that the orders call."""

    catalog: CatalogAsyncStub
    inventory: InventoryAsyncStub
    payments: PaymentsAsyncStub


class Dependencies:
    """Catalog, inventory and payments, as one order needs them; it remembers who served the order.

    No method takes a deadline. Calls inherit that of the call that places the order (`lb.aio.incoming`), or of
    the block that they are made in (`lb.deadline`).
    """

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs
        self.served_by: dict[str, str] = {}
        """Which instance served the last call to each service."""

    async def product(self, sku: str) -> Product:
        """A product; CallError NOT_FOUND when the catalog does not know it."""
        call = self._stubs.catalog.GetProduct(GetProductRequest(sku=sku), timeout=STEP_S)
        try:
            return (await self._answer("catalog", call)).product
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise not_found("product", sku) from error
            raise translated("catalog", error) from error

    async def reserve(self, reservation_id: str, lines: Sequence[Line]) -> None:
        """Hold the pieces; CallError FAILED_PRECONDITION when there are too few."""
        wanted = [StockLine(sku=line.sku, quantity=line.quantity) for line in lines]
        request = ReserveRequest(reservation_id=reservation_id, lines=wanted)
        try:
            await self._answer("inventory", self._stubs.inventory.Reserve(request, timeout=STEP_S))
        except grpc.aio.AioRpcError as error:
            raise translated("inventory", error) from error

    async def release(self, reservation_id: str) -> None:
        """Give the pieces back."""
        request = ReleaseRequest(reservation_id=reservation_id)
        call = self._stubs.inventory.Release(request, timeout=STEP_S)
        try:
            await self._answer("inventory", call)
        except grpc.aio.AioRpcError as error:
            raise translated("inventory", error) from error

    async def authorize(self, payment_id: str, amount: Money, method: str) -> Payment:
        """Put the amount aside, or be declined."""
        request = AuthorizeRequest(
            idempotency_key=f"{payment_id}/authorize", payment_id=payment_id, amount=amount, payment_method=method
        )
        try:
            return (await self._answer("payments", self._stubs.payments.Authorize(request, timeout=STEP_S))).payment
        except grpc.aio.AioRpcError as error:
            raise translated("payments", error) from error

    async def capture(self, payment_id: str) -> None:
        """Take the amount."""
        request = CaptureRequest(idempotency_key=f"{payment_id}/capture", payment_id=payment_id)
        try:
            await self._answer("payments", self._stubs.payments.Capture(request, timeout=STEP_S))
        except grpc.aio.AioRpcError as error:
            raise translated("payments", error) from error

    async def void(self, payment_id: str) -> bool:
        """Give the amount up. False when it was captured, and so cannot be."""
        request = VoidRequest(idempotency_key=f"{payment_id}/void", payment_id=payment_id)
        call = self._stubs.payments.Void(request, timeout=STEP_S)
        try:
            await self._answer("payments", call)
        except grpc.aio.AioRpcError as error:
            if _violations(error, "CAPTURED"):
                return False
            raise translated("payments", error) from error
        return True

    async def _answer(self, service: str, call: UnaryUnaryCall[Any, R]) -> R:
        response = await call
        instance = await served_by(call)
        if instance:
            self.served_by[service] = instance
        return response


def _violations(error: grpc.aio.AioRpcError, kind: str) -> list[PreconditionFailure.Violation]:
    """The violations of one type in a FAILED_PRECONDITION; of another error, none."""
    failure = detail(error, PreconditionFailure) if error.code() is grpc.StatusCode.FAILED_PRECONDITION else None
    return [] if failure is None else [found for found in failure.violations if found.type == kind]


def translated(service: str, error: grpc.aio.AioRpcError) -> CallError:
    """What the caller of the orders is told when a call to ``service`` failed."""
    code = error.code()
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        short = _violations(error, "STOCK")
        if short:
            return precondition([(found.type, found.subject, found.description) for found in short])
        # Released or voided by who took the order over: the caller may try again.
        return unavailable(f"{service}: {error.details()}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return unavailable(f"{service} did not answer in time")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED):
        return unavailable(f"{service} is unavailable: {error.details()}")
    log.error("a dependency failed", dependency=service, code=code.name, details=error.details())
    return CallError(grpc.StatusCode.INTERNAL, f"{service} failed unexpectedly; see the log of orders")
