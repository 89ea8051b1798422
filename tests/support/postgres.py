"""A real PostgreSQL for the tests: a cluster of its own in a temporary directory, gone at the end.

Its programs are found on PATH or where Debian puts them. It does not run as root: there it runs as ``postgres``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support import servers
from tests.support.ports import free_ports
from tests.support.wait import until

_START_S = 90.0
_USER = "postgres"


class Postgres:
    """A running server. ``database`` makes a new one and returns its URL."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = itertools.count(1)

    async def connect(self, database: str = "postgres") -> psycopg.AsyncConnection[tuple[object, ...]]:
        """A connection that commits each statement."""
        return await psycopg.AsyncConnection.connect(
            host="127.0.0.1", port=self._port, user=_USER, dbname=database, autocommit=True, connect_timeout=10
        )

    async def database(self) -> str:
        """An empty database, as the services take it in ``MESH_DATABASE_URL``."""
        name = f"test_{next(self._numbers)}"
        async with await self.connect() as connection:
            await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self._port}/{name}"


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Postgres]:
    """A server while the block lasts."""
    program = servers.find("postgres")
    assert program is not None, "tests that need it are marked `postgres`"
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    owner = _USER if os.geteuid() == 0 else None
    if owner is not None:
        shutil.chown(directory, owner)
    try:
        data = directory / "data"
        making = await asyncio.create_subprocess_exec(
            program.resolve().with_name("initdb"),
            *("-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N"),
            user=owner, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        words, _ = await making.communicate()
        if making.returncode:
            raise RuntimeError(f"initdb ended with status {making.returncode}: {words.decode(errors='replace')}")
        with free_ports(1) as (port,):
            pass
        with (directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                program, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", directory,
                *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
                user=owner, cwd=directory, stdout=log, stderr=log,
            )  # fmt: skip
        server = Postgres(port)

        async def ready() -> bool:
            if process.returncode is not None:
                raise RuntimeError(
                    f"postgres ended with status {process.returncode}: {(directory / 'log').read_text()}"
                )
            try:
                await (await server.connect()).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            await until(ready, within_s=_START_S, what="postgres takes connections")
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(3)  # SIGQUIT: at once
            await process.wait()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    """One server for the tests of a module; each takes a database of its own."""
    async with running() as server:
        yield server
