"""A server's health, for a ``grpc.server``. This needs ``grpcio-health-checking``."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Health:
    """grpcio's health service, told from a loop as `lb.server.health.Health`."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()

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
