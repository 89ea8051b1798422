"""A service's database: SQLAlchemy over asyncio, on SQLite or whatever its URL names.

Instances of a service share one database. On SQLite that is one file, in WAL mode so that readers
and a writer do not stop each other; a transaction that writes says so when it begins (BEGIN
IMMEDIATE), for one that reads first and writes later fails at once when another wrote in between.
SQLite's lock has no queue; `_Turns` makes instances take turns at it.

A *transaction* here is a function of a connection. It may be run again from the start, when
another instance inserted the same row at the same moment, and so must do nothing but talk to the database.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import MetaData, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from services.runtime.errors import unavailable
from services.runtime.settings import Settings, SettingsError

T = TypeVar("T")
Query = Callable[[AsyncConnection], Awaitable[T]]

# Less than the shortest deadline of a call between services (2 s), so that the caller learns why.
_BUSY_S = 1.0
# How often a writer asks for the lock, and after how long without a pause it lets others have it.
_ASK_S = 0.005
_TURN_S = 0.1
_READERS = 4
_WRITERS = 4
_POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": 1.0}
_ATTEMPTS = 4
_WAL_ATTEMPTS = 100
_WAL_PAUSE_S = 0.05
# sqlite3's own comes from our BEGIN IMMEDIATE, which SQLAlchemy does not see.
_AWAY = (OperationalError, PoolTimeoutError, sqlite3.OperationalError)


class Database:
    """The engines of one service instance. Made by ``open_database``, closed by ``close``.

    Reads have an engine of their own, without transactions: BEGIN, COMMIT and ROLLBACK are half of
    the cost of a short query.

    Cancellation never reaches the driver. A caller that is cancelled stops waiting; what it began runs to its end
    in a task of its own. (A connection cancelled in the middle of a statement may keep its lock until it is
    collected, and every other writer fails meanwhile.)
    """

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self._reader = reader
        self._writer = writer
        # The wait for a connection happens here, where it can be cancelled; the pools are never empty.
        self._may_read = asyncio.Semaphore(_size(reader))
        self._may_write = asyncio.Semaphore(_size(writer))
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, query: Query[T]) -> T:
        """Run a function that only reads. Each of its statements sees what was committed before it.

        Raises:
            CallError: UNAVAILABLE, when the database is away.
        """

        async def run() -> T:
            async with self._reader.connect() as connection:
                return await query(connection)

        return await self._undisturbed(self._may_read, run)

    async def write(self, transaction: Query[T]) -> T:
        """Run a transaction that writes; it is committed when this returns, and has not happened when this raises.

        When the caller is cancelled, it may be committed or not.

        Raises:
            CallError: UNAVAILABLE, when the database is away or busy for too long.
        """

        async def run() -> T:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    async with self._writer.begin() as connection:
                        return await transaction(connection)
                except IntegrityError:
                    # Another instance inserted the same row. Seen from the start, it is there.
                    if not left:
                        raise
            raise AssertionError("unreachable")

        return await self._undisturbed(self._may_write, run)

    async def _undisturbed(self, free: asyncio.Semaphore, run: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run to the end, whether or not the caller is still there then."""
        await free.acquire()
        task = asyncio.create_task(run())
        self._running.add(task)

        def ended(task: asyncio.Task[T]) -> None:
            free.release()
            self._running.discard(task)
            if not task.cancelled():
                task.exception()  # seen, even when nobody waits for it any more

        task.add_done_callback(ended)
        try:
            return await asyncio.shield(task)
        except _AWAY as error:
            raise unavailable(f"the database is unavailable or busy: {_reason(error)}") from error

    async def create(self, metadata: MetaData) -> None:
        """Create the tables that are missing. Several instances may do so at once."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                async with self._writer.begin() as connection:
                    await connection.run_sync(metadata.create_all)
                return
            except (IntegrityError, ProgrammingError, *_AWAY):
                # On a server database two may create a table at once: the second look finds it.
                if not left:
                    raise
                await asyncio.sleep(0.1)

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        await self.read(lambda connection: connection.execute(text("SELECT 1")))

    async def close(self) -> None:
        """Let what is running end, and close all connections.

        A process whose aiosqlite connections stay open does not end.
        """
        while self._running:
            await asyncio.wait(self._running)
        await self._reader.dispose()
        await self._writer.dispose()

    def __repr__(self) -> str:
        return f"<Database {self._writer.url!r}>"


async def open_database(service: str, settings: Settings, metadata: MetaData) -> Database:
    """Open a service's database and create what is missing in it.

    Raises:
        SettingsError: neither MESH_DATA nor MESH_DATABASE_URL says where it is, or it cannot be opened there.
    """
    url = _url(service, settings)
    try:
        reader = create_async_engine(
            url, pool_size=_READERS, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **_POOL
        )
        # SQLite has one writer at a time: waiting for the pool is fairer than waiting for the file.
        sqlite = reader.dialect.name == "sqlite"
        writer = create_async_engine(url, pool_size=1 if sqlite else _WRITERS, **_POOL)
    except (ArgumentError, InvalidRequestError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(f"MESH_DATABASE_URL: {_reason(error)}") from None
    database = Database(reader, writer)
    try:
        if sqlite:
            _pragmas(reader, busy_s=_BUSY_S)
            _pragmas(writer, busy_s=0)  # it waits by itself: see `_Turns`
            _begin_immediate(writer)
            await _wal(reader)
        await database.create(metadata)
    except _AWAY as error:
        await database.close()
        raise SettingsError(f"the database {reader.url!r} cannot be opened: {_reason(error)}") from None
    except BaseException:
        await database.close()
        raise
    return database


def _url(service: str, settings: Settings) -> str:
    if settings.database_url:
        return settings.database_url
    if settings.data is None:
        raise SettingsError("MESH_DATA: is not set; it names the directory of the database (or set MESH_DATABASE_URL)")
    directory = Path(settings.data).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"MESH_DATA={str(settings.data)!r}: {error.strerror}") from None
    return str(make_url("sqlite+aiosqlite://").set(database=str(directory / f"{service}.db")))


def _pragmas(engine: AsyncEngine, busy_s: float) -> None:
    """Settings of each SQLite connection."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # NORMAL: in WAL mode a power cut may cost the last transactions, never the file.
        for pragma in (f"busy_timeout = {round(busy_s * 1000)}", "foreign_keys = ON", "synchronous = NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin_immediate(engine: AsyncEngine) -> None:
    """Make each transaction take the write lock when it begins."""
    turns = _Turns()

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is deferred and comes only before a change: we begin ourselves.
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        # Not exec_driver_sql: a cursor's opening and closing are two more visits to the driver's thread.
        connection.connection.dbapi_connection.run_async(turns.begin)

    @event.listens_for(engine.sync_engine, "commit")
    @event.listens_for(engine.sync_engine, "rollback")
    def ended(_connection: Any) -> None:
        turns.ended()


class _Turns:
    """This instance's turns at SQLite's write lock, of which it has one transaction at a time.

    SQLite's own wait looks at the lock again after 1 ms, then 2, and at last every 100 ms. An instance with a queue of
    transactions leaves it free for less than a millisecond between two of them, so the others could find it taken until
    their time was over. So a writer asks often, and makes a pause that is longer than that when it has written without
    one for a while.
    """

    def __init__(self) -> None:
        self._since = self._ended_at = float("-inf")

    async def begin(self, driver: Any) -> None:
        """Begin a transaction that has the lock."""
        now = time.monotonic()
        if now - self._ended_at > _ASK_S:
            self._since = now
        elif now - self._since > _TURN_S:
            await asyncio.sleep(2 * _ASK_S)
            self._since = time.monotonic()
        deadline = now + _BUSY_S
        while True:
            try:
                await driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_ASK_S)
            self._since = time.monotonic()

    def ended(self) -> None:
        """The transaction has ended."""
        self._ended_at = time.monotonic()


async def _wal(engine: AsyncEngine) -> None:
    """Switch the file to WAL mode, which it keeps.

    The switch does not wait for the busy time-out when another process has the file, so it is repeated.
    """
    for left in reversed(range(_WAL_ATTEMPTS)):
        try:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as error:
            if not left or "locked" not in str(error):
                raise
            await asyncio.sleep(_WAL_PAUSE_S)


def _size(engine: AsyncEngine) -> int:
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    return pool.size()


def _reason(error: Exception) -> str:
    """The driver's words alone: SQLAlchemy's add the statement and its parameters."""
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)
