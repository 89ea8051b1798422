"""mesh.inventory.v1.Inventory over a real socket."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import PreconditionFailure

from mesh.inventory.v1 import (
    BatchGetStockRequest,
    ImportStockRequest,
    InventoryAsyncStub,
    InventoryStub,
    ReleaseRequest,
    ReservationState,
    ReserveRequest,
    StockLine,
)
from services.runtime.errors import detail
from tests.services.conftest import Serve, Shop, fields, refused

HELD = ReservationState.RESERVATION_STATE_HELD
RELEASED = ReservationState.RESERVATION_STATE_RELEASED


@pytest.fixture
async def inventory(serve: Serve) -> InventoryAsyncStub:
    """One instance, with 10 pieces of "few"."""
    stub = InventoryStub(await serve("inventory"))
    await deliver(stub, "first", [("few", 10)])
    return stub


async def deliver(stub: InventoryAsyncStub, import_id: str, lines: Iterable[tuple[str, int]]) -> Any:
    """Import stock; the id stands in the first message alone."""

    async def requests() -> AsyncIterator[ImportStockRequest]:
        name = import_id
        for sku, quantity in lines:
            yield ImportStockRequest(import_id=name, line=StockLine(sku=sku, quantity=quantity))
            name = ""

    return await stub.ImportStock(requests())


async def stock(stub: InventoryAsyncStub, *skus: str) -> dict[str, int]:
    """Available pieces by sku."""
    answer = await stub.BatchGetStock(BatchGetStockRequest(skus=skus))
    return {line.sku: line.quantity for line in answer.stocks}


def reserve(reservation_id: str, *lines: tuple[str, int]) -> ReserveRequest:
    """A request."""
    return ReserveRequest(reservation_id=reservation_id, lines=[StockLine(sku=s, quantity=q) for s, q in lines])


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    """(type, subject) of each violation that a FAILED_PRECONDITION names."""
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
    failure = detail(error, PreconditionFailure)
    assert failure is not None
    return [(violation.type, violation.subject) for violation in failure.violations]


async def test_reserve_and_release(inventory: InventoryAsyncStub) -> None:
    """Reserving takes pieces once, releasing gives them back once, however often either is repeated."""
    request = reserve("r1", ("moka-3", 2), ("few", 3))
    first = await inventory.Reserve(request)
    assert first.reservation.state == HELD
    assert [line.sku for line in first.reservation.lines] == ["few", "moka-3"]
    assert await inventory.Reserve(request) == first
    assert (await stock(inventory, "few"))["few"] == 7
    released = await inventory.Release(ReleaseRequest(reservation_id="r1"))
    assert released.reservation.state == RELEASED
    assert released.reservation.lines == first.reservation.lines
    assert await inventory.Release(ReleaseRequest(reservation_id="r1")) == released
    assert (await stock(inventory, "few"))["few"] == 10


async def test_all_lines_or_none(inventory: InventoryAsyncStub) -> None:
    """With one line short nothing is taken, and each sku that is short is named, an unknown one too."""
    before = await stock(inventory, "few", "moka-3")
    error = await refused(inventory.Reserve(reserve("r1", ("moka-3", 1), ("few", 11), ("unknown", 1))))
    assert violations(error) == [("STOCK", "few"), ("STOCK", "unknown")]
    assert await stock(inventory, "few", "moka-3", "unknown") == before
    await inventory.Reserve(reserve("r1", ("few", 10)))


async def test_other_lines_under_an_id(inventory: InventoryAsyncStub) -> None:
    """An id stands for its lines: with others it is ALREADY_EXISTS, and nothing is taken."""
    await inventory.Reserve(reserve("r1", ("few", 1)))
    error = await refused(inventory.Reserve(reserve("r1", ("few", 2))))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert (await stock(inventory, "few"))["few"] == 9


async def test_release_that_comes_first(inventory: InventoryAsyncStub) -> None:
    """A reservation released before it was made can never be made."""
    released = await inventory.Release(ReleaseRequest(reservation_id="late"))
    assert released.reservation.state == RELEASED
    assert violations(await refused(inventory.Reserve(reserve("late", ("few", 1))))) == [("RELEASED", "late")]
    assert (await stock(inventory, "few"))["few"] == 10


async def test_import(inventory: InventoryAsyncStub) -> None:
    """A delivery adds up, makes new skus known, is summed up, and counts once under its id."""
    lines = [("few", 5), ("brand-new", 1), ("few", 2)]
    summary = await deliver(inventory, "d1", lines)
    assert (summary.import_id, summary.lines, summary.skus, summary.units) == ("d1", 3, 2, 8)
    assert await deliver(inventory, "d1", lines) == summary
    assert await stock(inventory, "few", "brand-new") == {"few": 17, "brand-new": 1}
    other = await refused(asyncio.ensure_future(deliver(inventory, "d1", [("few", 1)])))
    assert other.code() is grpc.StatusCode.ALREADY_EXISTS
    assert (await stock(inventory, "few"))["few"] == 17


async def test_import_is_all_or_nothing(inventory: InventoryAsyncStub) -> None:
    """A bad line in the middle of the stream refuses all of it, and is named by its place."""
    error = await refused(asyncio.ensure_future(deliver(inventory, "d2", [("few", 5), ("few", 0), ("few", 5)])))
    assert fields(error) == ["requests[1].line.quantity"]
    assert (await stock(inventory, "few"))["few"] == 10


async def test_bad_requests_name_their_fields(inventory: InventoryAsyncStub) -> None:
    """Each bad field of each method is named by a BadRequest."""
    bad = reserve("", ("UPPER", 0), ("few", 1), ("few", 1))
    assert fields(await refused(inventory.Reserve(bad))) == [
        "reservation_id", "lines[0].sku", "lines[0].quantity", "lines[2].sku",
    ]  # fmt: skip
    assert fields(await refused(inventory.Reserve(reserve("r")))) == ["lines"]
    assert fields(await refused(inventory.Release(ReleaseRequest(reservation_id="x" * 129)))) == ["reservation_id"]
    assert fields(await refused(inventory.BatchGetStock(BatchGetStockRequest()))) == ["skus"]
    assert fields(await refused(inventory.BatchGetStock(BatchGetStockRequest(skus=["ok", ""])))) == ["skus[1]"]
    assert fields(await refused(asyncio.ensure_future(deliver(inventory, "d", [])))) == ["requests"]
    assert fields(await refused(asyncio.ensure_future(deliver(inventory, "", [("few", 1)])))) == [
        "requests[0].import_id"
    ]


_BUYER = """
import asyncio, sys
from services.inventory.store import Store, metadata
from services.runtime.database import open_database
from services.runtime.errors import CallError
from services.runtime.settings import Settings

async def main(buyer, rounds):
    database = await open_database("inventory", Settings(), metadata)
    store = Store(database)
    won = []
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(rounds):
        try:
            await store.reserve(f"{buyer}-{number}", [(f"last-{number}", 1)])
            won.append(number)
        except CallError as error:
            assert "0 available" in error.message, error
    print(",".join(map(str, won)), flush=True)
    await database.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_two_processes_never_sell_the_last_piece_twice(shop: Shop) -> None:
    """Two processes race for the last piece of each of 100 products: each piece is sold exactly once."""
    rounds = 100
    stub = InventoryStub(await shop.channel(await shop.start("inventory")))
    await deliver(stub, "last ones", [(f"last-{number}", 1) for number in range(rounds)])
    settings = shop.settings()
    where = {"MESH_DATABASE_URL": settings.database_url, "MESH_DATA": str(settings.data or "")}
    buyers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BUYER, buyer, str(rounds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=os.environ | where,
        )
        for buyer in ("anna", "bert")
    ]  # fmt: skip
    try:
        async with asyncio.timeout(120):
            for buyer in buyers:
                assert buyer.stdout is not None
                assert await buyer.stdout.readline() == b"ready\n"
            outputs = await asyncio.gather(*(buyer.communicate(b"go\n") for buyer in buyers))
    finally:
        for buyer in buyers:
            if buyer.returncode is None:
                buyer.kill()
                await buyer.wait()
    assert [buyer.returncode for buyer in buyers] == [0, 0]
    anna, bert = ([int(word) for word in out.decode().strip().split(",") if word] for out, _ in outputs)
    assert sorted(anna + bert) == list(range(rounds))
    assert set((await stock(stub, *(f"last-{number}" for number in range(rounds)))).values()) == {0}


async def test_the_same_reservation_at_two_instances_at_once(shop: Shop) -> None:
    """The same reservation several times at the same moment takes its pieces once, also when they are the last."""
    first = InventoryStub(await shop.channel(await shop.start("inventory")))
    second = InventoryStub(await shop.channel(await shop.start("inventory", instance_id="inventory-2")))
    await deliver(first, "stock", [(f"last-{number}", 2) for number in range(20)])
    for number in range(20):
        wanted = reserve(f"r{number}", (f"last-{number}", 2))
        answers = await asyncio.gather(*(stub.Reserve(wanted) for stub in [first, second] * 2))
        assert all(answer == answers[0] for answer in answers)
        assert await stock(first, f"last-{number}") == {f"last-{number}": 0}
