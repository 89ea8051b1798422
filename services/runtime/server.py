"""One gRPC server: started, registered, healthy, drained.

::

    start ─► NOT_READY ─ every dependency passes ─► SERVING ─ SIGTERM, Ctrl-C, supervisor gone ─► DRAINING ─► end
                 ▲                                     │
                 └───────── a dependency fails ────────┘

DRAINING, in this order: health says NOT_SERVING, Consul says maintenance; in a wait, in which clients
notice, who has not heard is still served, so that leaving costs nobody a retry; then new calls are
refused with push-back 0, the registration goes and the port closes; calls in flight end, or are
cancelled when their time is over. A second signal skips what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import lb.aio
from mesh.runtime.v1 import ServingState, add_RuntimeServicer_to_server
from services.runtime import logs, telemetry
from services.runtime.address import advertised
from services.runtime.channels import Connect, connector
from services.runtime.connections import SERVER_OPTIONS
from services.runtime.describe import Description, Runtime, version
from services.runtime.host import Build, Check, Host
from services.runtime.interceptors import INSTANCE_KEY, Boundary, Gate, Meter
from services.runtime.introspection import Health, add_reflection
from services.runtime.settings import Settings, SettingsError, join_address, load, split_address

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


class Instance:
    """One running server of a service.

    As a context manager it serves from entry on and stops at once on exit; ``drain`` leaves gracefully first.
    ``register=False`` serves without Consul; ``connect`` replaces the way to other services (both for tests).
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
    ) -> None:
        self.instance_id = settings.instance_id or f"{name}-{socket.gethostname()}-{os.getpid()}"
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
        self._server = grpc.aio.server(
            # What a handler calls inherits from its call; innermost, where Boundary keeps what it makes.
            interceptors=[self._gate, *interceptors, Boundary(trailers), lb.aio.incoming()],
            options=SERVER_OPTIONS,
        )

    @property
    def address(self) -> str:
        """What is registered: ``host:port``."""
        return self._about.address

    @property
    def announced(self) -> bool:
        """Whether clients may know of it, so that it has to be drained."""
        return self._registration is not None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        settings = self._settings
        service = await self._build(self._host)
        service.add(self._server)
        add_RuntimeServicer_to_server(Runtime(self._about), self._server)
        self._health_names = ("", *service.names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (*service.names, _RUNTIME_NAME, health.SERVICE_NAME))
        await self._say(_NOT_SERVING)
        host, _ = split_address(settings.listen)
        try:
            port = self._server.add_insecure_port(settings.listen)
        except RuntimeError:
            port = 0
        if not port:
            raise SettingsError(f"MESH_LISTEN={settings.listen!r}: cannot listen there; is the port taken?")
        self._about.address = await advertised(settings.advertise, join_address(host, port))
        await self._server.start()
        self._about.unhealthy = dict.fromkeys(service.checks, "not checked yet")
        self._watcher = asyncio.create_task(self._watch(service.checks), name=f"{self._name}-health")
        await self._healthy.wait()
        if self._register:
            meta = {"pid": str(os.getpid()), "version": self._about.version, "zone": settings.zone}
            # Known before it is entered: what it sends has to be drained, whether its answer comes or not.
            self._registration = lb.aio.registration(
                self._name,
                address=self.address,
                id=self.instance_id,
                weight=settings.weight,
                meta=meta,
                zone=settings.zone,
                check="grpc",
            )
            await self._stack.enter_async_context(self._registration)

    async def drain(self) -> None:
        """Leave: tell everyone, wait, refuse new calls, deregister, finish what is in flight."""
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
                log.warning("drain time is over, calls were cancelled", drain_s=settings.drain_s)
            await self._server.stop(_LAST_WORDS_S)
            await stopping
        finally:
            idle.cancel()

    async def stop(self) -> None:
        """End at once, and close all that was opened."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._server.stop(None)
        await self._stack.aclose()

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


@contextlib.asynccontextmanager
async def stop_signals(parent_fd: int | None) -> AsyncIterator[asyncio.Queue[str]]:
    """A queue that gets a word for each reason to stop: a signal, or the supervisor's end."""
    loop = asyncio.get_running_loop()
    reasons: asyncio.Queue[str] = asyncio.Queue()

    def parent() -> None:
        # Nothing is ever written to it: readable means end-of-file.
        loop.remove_reader(fd)
        reasons.put_nowait("the supervisor is gone")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, reasons.put_nowait, number.name)
    fd = -1 if parent_fd is None else parent_fd
    if fd >= 0:
        try:
            loop.add_reader(fd, parent)
        except (OSError, ValueError):
            raise SettingsError(f"MESH_PARENT_FD={fd}: is no open descriptor") from None
    try:
        yield reasons
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if fd >= 0:
            loop.remove_reader(fd)


async def serve(name: str, build: Build, settings: Settings, traces: telemetry.Telemetry) -> None:
    """Serve until there is a reason to stop, then drain; a second reason cuts the drain short."""
    instance = Instance(name, build, settings, interceptors=traces.server_interceptors())
    async with stop_signals(settings.parent_fd) as reasons:
        stopped = asyncio.create_task(reasons.get())
        life = asyncio.create_task(_live(instance, stopped))
        await asyncio.wait([life, stopped], return_when=asyncio.FIRST_COMPLETED)
        again = asyncio.create_task(reasons.get())
        await asyncio.wait([life, again], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, again, life):
            task.cancel()
        await asyncio.gather(stopped, again, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await life


async def _live(instance: Instance, stopped: asyncio.Task[str]) -> None:
    starting = asyncio.create_task(instance.__aenter__())
    try:
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            log.info("ready", address=instance.address, pid=os.getpid())
        log.info("stopping", because=await stopped)
        if instance.announced or starting.done():
            await instance.drain()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await instance.stop()


def main(name: str, build: Build) -> None:
    """Run a service as a process: settings from the environment, exit status 2 when they are wrong."""
    try:
        settings = load(Settings)
        identity = settings.instance_id or f"{name}-{socket.gethostname()}-{os.getpid()}"
        logs.setup(name, identity, settings.log_level)
        traces = telemetry.setup(name, identity, version())
        try:
            asyncio.run(serve(name, build, settings, traces))
        finally:
            traces.close()
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
