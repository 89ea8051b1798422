"""A server's health, for a ``grpc.server``. This needs ``grpcio-health-checking``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class _Servicer(health.HealthServicer):
    """grpcio's, which answers ``List`` as well."""

    def __init__(self) -> None:
        super().__init__()
        self._names: tuple[str, ...] = ()

    def set(self, service: str, status: int) -> None:
        """Set the status of a service; the empty name is the whole server."""
        if service not in self._names:
            self._names = (*self._names, service)
        super().set(service, status)

    def List(self, request: Any, context: Any) -> Any:
        """The status of each service by name, as far as one was ever set."""
        one = health_pb2.HealthCheckRequest
        statuses = {name: self.Check(one(service=name), context) for name in self._names}
        listed: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]  # newer than its types
        return listed(statuses=statuses)


class Health:
    """grpcio's health service, told from a loop as `lb.server.health.Health`."""

    def __init__(self) -> None:
        self._servicer = _Servicer()

    async def say(self, names: Iterable[str], *, serving: bool) -> None:
        """Set the status of each of these."""
        status = health_pb2.HealthCheckResponse
        for name in names:
            self._servicer.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def enter_graceful_shutdown(self) -> None:
        """Say NOT_SERVING from now on."""
        self._servicer.enter_graceful_shutdown()

    def add_to(self, server: grpc.Server) -> None:
        """Serve it there."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
