"""The shop's services in this process, each on a port of its own, without Consul."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

import lb
from lb.server import Around, Behavior, LoadReporter, behavior_of
from services.catalog.service import build as build_catalog
from services.inventory.service import build as build_inventory
from services.orders.service import build as build_orders
from services.payments.service import build as build_payments
from services.runtime.connections import CONNECTION, LIMIT
from services.runtime.errors import detail
from services.runtime.host import Build
from services.runtime.instance import Instance
from services.runtime.settings import Settings
from tests.support.postgres import Postgres, postgres

__all__ = ["postgres"]

ON_BOTH = ("test_catalog", "test_inventory", "test_orders", "test_payments")

BUILDS: dict[str, Build] = {
    "catalog": build_catalog,
    "inventory": build_inventory,
    "payments": build_payments,
    "orders": build_orders,
}


class Faults(Around):
    """Makes a method fail: ``before`` it is executed, ``after`` (the answer is lost), or ``hang``.

    ``hold`` does not fail: the call waits for ``release``.

    ``plan`` holds, by method name, how its next calls fail; a call beyond the plan is served. Methods with streams
    always are. ``seen`` counts calls by method name, ``left_s`` is what the last one had left of its deadline, in
    seconds, and ``priority`` how important it said to be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plan: dict[str, list[tuple[str, grpc.StatusCode]]] = {}
        self.seen: Counter[str] = Counter()
        self.left_s: dict[str, float] = {}
        self.priority: dict[str, str | None] = {}
        self.slow_s = 0.0
        """How much longer each call takes."""
        self.hanging = asyncio.Event()
        self.release = asyncio.Event()

    def next(self, method: str, how: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, times: int = 1) -> None:
        """Plan the next ``times`` calls of ``method``."""
        self.plan.setdefault(method, []).extend([(how, code)] * times)

    def around(self, method: str, handler: Any) -> Behavior:
        """The handler, or what is planned for it."""
        behavior = behavior_of(handler)
        name = method.rpartition("/")[2]

        async def answer(request: Any, context: Any) -> Any:
            self.seen[name] += 1
            self.left_s[name] = context.time_remaining()
            self.priority[name] = dict(context.invocation_metadata()).get("lb-priority")
            planned = self.plan.get(name)
            how, code = planned.pop(0) if planned else ("serve", grpc.StatusCode.OK)
            if self.slow_s:
                await asyncio.sleep(self.slow_s)
            if how in ("hang", "hold"):
                self.hanging.set()
            if how == "hang":
                await asyncio.Event().wait()
            if how == "hold":
                await self.release.wait()
            if how != "before":
                response = await behavior(request, context)
            if how in ("serve", "hold"):
                return response
            await context.abort(code, "planned by the test")

        return behavior if handler.unary_unary is None else answer


class Shop:
    """Starts instances on one directory of databases, and connects to them."""

    def __init__(self, stack: AsyncExitStack, **where: Any) -> None:
        self._where = where
        self._stack = stack
        self.all: list[Instance] = []
        self.instances: dict[str, Instance] = {}
        self.faults: dict[str, Faults] = {}

    async def start(
        self,
        name: str,
        *,
        instance_id: str | None = None,
        build: Build | None = None,
        load: LoadReporter | None = None,
    ) -> Instance:
        """One more instance; the latest of a service is the one that others call."""
        faults = self.faults.setdefault(name, Faults())
        instance = Instance(
            name,
            build or BUILDS[name],
            self.settings(instance_id=instance_id or f"{name}-1"),
            register=False,
            connect=self.connect,
            interceptors=[faults],
            load=load,
        )
        self.instances[name] = await self._stack.enter_async_context(instance)
        self.all.append(instance)
        return instance

    def settings(self, **more: Any) -> Settings:
        """Settings of a process on these databases."""
        return Settings(**self._where, **more)

    def connect(self, service: str) -> grpc.aio.Channel:
        """A channel to the latest instance of a service: as the services', but a failure is seen as it is."""
        return lb.aio.channel(
            f"static:///{self.instances[service].address}",
            retry=lb.Retry(enabled=False),
            connection=CONNECTION,
            limit=LIMIT,
        )

    async def channel(self, instance: Instance) -> grpc.aio.Channel:
        """A channel to one instance, closed with the shop."""
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(instance.address))


Serve = Callable[[str], Awaitable[grpc.aio.Channel]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests of what keeps its state in a database run on each kind of database."""
    if "shop" in metafunc.fixturenames and metafunc.module.__name__.endswith(ON_BOTH):
        metafunc.parametrize(
            "server_database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
        )


@pytest.fixture
def server_database(request: pytest.FixtureRequest) -> Postgres | None:
    """The server that has the databases; None for files."""
    kind = getattr(request, "param", "sqlite")
    return None if kind == "sqlite" else request.getfixturevalue(kind)


@pytest.fixture
async def shop(server_database: Postgres | None, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop without any service yet."""
    where: dict[str, Any] = {"data": tmp_path / "data"}
    if server_database is not None:
        where = {"database_url": await server_database.database()}
    async with AsyncExitStack() as stack:
        yield Shop(stack, **where)


@pytest.fixture
def serve(shop: Shop) -> Serve:
    """Start one service and get a channel to it."""

    async def start(name: str) -> grpc.aio.Channel:
        return await shop.channel(await shop.start(name))

    return start


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """The error with which a call (or the reading of a stream) ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _end(call)
    return caught.value


async def _end(call: Any) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for _ in call:
        pass


def fields(error: grpc.aio.AioRpcError) -> Sequence[str]:
    """The fields that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    found = detail(error, BadRequest)
    assert found is not None, error
    return [violation.field for violation in found.field_violations]
