"""A server's health, as ``grpc.health.v1.Health`` tells it. This needs ``grpcio-health-checking``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Health(health.aio.HealthServicer):
    """grpcio's health service, which answers ``List`` as well."""

    def __init__(self) -> None:
        super().__init__()
        self._names = {""}

    async def set(self, service: str, status: int) -> None:
        """Set the status of a service; the empty name is the whole server."""
        self._names.add(service)
        await super().set(service, status)

    async def List(self, request: Any, context: Any) -> Any:
        """The status of each service by name, as far as one was ever set."""
        one = health_pb2.HealthCheckRequest
        statuses = {name: await self.Check(one(service=name), context) for name in self._names}
        listed: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]  # newer than its types
        return listed(statuses=statuses)

    async def say(self, names: Iterable[str], *, serving: bool) -> None:
        """Set the status of each of these."""
        status = health_pb2.HealthCheckResponse
        for name in names:
            await self.set(name, status.SERVING if serving else status.NOT_SERVING)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
