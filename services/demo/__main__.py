"""``make demo``: the whole mesh on this machine, until Ctrl-C.

One supervisor, and under it a process each: the embedded Consul agent (unless ``CONSUL_HTTP_ADDR`` names
a Consul), catalog x 3 with the weights 1, 2 and 5, inventory x 2, payments x 2, orders x 2, the gateway and a
load generator. Traces go to ``OTEL_EXPORTER_OTLP_ENDPOINT`` if it is set, else to the gateway.

Each service takes a free port and registers it; one that is started again takes another. A port chosen
beforehand could be somebody else's by then, and a client cannot mistake the new process for the old.

Settings: ``MESH_PORT`` (8080; 0 takes a free one), ``MESH_DURATION`` (seconds after ready; then it ends),
``MESH_POLICY``, ``MESH_ORDER_RATE`` (3), ``MESH_DATA`` (a directory that is kept), ``MESH_LOG_LEVEL``
(warning), ``MESH_JAEGER_QUERY``. Exit status: 0; 1 when no order went through; 2 for a bad setting or a
taken port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx2
from pydantic import AfterValidator, Field

from lb.aio.consul import Registry
from lb.server import Life, live
from lb.server.supervising import Spec, Supervisor
from services.demo import memory
from services.demo.state import StateDirectory, remove_stale
from services.runtime.settings import LogLevel, Settings, SettingsError, http_url, load, trace_collector

INSTANCES: dict[str, tuple[int, ...]] = {
    "catalog": (1, 2, 5),
    "inventory": (1, 1),
    "payments": (1, 1),
    "orders": (1, 1),
}
"""The weights of each service's instances."""

DRAIN_S = 3.0
"""The longest that calls in flight may take when it ends, in seconds."""

_DRAIN_WAIT_S = 0.2
_GATEWAY_DRAIN_S = 1.0
_STOP_S = 4.0
_AGENT_S = 15.0
_READY_S = 60.0
_TELL_S = 15.0
_PORT_WAIT_S = 5.0
# Linux and macOS give other ports to outgoing connections. One of those could be taken before the gateway listens.
_FREE_PORTS = range(20_000, 32_768)

# Each process gets its own of these, or they would contradict what the demo is.
_OURS = ("MESH_LISTEN", "MESH_ADVERTISE", "MESH_INSTANCE_ID", "MESH_WEIGHT", "MESH_PARENT_FD", "MESH_DRAIN_WAIT_S")
# In the order in which they end: nobody loses whom it still needs.
_LOAD, _SERVICES, _GATEWAY, _AGENT = range(4)


def _directory(path: Path) -> Path:
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"is not a directory, and cannot be created: {error.strerror}") from None
    return path


class DemoSettings(Settings):
    """What the demo reads; it hands on the rest to its processes."""

    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the gateway."""
    duration: float | None = Field(default=None, gt=0)
    """For how many seconds it runs after it is ready; then it ends by itself."""
    order_rate: float = Field(default=3.0, ge=0, le=1000)
    """Orders a second of the load generator."""
    data: Annotated[Path, AfterValidator(_directory)] | None = None
    """Where the databases are kept. Default: a directory for the time of the demo."""
    drain_s: float = Field(default=DRAIN_S, ge=0, le=DRAIN_S)
    """How long calls in flight may take when it ends."""
    drain_wait_s: float = 0.0
    """The demo itself takes no calls; its processes get a wait that fits."""
    log_level: LogLevel = "warning"
    """What is shown of the processes' logs."""
    jaeger_query: Annotated[str, AfterValidator(http_url)] | None = None
    """Base URL of Jaeger's query API, when traces go to Jaeger."""


def read_settings() -> DemoSettings:
    """The settings of the environment. Raises ``SettingsError``."""
    for name in _OURS:
        if name in os.environ:
            raise SettingsError(f"{name}: the demo gives each process its own; it cannot be set here")
    settings = load(DemoSettings)
    trace_collector()
    if os.environ.get("CONSUL_HTTP_ADDR"):
        try:
            Registry()
        except ValueError as error:
            raise SettingsError(str(error)) from None
    return settings


def free_port(port: int, wait_s: float) -> int:
    """The port, or a free one for 0. Raises ``SettingsError`` when it is still taken after ``wait_s`` seconds."""
    if port == 0:
        with contextlib.suppress(SettingsError):
            return free_port(random.choice(_FREE_PORTS), 0.0)
    give_up = time.monotonic() + wait_s
    while True:
        try:
            if port and _answers(port):
                raise OSError(errno.EADDRINUSE, "")
            # As the gateway binds: connections that are only waiting to time out do not count.
            with socket.create_server(("127.0.0.1", port)) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            if time.monotonic() >= give_up:
                raise SettingsError(
                    f"MESH_PORT={port}: port {port} on 127.0.0.1 is not available ({os.strerror(error.errno or 0)}); "
                    "MESH_PORT=8081 make demo takes another"
                ) from None
        time.sleep(0.1)


def _answers(port: int) -> bool:
    """Whether somebody listens there. macOS would let us bind beside one that listens on all addresses."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def environment(settings: DemoSettings, port: int, data: Path, consul: str) -> dict[str, str]:
    """What all processes have in common."""
    local = "127.0.0.1,localhost"
    common = {
        "MESH_PORT": str(port),
        "MESH_DATA": str(data),
        "MESH_POLICY": settings.policy,
        "MESH_ORDER_RATE": f"{settings.order_rate:g}",
        "MESH_LOG_LEVEL": settings.log_level,
        "MESH_DRAIN_S": f"{settings.drain_s:g}",
        "MESH_DRAIN_WAIT_S": f"{min(_DRAIN_WAIT_S, settings.drain_s / 2):g}",
        "CONSUL_HTTP_ADDR": consul,
        # A proxy for the world outside has no business between these processes.
        **{name: ",".join(filter(None, (os.environ.get(name), local))) for name in ("NO_PROXY", "no_proxy")},
    }
    if trace_collector() is None:
        common["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
    return common


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def specs(common: dict[str, str]) -> Iterator[Spec]:
    """Everything but the agent."""
    for service, weights in INSTANCES.items():
        for number, weight in enumerate(weights, 1):
            name = f"{service}-{number}"
            own = {"MESH_INSTANCE_ID": name, "MESH_WEIGHT": str(weight)}
            yield Spec(name, _module(f"services.{service}"), {**common, **own}, _SERVICES)
    own = {"MESH_INSTANCE_ID": "gateway-1", "MESH_DRAIN_S": f"{_GATEWAY_DRAIN_S:g}"}
    yield Spec("gateway-1", _module("services.gateway"), {**common, **own}, _GATEWAY)
    yield Spec("load", _module("services.demo.load"), common, _LOAD)


async def start_agent(supervisor: Supervisor) -> str:
    """Start the embedded Consul; return its URL. When it is started again it takes the same port.

    Raises ``RuntimeError`` when it does not say within 15 s where it listens.
    """
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(line: str) -> bool:
        where = line.rpartition(" ")[2]
        if not where.startswith("http://"):
            return False
        if not url.done():
            url.set_result(where)
        return True

    def spec(port: str) -> Spec:
        arguments = ("--port", port, "--parent-fd", str(supervisor.parent_fd))
        return Spec("consul", _module("lb.testing.agent", *arguments), {}, _AGENT, hear)

    await supervisor.start(spec("0"))
    try:
        async with asyncio.timeout(_AGENT_S):
            where = await url
    except TimeoutError:
        raise RuntimeError(f"the embedded Consul did not start within {_AGENT_S:g} s") from None
    supervisor.replace(spec(where.rstrip("/").rpartition(":")[2]))
    return where


async def place_order(base_url: str, supervisor: Supervisor) -> None:
    """Return once an order has gone through. Say from time to time why none has."""
    loop = asyncio.get_running_loop()
    tell_at = loop.time() + _TELL_S
    async with httpx2.AsyncClient(base_url=base_url, trust_env=False, timeout=5.0) as client:
        while True:
            try:
                answer = await client.get("/api/products")
                if answer.status_code == 200:
                    skus = [each["sku"] for each in answer.json()["products"] if each["stock"] > 0]
                    order = {"items": [{"sku": skus[0], "quantity": 1}]} if skus else {"items": []}
                    answer = await client.post("/api/orders", json=order)
                    if answer.status_code == 201:
                        return
                reason = str(answer.json().get("detail", answer.status_code))
            except (httpx2.HTTPError, ValueError, KeyError) as error:
                reason = str(error) or type(error).__name__
            if loop.time() >= tell_at:
                tell_at += _TELL_S
                supervisor.say(f"no order has gone through yet: {reason}")
            await asyncio.sleep(0.1)


class Process(Life):
    """The demo's life. Made in a running loop; ``status`` is the exit status at its end."""

    def __init__(self, settings: DemoSettings, port: int, data: Path, started: float) -> None:
        self.status = 0
        self._settings = settings
        self._port = port
        self._data = data
        self._started = started
        self._supervisor = Supervisor()
        self._consul = ""

    async def start(self) -> None:
        """Start every process."""
        settings, supervisor = self._settings, self._supervisor
        try:
            self._consul = os.environ.get("CONSUL_HTTP_ADDR") or await start_agent(supervisor)
            if (collector := trace_collector()) and not settings.jaeger_query:
                supervisor.say(f"traces go to {collector}; MESH_JAEGER_QUERY=URL lets the gateway show them, too")
            for spec in specs(environment(settings, self._port, self._data, self._consul)):
                await supervisor.start(spec)
        except (OSError, RuntimeError) as error:
            self._fail(str(error))

    async def run(self) -> None:
        """Tell when it is ready, and go on for the duration, if there is one."""
        duration_s = self._settings.duration
        if self.status == 0:
            await self._tell_ready(within_s=None if duration_s is None else max(_READY_S, duration_s))
        if self.status == 0:
            await asyncio.sleep(float("inf") if duration_s is None else duration_s)

    async def leave(self, because: str) -> None:
        """End the processes in order."""
        if because:
            self._supervisor.say("stopping; press Ctrl-C again to stop at once")
        await self._supervisor.stop(_STOP_S)

    async def close(self) -> None:
        """Kill the processes that are left."""
        await self._supervisor.stop(0.0)

    async def _tell_ready(self, within_s: float | None) -> None:
        url = f"http://127.0.0.1:{self._port}"
        try:
            async with asyncio.timeout(within_s):
                await place_order(url, self._supervisor)
        except TimeoutError:
            self._fail("no order succeeded in time; see the lines above")
            return
        pids = [os.getpid(), *self._supervisor.pids().values()]
        megabytes, measure = memory.together(pids)
        took_s = time.monotonic() - self._started
        print(f"ready {url}", flush=True)
        print(f"up in {took_s:.1f} s, {megabytes:.0f} MB in {len(pids)} processes ({measure})", flush=True)
        print(f"export CONSUL_HTTP_ADDR={self._consul}  # to call the shop from another terminal", flush=True)

    def _fail(self, why: str) -> None:
        self._supervisor.say(f"demo: {why}")
        self.status = 1


async def run(settings: DemoSettings, port: int, data: Path, started: float) -> int:
    """Run the mesh until there is a reason to end. Returns the exit status."""
    process = Process(settings, port, data, started)
    await live(process, signals=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    return process.status


def main() -> int:
    """Run the demo. Returns its exit status."""
    started = time.monotonic()
    state: StateDirectory | None = None
    try:
        settings = read_settings()
        # What a killed demo left behind: its data, and for a few seconds its gateway's port.
        killed = remove_stale()
        port = free_port(settings.port, _PORT_WAIT_S if killed else 0.0)
        data = settings.data
        if data is None:
            state = StateDirectory()
            data = state.path
        return asyncio.run(run(settings, port, data, started))
    except SettingsError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    finally:
        if state is not None:
            state.remove()


if __name__ == "__main__":
    sys.exit(main())
