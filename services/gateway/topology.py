"""Which instances there are, how they are and how many calls each has served: ``/api/mesh``.

Consul says which instances there are; each instance says itself, by ``Runtime.Describe``, how many
calls it has served. Both are asked only when somebody looks, at most once a second, and within a
bounded time: an instance that hangs costs its own number, not the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from lb.aio.consul import ConsulError, Instance
from mesh.runtime.v1 import DescribeRequest, RuntimeStub
from services.gateway.problems import Problem, retry_after

if TYPE_CHECKING:
    from mesh.runtime.v1 import DescribeResponse, RuntimeAsyncStub

SERVICES = ("catalog", "inventory", "orders", "payments")
MAX_AGE_S = 1.0
CONSUL_TIMEOUT_S = 1.0
DESCRIBE_TIMEOUT_S = 0.5
"""Seconds: how old an answer may be, and how long Consul and one instance may take."""

Ask = Callable[[str], Coroutine[Any, Any, Sequence[Instance]]]
"""All instances of a service, healthy or not; raises ``ConsulError``. `lb.aio.consul.Registry.instances` is one."""


@dataclass(slots=True)
class _Known:
    channel: grpc.aio.Channel
    calls: int | None = None
    pid: int | None = None


class Topology:
    """The instances of the mesh, joined with the calls they have served."""

    def __init__(
        self,
        ask: Ask,
        *,
        services: Sequence[str] = SERVICES,
        connect: Callable[[str], grpc.aio.Channel] | None = None,
    ) -> None:
        self._ask = ask
        self._services = tuple(services)
        self._connect = connect or _connect
        self._known: dict[tuple[str, str], _Known] = {}
        self._last: dict[str, Sequence[Instance]] = {}
        self._error = ""
        self._answer: dict[str, object] = {}
        self._read_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def get(self) -> dict[str, object]:
        """The answer of ``/api/mesh``.

        While Consul is away its last answer stands, and ``registry`` says why. Raises ``Problem`` 503
        when there never was one.
        """
        await self._fresh()
        if not self._last:
            raise Problem(503, self._error, headers=retry_after())
        return self._answer

    async def missing(self) -> list[str]:
        """The services without an instance that takes calls, as far as Consul has said."""
        await self._fresh()
        return [name for name in self._services if not any(each.usable for each in self._last.get(name, ()))]

    def expire(self) -> None:
        """Make the next call read again, even if the last reading is recent."""
        self._read_at = float("-inf")

    async def close(self) -> None:
        """Close the connections to the instances."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for known in self._known.values():
            await known.channel.close()
        self._known.clear()

    async def _fresh(self) -> None:
        loop = asyncio.get_running_loop()
        if self._refreshing is None and loop.time() - self._read_at < MAX_AGE_S:
            return
        if self._refreshing is None:
            # One task for all who ask meanwhile; it outlives the one who asked first.
            self._refreshing = asyncio.create_task(self._refresh(), name="mesh-refresh")
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _refresh(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                asked = {name: group.create_task(self._ask(name)) for name in self._services}
        except* ConsulError as errors:
            self._error = str(errors.exceptions[0])
        else:
            self._error = ""
            self._last = {name: task.result() for name, task in asked.items()}
        await self._describe_all()
        self._answer = {
            "services": {
                name: {"instances": [self._json(each) for each in sorted(instances, key=_by_id)]}
                for name, instances in self._last.items()
            },
            "registry": self._error or "ok",
        }
        self._read_at = asyncio.get_running_loop().time()

    async def _describe_all(self) -> None:
        present = {each.endpoint.key: each.endpoint.address for found in self._last.values() for each in found}
        for key in [key for key in self._known if key not in present]:
            await self._known.pop(key).channel.close()
        for key, address in present.items():
            if key not in self._known:
                self._known[key] = _Known(self._connect(address))
        await asyncio.gather(*(self._describe(key[0], self._known[key]) for key in present))

    async def _describe(self, instance_id: str, known: _Known) -> None:
        stub: RuntimeAsyncStub = RuntimeStub(known.channel)
        try:
            answer: DescribeResponse = await stub.Describe(DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return  # what it said last stands
        # Consul's id may have the node behind it. Another id: another process took over the port.
        if instance_id.partition("@")[0] == answer.instance_id:
            known.calls, known.pid = answer.calls_total, answer.pid

    def _json(self, instance: Instance) -> dict[str, object]:
        endpoint = instance.endpoint
        known = self._known.get(endpoint.key)
        return {
            "id": endpoint.id,
            "address": endpoint.address,
            "pid": _pid(endpoint.metadata) or (known.pid if known else None),
            "weight": endpoint.weight,
            "health": instance.status if instance.status != "no port" else "critical",
            "calls": known.calls if known else None,
        }


def _connect(address: str) -> grpc.aio.Channel:
    # Each instance is asked itself: neither a proxy nor a service config of DNS may come between.
    return grpc.aio.insecure_channel(
        address, options=[("grpc.enable_http_proxy", 0), ("grpc.service_config_disable_resolution", 1)]
    )


def _by_id(instance: Instance) -> str:
    return instance.endpoint.id


def _pid(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get("pid", "")
    return int(text) if text.isascii() and text.isdigit() else None
