"""mesh.payments.v1.Payments."""

from __future__ import annotations

import grpc

from mesh.payments.v1 import (
    AuthorizeRequest,
    AuthorizeResponse,
    CaptureRequest,
    CaptureResponse,
    Payment,
    PaymentsServicer,
    PaymentState,
    VoidRequest,
    VoidResponse,
    add_PaymentsServicer_to_server,
)
from services.payments import store
from services.payments.store import Key, Store, metadata
from services.runtime.host import Host, Service
from services.runtime.validation import LONGEST_ID, Checks
from services.shop import money
from services.shop.limits import MOST_UNITS
from services.shop.moment import timestamp

_STATES = {
    store.AUTHORIZED: PaymentState.PAYMENT_STATE_AUTHORIZED,
    store.DECLINED: PaymentState.PAYMENT_STATE_DECLINED,
    store.CAPTURED: PaymentState.PAYMENT_STATE_CAPTURED,
    store.VOIDED: PaymentState.PAYMENT_STATE_VOIDED,
}


class Payments(PaymentsServicer):
    """Moves money in two steps. The contract stands in protos/mesh/payments/v1."""

    def __init__(self, ledger: Store) -> None:
        self._store = ledger

    async def Authorize(
        self, request: AuthorizeRequest, context: grpc.aio.ServicerContext[AuthorizeRequest, AuthorizeResponse]
    ) -> AuthorizeResponse:
        """Put an amount aside."""
        checks = _checked(request)
        flaw = money.flaw(request.amount)
        if flaw:
            checks.fail("amount", flaw)
        elif not 0 < money.to_nanos(request.amount) <= MOST_UNITS * money.NANOS:
            checks.fail("amount", f"more than 0, at most {MOST_UNITS} units are accepted")
        if len(request.payment_method) > LONGEST_ID:
            checks.fail("payment_method", f"at most {LONGEST_ID} characters are accepted")
        checks.done()
        payment = await self._store.authorize(_key(request), request.payment_id, request.amount, request.payment_method)
        return AuthorizeResponse(payment=_payment(payment))

    async def Capture(
        self, request: CaptureRequest, context: grpc.aio.ServicerContext[CaptureRequest, CaptureResponse]
    ) -> CaptureResponse:
        """Take the amount."""
        _checked(request).done()
        return CaptureResponse(payment=_payment(await self._store.capture(_key(request), request.payment_id)))

    async def Void(
        self, request: VoidRequest, context: grpc.aio.ServicerContext[VoidRequest, VoidResponse]
    ) -> VoidResponse:
        """Give the amount up."""
        _checked(request).done()
        return VoidResponse(payment=_payment(await self._store.void(_key(request), request.payment_id)))


Request = AuthorizeRequest | CaptureRequest | VoidRequest


def _checked(request: Request) -> Checks:
    checks = Checks()
    checks.identity("idempotency_key", request.idempotency_key)
    checks.identity("payment_id", request.payment_id)
    return checks


def _key(request: Request) -> Key:
    kind = request.DESCRIPTOR.name.encode()
    return Key(request.idempotency_key, kind + b"\0" + request.SerializeToString(deterministic=True))


def _payment(payment: store.Payment) -> Payment:
    return Payment(
        payment_id=payment.payment_id,
        state=_STATES[payment.state],
        amount=payment.amount,
        decline_reason=payment.decline_reason,
        created_at=timestamp(payment.created_us),
    )


async def build(host: Host) -> Service:
    """The service on its database."""
    database = await host.database(metadata)
    ledger = Store(database)
    return Service(
        add=lambda server: add_PaymentsServicer_to_server(Payments(ledger), server),
        checks={"database": database.ping},
    )
