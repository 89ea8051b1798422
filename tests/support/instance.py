"""What a registration is about: the name of a service, and an instance of it.

Fixtures: ``service`` is a name that no other test uses, ``instance`` a server with the health service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lb.aio import Registration, registration
from tests.support.consul import Registry
from tests.support.wait import until

_names = count(1)


@pytest.fixture
def service() -> str:
    """A service name that no other test uses."""
    return f"service-{next(_names)}"


@dataclass
class Instance:
    """A gRPC server with the health service and nothing else."""

    port: int
    _health: health.aio.HealthServicer

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    async def serve(self, serving: bool) -> None:
        """Sets its health."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)


@pytest.fixture
async def instance() -> AsyncIterator[Instance]:
    """A healthy gRPC server."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Instance(port, servicer)
    await server.stop(0)


def register(registry: Registry, service: str, instance: Instance, **more: Any) -> Registration:
    """The registration that most tests use: quick checks, quick looks."""
    settings: dict[str, Any] = {"id": f"{service}-1", "check_interval_s": 0.1, "reassert_s": 0.1} | more
    return registration(service, address=instance.address, consul=registry.url, **settings)


async def status(registry: Registry, service: str, wanted: str, *, within_s: float = 30) -> None:
    """Waits until the instance's check has the status."""

    async def reached() -> bool:
        return await registry.status(service, f"{service}-1") == wanted

    await until(reached, within_s=within_s, what=f"{service}-1 is {wanted or 'gone'}", every_s=0.02)
