"""The payments' tables, and the machine that a payment is.

Each change is one transaction: it locks the payment, looks the idempotency key up, moves the payment and keeps
the answer under the key. The state after an error is the state before it, and so errors need no record.

The lock comes first: on a server database a request may come twice at the same moment (a hedge, a retry), at two
instances. The second waits for the first, and then finds its answer under the key. Where there is no payment to
lock, both insert one, the second insert fails, and that transaction runs again from the start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.common.v1 import Money
from services.runtime.database import Database
from services.runtime.errors import already_exists, not_found, precondition
from services.runtime.validation import LONGEST_ID
from services.shop.moment import now_us

AUTHORIZED = "AUTHORIZED"
DECLINED = "DECLINED"
CAPTURED = "CAPTURED"
VOIDED = "VOIDED"

DECLINED_METHOD = "tok_declined"

metadata = MetaData()

payments = Table(
    "payments",
    metadata,
    Column("payment_id", String(LONGEST_ID), primary_key=True),
    Column("state", String(16), nullable=False),
    # Empty and zero for a payment that was voided before it was known.
    Column("currency_code", String(3), nullable=False),
    Column("amount_units", BigInteger, nullable=False),
    Column("amount_nanos", Integer, nullable=False),
    Column("decline_reason", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

answers = Table(
    "payment_answers",
    metadata,
    Column("idempotency_key", String(LONGEST_ID), primary_key=True),
    Column("request", LargeBinary, nullable=False),
    Column("payment_id", String(LONGEST_ID), nullable=False),
    # The answer is the payment in the state that it had then.
    Column("state", String(16), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Payment:
    """One payment. ``amount`` is None when it was voided before it was known."""

    payment_id: str
    state: str
    amount: Money | None
    decline_reason: str
    created_us: int


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key, and the request that stands under it (its kind and its bytes)."""

    name: str
    request: bytes


Move = Callable[[AsyncConnection, Payment | None], Awaitable[Payment]]


class Store:
    """Payments, and the answers given under idempotency keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def authorize(self, key: Key, payment_id: str, amount: Money, method: str) -> Payment:
        """A new payment: AUTHORIZED, or DECLINED by its method.

        Raises:
            CallError: ALREADY_EXISTS, the key or the payment is taken; FAILED_PRECONDITION, it was voided before.
        """

        async def move(connection: AsyncConnection, known: Payment | None) -> Payment:
            if known is not None:
                if known.state == VOIDED:
                    raise _illegal(known, "authorized")
                raise already_exists("payment", payment_id, f"payment {payment_id!r} was authorized under another key")
            declined = method == DECLINED_METHOD
            state, reason = (DECLINED, "card_declined") if declined else (AUTHORIZED, "")
            made = Payment(payment_id, state, amount, reason, now_us())
            await _record(connection, made)
            return made

        return await self._once(key, payment_id, move)

    async def capture(self, key: Key, payment_id: str) -> Payment:
        """AUTHORIZED becomes CAPTURED.

        Raises:
            CallError: NOT_FOUND; FAILED_PRECONDITION, it is in another state; ALREADY_EXISTS, the key is taken.
        """

        async def move(connection: AsyncConnection, known: Payment | None) -> Payment:
            if known is None:
                raise not_found("payment", payment_id)
            if known.state != AUTHORIZED:
                raise _illegal(known, "captured")
            return await _moved(connection, known, CAPTURED)

        return await self._once(key, payment_id, move)

    async def void(self, key: Key, payment_id: str) -> Payment:
        """AUTHORIZED becomes VOIDED; what holds no amount stays as it is; an unknown payment is recorded as VOIDED.

        Raises:
            CallError: FAILED_PRECONDITION, it is CAPTURED; ALREADY_EXISTS, the key is taken.
        """

        async def move(connection: AsyncConnection, known: Payment | None) -> Payment:
            if known is None:
                known = Payment(payment_id, VOIDED, None, "", now_us())
                await _record(connection, known)
                return known
            if known.state == CAPTURED:
                raise _illegal(known, "voided")
            return await _moved(connection, known, VOIDED) if known.state == AUTHORIZED else known

        return await self._once(key, payment_id, move)

    async def _once(self, key: Key, payment_id: str, move: Move) -> Payment:
        """Do ``move`` and keep its answer under the key, or give the answer that is kept there."""

        async def transaction(connection: AsyncConnection) -> Payment:
            known = await _locked(connection, payment_id)
            query = select(answers.c.request, answers.c.payment_id, answers.c.state)
            kept = (await connection.execute(query.where(answers.c.idempotency_key == key.name))).one_or_none()
            if kept is not None and kept.request != key.request:
                text = f"the idempotency key {key.name!r} was already used for another request"
                raise already_exists("idempotency_key", key.name, text)
            if kept is not None and known is not None:
                return replace(known, state=kept.state)
            after = await move(connection, known)
            await connection.execute(
                insert(answers).values(
                    idempotency_key=key.name, request=key.request, payment_id=payment_id, state=after.state
                )
            )
            return after

        return await self._database.write(transaction)


async def _locked(connection: AsyncConnection, payment_id: str) -> Payment | None:
    """The payment, which no other transaction moves until this one ends."""
    query = select(payments).where(payments.c.payment_id == payment_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    _, state, currency_code, units, nanos, reason, created_us = row
    amount = Money(currency_code=currency_code, units=units, nanos=nanos) if currency_code else None
    return Payment(payment_id, state, amount, reason, created_us)


async def _record(connection: AsyncConnection, made: Payment) -> None:
    amount = made.amount or Money()
    await connection.execute(
        insert(payments).values(
            payment_id=made.payment_id,
            state=made.state,
            currency_code=amount.currency_code,
            amount_units=amount.units,
            amount_nanos=amount.nanos,
            decline_reason=made.decline_reason,
            created_us=made.created_us,
        )
    )


async def _moved(connection: AsyncConnection, known: Payment, state: str) -> Payment:
    """Move a payment that is locked."""
    await connection.execute(update(payments).where(payments.c.payment_id == known.payment_id).values(state=state))
    return replace(known, state=state)


def _illegal(payment: Payment, wanted: str) -> Exception:
    text = f"payment {payment.payment_id!r} is {payment.state} and cannot be {wanted}"
    return precondition([(payment.state, payment.payment_id, text)])
