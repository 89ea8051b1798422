"""A Consul for the tests: a real one as a process of its own, or the embedded agent, with the same handle.

Fixtures (a conftest imports them all): ``registry`` runs a test on both, ``own_registry`` too, with
one that the test may stop and start; ``acl_consul`` is a real one with access control; ``two_nodes`` are the
server and a client agent of one real cluster. `Proxy` stands before either kind, and does what a test wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from lb.testing import Agent
from tests.support import servers
from tests.support.ports import free_ports
from tests.support.wait import until

_START_S = 90.0
_STOP_S = 30.0
_PORTS = ("http", "grpc", "dns", "server", "serf-lan", "serf-wan")


class Registry:
    """What tests do with a Consul, of either kind, through its HTTP API. ``kind`` says which."""

    kind = ""
    url = ""
    token = ""
    """Sent with what the test itself asks."""

    @property
    def address(self) -> str:
        """``host:port``."""
        return self.url.removeprefix("http://")

    async def start(self) -> None:
        """Starts it, empty, on the port it had."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Ends it at once, as a crash would."""
        raise NotImplementedError

    async def forget(self) -> None:
        """Restarts it empty."""
        await self.kill()
        await self.start()

    async def get(self, path: str, **params: Any) -> httpx2.Response:
        """The answer to a GET, whatever its status."""
        async with self.client() as client:
            return await client.get(f"/v1/{path}", params=params)

    async def put(self, path: str, body: Any = None, **params: Any) -> httpx2.Response:
        """The answer to a PUT, whatever its status."""
        async with self.client() as client:
            return await client.put(f"/v1/{path}", params=params, json=body)

    def client(self) -> httpx2.AsyncClient:
        """For requests of the test's own."""
        headers = {"X-Consul-Token": self.token} if self.token else {}
        return httpx2.AsyncClient(base_url=self.url, timeout=90, verify=False, headers=headers)

    async def health(self, service: str, **params: Any) -> list[dict[str, Any]]:
        """``/v1/health/service/NAME``."""
        answer = await self.get(f"health/service/{service}", **params)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    async def index(self, service: str) -> int:
        """The index of a service."""
        return int((await self.get(f"health/service/{service}")).headers["X-Consul-Index"])

    async def register(
        self, service: str, id: str, host: str = "127.0.0.1", port: int = 1, *, weight: int = 1, **more: Any
    ) -> None:
        """Registers an instance, without a check unless ``Check`` says so."""
        weights = {"Passing": weight, "Warning": 1}
        body = {"Name": service, "ID": id, "Address": host, "Port": port, "Weights": weights} | more
        (await self.put("agent/service/register", body)).raise_for_status()

    async def deregister(self, id: str) -> None:
        """Removes an instance."""
        (await self.put(f"agent/service/deregister/{id}")).raise_for_status()

    async def set_weight(self, id: str, weight: int) -> None:
        """Changes an instance's weight, as an operator would: all else stays."""
        known = (await self.get(f"agent/service/{id}")).raise_for_status().json()
        await self.register(
            known["Service"], id, known["Address"], known["Port"], weight=weight, Tags=known["Tags"], Meta=known["Meta"]
        )

    async def knows(self, id: str) -> dict[str, Any] | None:
        """The instance and its checks as the agent has them; None when it has not."""
        answer = await self.get(f"agent/health/service/id/{id}")
        found: dict[str, Any] | None = None if answer.status_code == 404 else answer.json()
        return found

    async def maintenance(self, id: str) -> str | None:
        """Why the instance is in maintenance; None when it is not."""
        for check in (await self.knows(id) or {}).get("Checks") or ():
            if check["CheckID"] == f"_service_maintenance:{id}":
                return str(check["Notes"])
        return None

    async def instances(self) -> set[str]:
        """The ids of all registered instances."""
        return set((await self.get("agent/services")).raise_for_status().json())

    async def status(self, service: str, id: str) -> str:
        """The status of the instance's own check; empty when it is not there."""
        for entry in await self.health(service):
            for check in entry["Checks"]:
                if check["CheckID"] == f"service:{id}":
                    return str(check["Status"])
        return ""


class Embedded(Registry):
    """The agent of ``lb.testing``, in this process."""

    kind = "embedded"

    def __init__(self) -> None:
        self.agent = Agent()
        self._fresh = True

    async def start(self) -> None:
        """Starts it, empty, on the port it had."""
        await (self.agent.start() if self._fresh else self.agent.forget())
        self._fresh = False
        self.url = self.agent.url

    async def kill(self) -> None:
        """Ends it at once, as a crash would."""
        await self.agent.stop()


class Consul(Registry):
    """A real ``consul agent``: one process on ports of its own, which it keeps when started again.

    It is a server in development mode, or a client of the cluster of ``join``. ``acl`` turns access control on:
    nothing is allowed without a token, and `token` is one that may do everything.
    """

    kind = "real"

    def __init__(self, *, node: str = "test", acl: bool = False, join: Consul | None = None) -> None:
        with free_ports(len(_PORTS)) as ports:
            self.ports = dict(zip(_PORTS, ports, strict=True))
        self._process: asyncio.subprocess.Process | None = None
        self._node = node
        self._join = join
        self._ended = contextlib.ExitStack()
        self.url = f"http://127.0.0.1:{self.ports['http']}"
        self.token = str(uuid.uuid4()) if acl else ""

    async def start(self) -> None:
        """Starts it, empty, and waits until it has a leader. Raises ``RuntimeError`` with its last words."""
        program = servers.find("consul")
        assert program is not None, "tests that need it are marked `consul`"
        home = tempfile.mkdtemp(prefix="consul-")
        self._ended.callback(shutil.rmtree, home, ignore_errors=True)
        with tempfile.TemporaryFile() as output:
            kind = ["-dev"] if self._join is None else ["-data-dir", home]
            if self._join is not None:
                kind += ["-retry-join", f"127.0.0.1:{self._join.ports['serf-lan']}"]
            if self.token:
                tokens = {"initial_management": self.token, "agent": self.token}
                acl = {"enabled": True, "default_policy": "deny", "tokens": tokens}
                (Path(home) / "acl.json").write_text(json.dumps({"acl": acl}))
                kind += ["-config-file", f"{home}/acl.json"]
            self._process = await asyncio.create_subprocess_exec(
                str(program),
                *("agent", *kind, "-client", "127.0.0.1", "-bind", "127.0.0.1", "-node", self._node),
                *("-log-level", "warn", "-grpc-tls-port=-1"),
                *(f"-{name}-port={port}" for name, port in self.ports.items()),
                stdout=output,
                stderr=output,
                cwd=home,
            )
            try:
                await until(self._ready, within_s=_START_S, what="consul has a leader")
            except (TimeoutError, RuntimeError) as error:
                await self.kill()
                output.seek(0)
                raise RuntimeError(f"{error}: {output.read().decode(errors='replace')[-2000:]}") from error

    async def new_token(self, rules: str) -> Token:
        """A token with a policy of its own."""
        name = f"policy-{uuid.uuid4()}"
        (await self.put("acl/policy", {"Name": name, "Rules": rules})).raise_for_status()
        made = (await self.put("acl/token", {"Policies": [{"Name": name}]})).raise_for_status().json()
        return Token(self, made["AccessorID"], made["SecretID"])

    async def kill(self) -> None:
        """Ends it at once: SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        self._ended.close()

    async def _ready(self) -> bool:
        assert self._process is not None
        if self._process.returncode is not None:
            raise RuntimeError(f"consul ended with status {self._process.returncode} before it was ready")
        try:
            leader: str = (await self.get("status/leader")).json()
            # A leader is there before the node itself is in the catalog.
            return bool(leader) and self._node in {node["Node"] for node in (await self.get("catalog/nodes")).json()}
        except (httpx2.HTTPError, ValueError, TypeError):
            return False


@dataclass(frozen=True)
class Token:
    """A token of a real Consul."""

    consul: Consul
    accessor: str
    secret: str

    async def allow(self, *policies: str) -> None:
        """From now on it has these policies; none allows nothing."""
        body = {"AccessorID": self.accessor, "Policies": [{"Name": name} for name in policies]}
        (await self.consul.put(f"acl/token/{self.accessor}", body)).raise_for_status()

    async def delete(self) -> None:
        """Consul knows it no more."""
        async with self.consul.client() as client:
            (await client.delete(f"/v1/acl/token/{self.accessor}")).raise_for_status()


class Proxy:
    """Before an agent: ``before`` and ``after`` are awaited with each request's method and path.

    What they raise breaks the connection off. ``asked`` are the requests, in their order.
    """

    def __init__(self, behind: Registry) -> None:
        self.asked: list[str] = []
        self.url = ""
        self._behind = behind
        self.before: Callable[[str], Awaitable[None]] = _nothing
        self.after: Callable[[str], Awaitable[None]] = _nothing
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._site = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    def hold(self, held: str) -> tuple[asyncio.Event, asyncio.Event]:
        """Keep the answers to these requests back: an event that one was carried out, and one that lets them go."""
        sent, go = asyncio.Event(), asyncio.Event()

        async def after(what: str) -> None:
            if what == held:
                sent.set()
                await go.wait()

        self.after = after
        return sent, go

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        self.asked.append(what)
        try:
            await self.before(what)
            async with self._behind.client() as client:
                answer = await client.request(
                    request.method,
                    f"{self._behind.url}{request.raw_path}",
                    content=await request.read(),
                    headers={"X-Consul-Token": request.headers.get("X-Consul-Token", "")},
                )
            await self.after(what)
        except (ConnectionError, httpx2.HTTPError):
            if request.transport is not None:
                request.transport.abort()
            raise web.HTTPBadGateway from None
        headers = {name: value for name, value in answer.headers.items() if name.lower().startswith("x-")}
        return web.Response(status=answer.status_code, body=answer.content, headers=headers)

    async def __aenter__(self) -> Proxy:
        await self._site.setup()
        await web.TCPSite(self._site, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._site.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._site.cleanup()


async def _nothing(what: str) -> None:
    """The agent answers as it does."""


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Consul]:
    """A real Consul while the block lasts."""
    server = Consul(**settings)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


@contextlib.asynccontextmanager
async def embedded() -> AsyncIterator[Embedded]:
    """The embedded agent while the block lasts."""
    server = Embedded()
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


KINDS = ["embedded", pytest.param("real", marks=pytest.mark.consul)]


@pytest.fixture(scope="module")
async def real_consul() -> AsyncIterator[Consul]:
    """One real Consul for all tests of a module that leave it running."""
    async with running() as server:
        yield server


@pytest.fixture(scope="module")
async def acl_consul() -> AsyncIterator[Consul]:
    """One real Consul with access control for all tests of a module that leave it running."""
    async with running(acl=True) as server:
        yield server


@pytest.fixture(scope="module")
async def two_nodes(real_consul: Consul) -> AsyncIterator[tuple[Consul, Consul]]:
    """The server and a client agent of one real cluster, for all tests of a module that leave them running."""
    async with running(node="other", join=real_consul) as client:
        yield real_consul, client


@pytest.fixture
async def embedded_consul() -> AsyncIterator[Embedded]:
    """An embedded agent for one test."""
    async with embedded() as server:
        yield server


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest) -> Registry:
    """Both kinds in turn. The real one is shared: use a service name of your own, and do not stop it."""
    found: Registry = request.getfixturevalue("embedded_consul" if request.param == "embedded" else "real_consul")
    return found


@pytest.fixture(params=KINDS)
async def own_registry(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    """Both kinds in turn, for this test alone."""
    async with embedded() if request.param == "embedded" else running() as server:
        yield server
