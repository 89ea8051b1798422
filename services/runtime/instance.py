"""One running server of a service: started, registered, healthy, drained.

::

    start ─► NOT_READY ─ every dependency passes ─► SERVING ─ SIGTERM, Ctrl-C, supervisor gone ─► DRAINING ─► end
                 ▲                                     │
                 └───────── a dependency fails ────────┘

DRAINING, in this order: health says NOT_SERVING, and Consul says maintenance. For a while clients that have not
noticed yet are still served, so that leaving costs nobody a retry. Then new calls are refused with push-back 0, the
registration goes, and the port closes. Calls in flight end, or are cancelled when their time is over. A second reason
to end skips what is left (`lb.server.live`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import lb.aio
from lb.server import Life, LoadReporter, LoadTrailers
from lb.server.address import join_host_port, split_host_port
from mesh.runtime.v1 import ServingState, add_RuntimeServicer_to_server
from services.runtime.address import advertised
from services.runtime.channels import Connect, connector
from services.runtime.connections import SERVER_OPTIONS
from services.runtime.describe import Description, Runtime
from services.runtime.host import Build, Check, Host
from services.runtime.interceptors import INSTANCE_KEY, Boundary, Gate, Meter, is_business
from services.runtime.introspection import Health, add_reflection
from services.runtime.settings import Settings, SettingsError

log = structlog.get_logger()

_RUNTIME_NAME = "mesh.runtime.v1.Runtime"
_CHECK_EVERY_S = 1.0
_CHECK_TIMEOUT_S = 2.0
# One slow answer on a busy machine is not an outage.
_FAILURES = 2
# What may remain after the last business call: streams of health watchers, and answers on their way.
_LAST_WORDS_S = 0.25

_SERVING: int = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING


class Instance(Life):
    """One running server of a service. Made in a running loop.

    As a process it lives as `lb.server.live` says; as a context manager it serves from entry on and is closed at once
    on exit. For tests: ``register=False`` serves without Consul, ``connect`` replaces the way to other services, and
    ``load`` what is reported of its load.
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
    ) -> None:
        self.instance_id = settings.identity(name)
        self.meter = Meter()
        self._name = name
        self._build = build
        self._settings = settings
        self._register = register
        self._stack = AsyncExitStack()
        self._host = Host(name, self.instance_id, settings, self._stack, connect or connector(settings))
        self._about = Description(name, self.instance_id, settings.weight, settings.zone, self.meter)
        trailers = ((INSTANCE_KEY, self.instance_id),)
        self._gate = Gate(self.meter, trailers)
        self._health = Health()
        self._healthy = asyncio.Event()
        self._health_names: tuple[str, ...] = ("",)
        self._watcher: asyncio.Task[None] | None = None
        self._registration: lb.aio.Registration | None = None
        self._registering: asyncio.Task[object] | None = None
        self._server = grpc.aio.server(
            # The last one makes the calls of a handler inherit from its call; Boundary keeps what it makes.
            interceptors=[
                self._gate,
                *interceptors,
                LoadTrailers(load or LoadReporter(), counts=is_business),
                Boundary(trailers),
                lb.aio.incoming(),
            ],
            options=SERVER_OPTIONS,
        )

    @property
    def address(self) -> str:
        """What is registered: ``host:port``."""
        return self._about.address

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
        """Serve, and register once every dependency is healthy."""
        await self._serve()
        await self._healthy.wait()
        if self._register:
            await self._enter_registry()
        log.info("ready", address=self.address, pid=os.getpid())

    async def leave(self, because: str) -> None:
        """Drain. Before clients could know of it, there is nobody to wait for."""
        log.info("stopping", because=because)
        if self._healthy.is_set():
            await self._drain()

    async def close(self) -> None:
        """End at once, and close all that was opened."""
        for task in (self._watcher, self._registering):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._server.stop(None)
        await self._stack.aclose()

    async def _serve(self) -> None:
        settings = self._settings
        service = await self._build(self._host)
        service.add(self._server)
        add_RuntimeServicer_to_server(Runtime(self._about), self._server)
        self._health_names = ("", *service.names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (*service.names, _RUNTIME_NAME, health.SERVICE_NAME))
        await self._say(_NOT_SERVING)
        host, _ = split_host_port(settings.listen, where="MESH_LISTEN", least_port=0)
        try:
            port = self._server.add_insecure_port(settings.listen)
        except RuntimeError:
            port = 0
        if not port:
            raise SettingsError(f"MESH_LISTEN={settings.listen!r}: cannot listen there; is the port taken?")
        self._about.address = await advertised(settings.advertise, join_host_port(host, port))
        await self._server.start()
        self._about.unhealthy = dict.fromkeys(service.checks, "not checked yet")
        self._watcher = asyncio.create_task(self._watch(service.checks), name=f"{self._name}-health")

    async def _enter_registry(self) -> None:
        settings = self._settings
        self._registration = lb.aio.registration(
            self._name,
            address=self.address,
            id=self.instance_id,
            weight=settings.weight,
            meta={"pid": str(os.getpid()), "version": self._about.version, "zone": settings.zone},
            zone=settings.zone,
            check="grpc",
        )
        # In a task of its own: when the start is cancelled, what was sent is drained before it is taken back.
        self._registering = asyncio.create_task(self._stack.enter_async_context(self._registration))
        await asyncio.wait([self._registering])
        self._registering.result()

    async def _drain(self) -> None:
        """Tell everyone, wait, refuse new calls, deregister, finish what is in flight."""
        settings = self._settings
        self._about.state = ServingState.SERVING_STATE_DRAINING
        await self._health.enter_graceful_shutdown()
        log.info("draining", in_flight=self.meter.in_flight)
        if self._registration is not None:
            await self._registration.drain()
            await asyncio.sleep(settings.drain_wait_s)
        self._gate.draining = True
        if self._registration is not None:
            await self._registration.close()
        stopping = asyncio.create_task(self._server.stop(settings.drain_s))
        idle = asyncio.create_task(self.meter.idle())
        try:
            await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
            if self.meter.in_flight:
                log.warning("the drain time passed; the remaining calls were cancelled", drain_s=settings.drain_s)
            await self._server.stop(_LAST_WORDS_S)
            await stopping
        finally:
            idle.cancel()

    async def _watch(self, checks: Mapping[str, Check]) -> None:
        """Keep health true: SERVING while every dependency answers."""
        failures = dict.fromkeys(checks, 0)
        while True:
            for name, check in checks.items():
                why = await _run(check)
                failures[name] = failures[name] + 1 if why else 0
                if not why or failures[name] >= _FAILURES or not self._healthy.is_set():
                    self._about.unhealthy[name] = why
            if self._about.state != ServingState.SERVING_STATE_DRAINING:
                await self._judge()
            await asyncio.sleep(_CHECK_EVERY_S)

    async def _judge(self) -> None:
        broken = {name: why for name, why in self._about.unhealthy.items() if why}
        state = ServingState.SERVING_STATE_NOT_READY if broken else ServingState.SERVING_STATE_SERVING
        if state == self._about.state:
            return
        self._about.state = state
        if broken:
            log.warning("not serving", because=broken)
        await self._say(_NOT_SERVING if broken else _SERVING)
        if not broken:
            self._healthy.set()

    async def _say(self, status: int) -> None:
        for name in self._health_names:
            await self._health.set(name, status)

    def __repr__(self) -> str:
        return f"<Instance {self.instance_id} at {self.address or 'no address yet'} {self.meter!r}>"


async def _run(check: Check) -> str:
    """Why a check fails; empty when it passes."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001 - whatever a check raises is its answer
        return str(error) or type(error).__name__
    return ""
