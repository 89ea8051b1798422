"""What the discovery tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lb.core.endpoint import Endpoint, Resolution
from tests.support.consul import acl_consul, embedded_consul, own_registry, real_consul, registry, two_nodes

__all__ = ["acl_consul", "embedded_consul", "own_registry", "real_consul", "registry", "two_nodes"]

_names = count(1)


@pytest.fixture
def service() -> str:
    """A service name that no other test uses."""
    return f"service-{next(_names)}"


@dataclass
class Recorder:
    """A listener that remembers, and can be waited for."""

    resolutions: list[Resolution] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    confirmed: int = 0

    def update(self, resolution: Resolution) -> None:
        """A new set."""
        self.resolutions.append(resolution)
        self._news.set()

    def confirm(self) -> None:
        """Nothing new."""
        self.confirmed += 1
        self._news.set()

    def error(self, message: str) -> None:
        """No answer."""
        self.errors.append(message)
        self._news.set()

    @property
    def endpoints(self) -> dict[str, Endpoint] | None:
        """The last set by id; None before the first."""
        return {e.id: e for e in self.resolutions[-1].endpoints} if self.resolutions else None

    @property
    def note(self) -> str:
        """The last note."""
        return self.resolutions[-1].note if self.resolutions else ""

    async def until(self, true: Callable[[Recorder], object], *, within_s: float = 30.0) -> float:
        """Waits until it is so; the seconds that took. Raises ``TimeoutError`` with what is known."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(within_s):
                while not true(self):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"not within {within_s:g} s; last: {self.resolutions[-1:]}, {self.errors[-1:]}"
            ) from None
        return loop.time() - began

    async def ids(self, *ids: str, within_s: float = 30.0) -> float:
        """Waits until exactly these are the endpoints; the seconds that took."""
        return await self.until(lambda r: r.endpoints is not None and set(r.endpoints) == set(ids), within_s=within_s)


@pytest.fixture
def listener() -> Recorder:
    """A listener that remembers."""
    return Recorder()


@dataclass
class Backend:
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
async def backend() -> AsyncIterator[Backend]:
    """A healthy gRPC server."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Backend(port, servicer)
    await server.stop(0)
