"""mesh.payments.v1.Payments over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import PreconditionFailure

from mesh.common.v1 import Money
from mesh.payments.v1 import (
    AuthorizeRequest,
    CaptureRequest,
    PaymentsAsyncStub,
    PaymentsStub,
    PaymentState,
    VoidRequest,
)
from services.runtime.errors import detail
from tests.services.conftest import Serve, Shop, fields, refused

AUTHORIZED = PaymentState.PAYMENT_STATE_AUTHORIZED
DECLINED = PaymentState.PAYMENT_STATE_DECLINED
CAPTURED = PaymentState.PAYMENT_STATE_CAPTURED
VOIDED = PaymentState.PAYMENT_STATE_VOIDED


@pytest.fixture
async def payments(serve: Serve) -> PaymentsAsyncStub:
    """One instance."""
    return PaymentsStub(await serve("payments"))


def authorize(payment_id: str = "p1", key: str = "a1", units: int = 12, method: str = "") -> AuthorizeRequest:
    """A request."""
    amount = Money(currency_code="EUR", units=units, nanos=340_000_000)
    return AuthorizeRequest(idempotency_key=key, payment_id=payment_id, amount=amount, payment_method=method)


def capture(payment_id: str = "p1", key: str = "c1") -> CaptureRequest:
    """A request."""
    return CaptureRequest(idempotency_key=key, payment_id=payment_id)


def void(payment_id: str = "p1", key: str = "v1") -> VoidRequest:
    """A request."""
    return VoidRequest(idempotency_key=key, payment_id=payment_id)


def stuck_in(error: grpc.aio.AioRpcError) -> str:
    """The state that a FAILED_PRECONDITION names."""
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
    failure = detail(error, PreconditionFailure)
    assert failure is not None
    assert [violation.subject for violation in failure.violations] == ["p1"]
    return str(failure.violations[0].type)


async def test_the_same_key_gives_the_same_answer(payments: PaymentsAsyncStub) -> None:
    """A repeated request gets the answer of the first, even after the payment moved on."""
    authorized = await payments.Authorize(authorize())
    assert authorized.payment.state == AUTHORIZED
    assert (authorized.payment.amount.units, authorized.payment.amount.nanos) == (12, 340_000_000)
    captured = await payments.Capture(capture())
    assert captured.payment.state == CAPTURED
    assert await payments.Authorize(authorize()) == authorized
    assert await payments.Capture(capture()) == captured


async def test_another_request_under_a_key(payments: PaymentsAsyncStub) -> None:
    """A used key refuses any other request: another amount, another payment, another method."""
    await payments.Authorize(authorize())
    calls: list[Any] = [
        payments.Authorize(authorize(units=13)),
        payments.Authorize(authorize(payment_id="p2")),
        payments.Capture(capture(key="a1")),
        payments.Void(void(key="a1")),
    ]
    for call in calls:
        error = await refused(call)
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        assert "'a1'" in (error.details() or "")


async def test_a_payment_id_is_taken(payments: PaymentsAsyncStub) -> None:
    """A payment is authorized once, whatever the key."""
    await payments.Authorize(authorize())
    assert (await refused(payments.Authorize(authorize(key="a2")))).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_declined(payments: PaymentsAsyncStub) -> None:
    """The token for it is declined with a reason; the payment cannot be captured, and voiding leaves it."""
    answer = await payments.Authorize(authorize(method="tok_declined"))
    assert (answer.payment.state, answer.payment.decline_reason) == (DECLINED, "card_declined")
    assert await payments.Authorize(authorize(method="tok_declined")) == answer
    assert stuck_in(await refused(payments.Capture(capture()))) == "DECLINED"
    assert (await payments.Void(void())).payment.state == DECLINED


async def test_only_the_drawn_moves(payments: PaymentsAsyncStub) -> None:
    """Captured stays captured, voided stays voided; the error names the state."""
    await payments.Authorize(authorize())
    await payments.Capture(capture())
    assert stuck_in(await refused(payments.Void(void()))) == "CAPTURED"
    assert stuck_in(await refused(payments.Capture(capture(key="c2")))) == "CAPTURED"


async def test_void(payments: PaymentsAsyncStub) -> None:
    """A voided payment is never captured, and may be voided again."""
    await payments.Authorize(authorize())
    assert (await payments.Void(void())).payment.state == VOIDED
    assert (await payments.Void(void(key="v2"))).payment.state == VOIDED
    assert stuck_in(await refused(payments.Capture(capture()))) == "VOIDED"


async def test_void_that_comes_first(payments: PaymentsAsyncStub) -> None:
    """A payment voided before it was known can never be authorized."""
    answer = await payments.Void(void())
    assert answer.payment.state == VOIDED
    assert not answer.payment.HasField("amount")
    assert stuck_in(await refused(payments.Authorize(authorize()))) == "VOIDED"


async def test_capture_of_nothing(payments: PaymentsAsyncStub) -> None:
    """Capturing an unknown payment is NOT_FOUND, and leaves the key free."""
    assert (await refused(payments.Capture(capture()))).code() is grpc.StatusCode.NOT_FOUND
    await payments.Authorize(authorize())
    assert (await payments.Capture(capture())).payment.state == CAPTURED


async def test_one_key_at_two_instances_at_once(shop: Shop) -> None:
    """The same request sent to two instances at the same moment, many times, makes one payment and one answer."""
    first = PaymentsStub(await shop.channel(await shop.start("payments")))
    second = PaymentsStub(await shop.channel(await shop.start("payments", instance_id="payments-2")))
    stubs = [first, second] * 4
    answers = await asyncio.gather(*(stub.Authorize(authorize()) for stub in stubs))
    assert all(answer == answers[0] for answer in answers)
    captures = await asyncio.gather(*(stub.Capture(capture()) for stub in stubs))
    assert all(answer == captures[0] for answer in captures)


@pytest.mark.parametrize("known", [True, False])
async def test_the_same_void_at_two_instances_at_once(shop: Shop, known: bool) -> None:
    """The same void twice at the same moment, of a payment that is known or not yet, gives one answer."""
    first = PaymentsStub(await shop.channel(await shop.start("payments")))
    second = PaymentsStub(await shop.channel(await shop.start("payments", instance_id="payments-2")))
    for number in range(20):
        payment, key = f"p{number}", f"v{number}"
        if known:
            await first.Authorize(authorize(payment, f"a{number}"))
        answers = await asyncio.gather(*(stub.Void(void(payment, key)) for stub in [first, second] * 2))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0].payment.state == VOIDED


async def test_capture_and_void_at_once(shop: Shop) -> None:
    """Of a capture and a void at the same moment one wins, and the other is told which state it met."""
    first = PaymentsStub(await shop.channel(await shop.start("payments")))
    second = PaymentsStub(await shop.channel(await shop.start("payments", instance_id="payments-2")))
    for number in range(20):
        await first.Authorize(authorize(f"p{number}", f"a{number}"))
        taken, given = await asyncio.gather(
            first.Capture(capture(f"p{number}", f"c{number}")),
            second.Void(void(f"p{number}", f"v{number}")),
            return_exceptions=True,
        )
        lost, won = (given, CAPTURED) if not isinstance(taken, BaseException) else (taken, VOIDED)
        assert isinstance(lost, grpc.aio.AioRpcError)
        failure = detail(lost, PreconditionFailure)
        assert failure is not None
        assert failure.violations[0].type == PaymentState.Name(won).removeprefix("PAYMENT_STATE_")


async def test_bad_requests_name_their_fields(payments: PaymentsAsyncStub) -> None:
    """Each bad field of each method is named by a BadRequest."""
    bad = AuthorizeRequest(amount=Money(currency_code="EUR"), payment_method="x" * 129)
    assert fields(await refused(payments.Authorize(bad))) == [
        "idempotency_key", "payment_id", "amount", "payment_method",
    ]  # fmt: skip
    for amount in (
        Money(currency_code="euro", units=1),
        Money(currency_code="EUR", units=-1),
        Money(currency_code="EUR", units=1, nanos=-1),
        Money(currency_code="EUR", units=1, nanos=1_000_000_000),
        Money(currency_code="EUR", units=100_000_000, nanos=1),
    ):
        request = AuthorizeRequest(idempotency_key="k", payment_id="p", amount=amount)
        assert fields(await refused(payments.Authorize(request))) == ["amount"]
    assert fields(await refused(payments.Capture(CaptureRequest()))) == ["idempotency_key", "payment_id"]
    assert fields(await refused(payments.Void(VoidRequest(payment_id="x" * 129)))) == ["idempotency_key", "payment_id"]
