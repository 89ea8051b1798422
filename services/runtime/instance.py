"""One running server of a service: `lb.server.Server`, with what is the mesh's own.

That is its settings, what a service is built from, ``Describe``, and the id of the instance in the trailing metadata.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import structlog

from lb.server import Life, LoadReporter, Server, StartError
from mesh.runtime.v1 import add_RuntimeServicer_to_server
from services.runtime.channels import Connect, connector
from services.runtime.connections import SERVER_OPTIONS
from services.runtime.describe import Description, Runtime
from services.runtime.host import Build, Check, Host, Service
from services.runtime.interceptors import INSTANCE_KEY, Boundary, is_business
from services.runtime.needs import PATIENCE_S, Needs
from services.runtime.settings import Settings, SettingsError

log = structlog.get_logger()

_VARIABLES = {"listen": "MESH_LISTEN", "address": "MESH_ADVERTISE"}


class Instance(Life):
    """One running server of a service. Made in a running loop.

    As a process it lives as `lb.server.live` says; as a context manager it serves from entry on and is closed at once
    on exit. ``flush`` is called once no call runs any more. For tests: ``register=False`` serves without Consul,
    ``connect`` replaces the way to other services, ``load`` what is reported of its load, and ``patience_s`` for how
    long it waits for other services before it says so.
    """

    def __init__(
        self,
        name: str,
        build: Build,
        settings: Settings,
        *,
        register: bool = True,
        connect: Connect | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        load: LoadReporter | None = None,
        flush: Callable[[], Awaitable[object]] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.instance_id = settings.identity(name)
        self._name = name
        self._build = build
        self._settings = settings
        self._register = register
        self._interceptors = interceptors
        self._load = load
        self._flush = flush
        self._stack = AsyncExitStack()
        self._needs = Needs(patience_s)
        self._host = Host(
            name, self.instance_id, settings, self._stack, connect or connector(settings, name), self._needs
        )
        self._server: Server | None = None

    @property
    def address(self) -> str:
        """What is registered: ``host:port``."""
        return self._server.address if self._server is not None else ""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Serve, and register once every dependency is healthy, and each service that it calls was seen."""
        needs = self._needs
        try:
            service = await self._build(self._host)
            checks = service.checks if await needs.seen() else {**service.checks, "services": needs.check}
            self._server = server = self._made(service, checks)
            await server.start()
        except StartError as error:
            raise SettingsError(f"{_VARIABLES[error.setting]}={error.value!r}: {error.why}") from None
        if service.begin is not None:
            service.begin()
        log.info("ready", address=self.address, pid=os.getpid())

    async def leave(self, because: str) -> None:
        """Drain. Before clients could know of it, there is nobody to wait for."""
        log.info("stopping", because=because)
        if self._server is not None:
            log.info("draining", in_flight=self._server.meter.in_flight)
            await self._server.leave(because)

    async def close(self) -> None:
        """End at once, and close all that was opened."""
        if self._server is not None:
            await self._server.close()
        await self._needs.close()
        await self._stack.aclose()

    def _made(self, service: Service, checks: Mapping[str, Check]) -> Server:
        settings, id = self._settings, self.instance_id
        trailers = ((INSTANCE_KEY, id),)
        about = Description(self._name, id, settings.weight, settings.zone)
        registered = {
            "address": settings.advertise,
            "id": id,
            "weight": settings.weight,
            "meta": {"pid": str(os.getpid()), "version": about.version, "zone": settings.zone},
            "zone": settings.zone,
        }
        server = Server(
            self._name,
            listen=settings.listen,
            limits=settings.limits,
            register=registered if self._register else False,
            checks=checks,
            options=SERVER_OPTIONS,
            interceptors=self._interceptors,
            inner=[Boundary(trailers)],
            load=self._load,
            counts=is_business,
            trailers=trailers,
            health=True,
            reflection=True,
            drain_s=settings.drain_s,
            drain_wait_s=settings.drain_wait_s,
        )
        service.add(server)
        add_RuntimeServicer_to_server(Runtime(about, server), server)
        if self._flush is not None:
            server.on_close(self._flush)
        return server

    def __repr__(self) -> str:
        return f"<Instance {self.instance_id} {self._server!r}>"
