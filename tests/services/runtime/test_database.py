"""The database under several instances: creation, locking, cancellation."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, open_database
from services.runtime.errors import CallError
from services.runtime.settings import Settings

metadata = MetaData()
counters = Table(
    "counters", metadata, Column("name", String(20), primary_key=True), Column("value", Integer, nullable=False)
)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database with one counter, "n", at 0."""
    made = await open_database("test", Settings(data=tmp_path), metadata)
    await made.write(lambda connection: connection.execute(insert(counters).values(name="n", value=0)))
    yield made
    await made.close()


async def value(database: Database) -> int:
    """What the counter shows."""
    return await database.read(_value)


async def _value(connection: AsyncConnection) -> int:
    found: int = (await connection.execute(select(counters.c.value).where(counters.c.name == "n"))).scalar_one()
    return found


async def count(connection: AsyncConnection) -> None:
    """Read, then write: what a deferred transaction cannot do while others write."""
    seen = await _value(connection)
    await connection.execute(update(counters).where(counters.c.name == "n").values(value=seen + 1))


async def test_pragmas(database: Database, tmp_path: Path) -> None:
    """The file is in WAL mode, foreign keys hold, and waiting for a lock ends below a call's deadline."""

    async def pragmas(connection: AsyncConnection) -> list[object]:
        names = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        return [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in names]

    assert await database.read(pragmas) == ["wal", 1, 1, 1000]
    assert await database.write(pragmas) == ["wal", 1, 1, 0], "a writer's wait is not SQLite's"


async def test_two_instances_lose_no_update(database: Database, tmp_path: Path) -> None:
    """Transactions that read and then write, at two instances at once, all count."""
    second = await open_database("test", Settings(data=tmp_path), metadata)
    try:
        await asyncio.gather(*(one.write(count) for one in (database, second) for _ in range(50)))
    finally:
        await second.close()
    assert await value(database) == 100


async def test_an_instance_with_many_writes_lets_others_in(database: Database, tmp_path: Path) -> None:
    """Slow transactions, one after the other for longer than others wait: these come in between, and none fails."""
    ended: list[str] = []

    async def write(one: Database, name: str) -> None:
        async def slow(connection: AsyncConnection) -> None:
            await count(connection)
            await asyncio.sleep(0.15)

        await one.write(slow)
        ended.append(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(write(database, "many"))
        second = await open_database("test", Settings(data=tmp_path), metadata)
        await group.create_task(write(second, "one"))
    await second.close()
    assert ended.index("one") <= 4
    assert await value(database) == 11


async def test_a_transaction_that_raises_did_not_happen(database: Database) -> None:
    """What a transaction did before it raised is undone."""

    async def broken(connection: AsyncConnection) -> None:
        await count(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(broken)
    assert await value(database) == 0


async def test_cancellation_leaves_whole_transactions(database: Database) -> None:
    """Writers cancelled at any moment leave a database that counts what was told, and go on working."""
    told = 0
    for number in range(60):
        task = asyncio.create_task(database.write(count))
        for _ in range(number % 20):
            await asyncio.sleep(0.0002)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            continue
        told += 1
    before = await value(database)
    assert told <= before <= 60
    await asyncio.wait_for(database.write(count), 30)
    assert await value(database) == before + 1


async def test_cancellation_stops_at_the_caller(database: Database) -> None:
    """A caller that is cancelled returns at once; its transaction ends by itself, and close waits for it."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        await count(connection)
        begun.set()
        await go.wait()

    task = asyncio.create_task(database.write(slow))
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = asyncio.create_task(database.write(count))
    go.set()
    await asyncio.wait_for(waiting, 30)
    assert await value(database) == 2


async def test_a_locked_file_is_unavailable(database: Database, tmp_path: Path) -> None:
    """When another process holds the write lock for too long, the caller is told UNAVAILABLE; then all is well."""
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CallError) as caught:
            await database.write(count)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert "locked" in caught.value.message
        assert await value(database) == 0
        other.execute("ROLLBACK")
    finally:
        other.close()
    await database.write(count)
    assert await value(database) == 1


async def test_a_row_inserted_by_another_is_seen(database: Database) -> None:
    """A transaction that lost a race for a row is run again and finds it."""
    runs = 0

    async def claim(connection: AsyncConnection) -> int:
        nonlocal runs
        runs += 1
        # As on a server database, where another may insert between our look and our insert.
        if runs > 1:
            return await _value(connection)
        await connection.execute(insert(counters).values(name="n", value=7))
        raise AssertionError("the row was there")

    assert await database.write(claim) == 0
    assert runs == 2


_OPEN = """
import asyncio, sys
from pathlib import Path
from services.catalog.store import Store, metadata
from services.runtime.database import open_database
from services.runtime.settings import Settings

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    database = await open_database("catalog", Settings(data=Path(sys.argv[1])), metadata)
    await Store(database).seed()
    await database.close()

asyncio.run(main())
"""


async def test_processes_that_start_at_once(tmp_path: Path) -> None:
    """Three processes that create and seed one database at the same moment all succeed, and it is seeded once."""
    starting = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _OPEN, str(tmp_path / "new"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(120):
            for process in starting:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            ended = await asyncio.gather(*(process.communicate(b"go\n") for process in starting))
    finally:
        for process in starting:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert [process.returncode for process in starting] == [0, 0, 0], ended
    from services.catalog.store import metadata as catalog
    from services.catalog.store import products
    from services.shop.assortment import ASSORTMENT

    made = await open_database("catalog", Settings(data=tmp_path / "new"), catalog)
    try:
        counted = await made.read(lambda connection: connection.scalar(select(func.count()).select_from(products)))
    finally:
        await made.close()
    assert counted == len(ASSORTMENT)
