"""A Consul agent for one machine: the part of Consul's HTTP API that ``lb`` uses, embedded.

In a test::

    async with Agent() as agent:
        channel = lb.aio.channel(f"consul://{agent.address}/catalog")

As a process (the demo's)::

    python -m lb.testing.agent --port 8500

It is a catalog of one node that is agent and server in one, like ``consul agent -dev``: nothing
is kept on disk, every token is accepted. gRPC, HTTP, TCP and TTL checks are really performed.
The same tests run against it and against a real Consul. What it has no idea of: access control,
several nodes or datacenters, ``filter=``, peers, Connect, the DNS port, key/value, sessions. It says
so when it is asked for them, and drops nothing that it takes.

One difference is on purpose: a check runs for the first time at once, where Consul waits for a
random part of its interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

try:
    import aiohttp
    from aiohttp import web
except ModuleNotFoundError as error:
    _words = "the embedded agent needs aiohttp; install lb-mesh with its extra `consul`"
    if __name__ == "__main__":
        sys.exit(_words)
    raise ImportError(_words) from error

from lb.core.target import join_host_port
from lb.server import Life, NotOpenError, live
from lb.testing._checks import Runner
from lb.testing._entries import STATUSES, Refused, duration
from lb.testing._listening import stop_accepting
from lb.testing._registry import Registry
from lb.testing._views import Views

_WAIT_DEFAULT_S = 300.0
_WAIT_MAX_S = 600.0
# Parameters that change no answer of one node without access control.
_EVERYWHERE = ("stale", "consistent", "cached", "dc", "near", "pretty", "token")
_ENTERPRISE = {"ns": "Namespaces are", "partition": "Partitions are"}
_ELSEWHERE = "it is the agent of lb.testing, for one machine; a real Consul has the rest"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Agent:
    """The embedded agent. Start and stop it as often as you like: it keeps its port.

    Args:
        host: the address to listen on.
        port: 0 for a free one, which ``url`` then tells.
        node: the name of the one node that it knows.
        datacenter: the name of its datacenter.
        deregister_least_s: seconds that an instance must be critical at least before
            ``DeregisterCriticalServiceAfter`` removes it. The default is Consul's own.
        reap_s: how often that is looked at, in seconds. The default is Consul's own.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        node: str = "embedded",
        datacenter: str = "dc1",
        deregister_least_s: float = 60.0,
        reap_s: float = 30.0,
    ) -> None:
        self._host = host
        self._port = port
        self._least_s = deregister_least_s
        self._reap_s = reap_s
        self._wakers: set[asyncio.Event] = set()
        self._epoch = 0
        self._registry = Registry(node, datacenter, self._wake)
        self._views = Views(self._registry)
        self._rng = random.Random()
        self._runners: dict[str, Runner] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._http: aiohttp.ClientSession | None = None
        self._site: web.AppRunner | None = None
        self._reaper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port``. The port is 0 before the first start, unless one was given."""
        return join_host_port(self._host, self._port)

    @property
    def url(self) -> str:
        """``http://host:port``, for ``CONSUL_HTTP_ADDR``."""
        return f"http://{self.address}"

    @property
    def waiting(self) -> int:
        """How many blocking queries wait for a change."""
        return len(self._wakers)

    async def start(self) -> None:
        """Listen. What was registered is still there.

        Raises:
            OSError: the port is taken.
        """
        if self._site is not None:
            return
        site = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await site.setup()
        try:
            await web.TCPSite(site, self._host, self._port, reuse_address=True).start()
        except OSError:
            await site.cleanup()
            raise
        self._site = site
        self._port = site.addresses[0][1]
        self._http = aiohttp.ClientSession()
        for check_id in tuple(self._registry.checks):
            self._run_check(check_id)
        self._reaper = asyncio.get_running_loop().create_task(self._reap(), name="embedded consul reaper")

    async def stop(self) -> None:
        """Close the port and all connections at once, like a crash. It keeps what is registered."""
        site, self._site = self._site, None
        if site is None:
            return
        self._epoch += 1
        self._wake()
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        for check_id in tuple(self._runners):
            self._stop_check(check_id)
        if self._closing:
            await asyncio.wait(self._closing)
        for listening in site.sites:
            server = listening._server
            if isinstance(server, asyncio.Server):
                await stop_accepting(server)
        await site.cleanup()
        if self._http is not None:
            await self._http.close()

    async def forget(self) -> None:
        """Restart empty on the same port, as ``consul agent -dev`` does. Indexes begin again."""
        await self.stop()
        self._registry.reset()
        await self.start()

    def set_index(self, index: int) -> None:
        """Set every index to this value, also backwards, and answer all blocking queries."""
        self._epoch += 1
        self._registry.set_index(index)

    async def __aenter__(self) -> Agent:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __repr__(self) -> str:
        state = "up" if self._site else "down"
        return f"Agent({self.url}, {state}, {len(self._registry.services)} services, index={self._registry.index})"

    # HTTP

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._errors])
        for method, path, handler, parameters in self._routes():
            app.router.add_route(method, path, _accepting(handler, parameters))
        return app

    def _routes(self) -> list[tuple[str, str, _Handler, str]]:
        """Each with the parameters that are its own."""
        return [
            ("GET", "/v1/status/leader", self._leader, ""),
            ("GET", "/v1/status/peers", self._peers, ""),
            ("GET", "/v1/agent/self", self._self, ""),
            ("GET", "/v1/agent/services", self._agent_services, ""),
            ("GET", "/v1/agent/checks", self._agent_checks, ""),
            ("GET", "/v1/agent/service/{id}", self._agent_service, ""),
            ("GET", "/v1/agent/health/service/id/{id}", self._agent_health, ""),
            ("PUT", "/v1/agent/service/register", self._register, "replace-existing-checks"),
            ("PUT", "/v1/agent/service/deregister/{id}", self._deregister, ""),
            ("PUT", "/v1/agent/service/maintenance/{id}", self._maintenance, "enable reason"),
            ("PUT", "/v1/agent/check/{verb:pass|warn|fail|update}/{id}", self._ttl, "note"),
            ("GET", "/v1/catalog/services", self._catalog_services, "index wait"),
            ("GET", "/v1/catalog/service/{name}", self._catalog_service, "index wait tag"),
            ("GET", "/v1/health/service/{name}", self._health_service, "index wait tag passing"),
            ("GET", "/v1/health/checks/{name}", self._health_checks, "index wait"),
            ("GET", "/v1/health/state/{state}", self._health_state, "index wait"),
        ]

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as error:
            return web.Response(status=error.status, text=error.words)
        except web.HTTPNotFound:
            served = ", ".join(f"{method} {path}" for method, path, *_ in self._routes())
            words = f"the embedded Consul agent does not serve {request.path}: {_ELSEWHERE}. It serves {served}"
            return web.Response(status=404, text=words)
        except web.HTTPMethodNotAllowed as error:
            return web.Response(
                status=405,
                text=f"method {request.method} not allowed",
                headers={"Allow": ",".join(error.allowed_methods)},
            )

    async def _leader(self, request: web.Request) -> web.Response:
        return web.json_response(self.address)

    async def _peers(self, request: web.Request) -> web.Response:
        return web.json_response([self.address])

    async def _self(self, request: web.Request) -> web.Response:
        return web.json_response(self._views.agent_self())

    async def _agent_services(self, request: web.Request) -> web.Response:
        return web.json_response(self._views.agent_services())

    async def _agent_checks(self, request: web.Request) -> web.Response:
        return web.json_response(self._views.agent_checks())

    async def _agent_service(self, request: web.Request) -> web.Response:
        return web.json_response(self._views.agent_service(request.match_info["id"]))

    async def _agent_health(self, request: web.Request) -> web.Response:
        status, body = self._views.agent_health(request.match_info["id"])
        return web.json_response(body, status=status)

    async def _register(self, request: web.Request) -> web.Response:
        body = await _json(request)
        replace = request.query.get("replace-existing-checks", "false") in ("", "true", "1")
        known = set(self._registry.checks)
        now = self._now()
        for check in self._registry.register(body, replace_checks=replace, now=now):
            self._run_check(check.check_id)
        for check_id in known - set(self._registry.checks):
            self._stop_check(check_id)
        return web.Response()

    async def _deregister(self, request: web.Request) -> web.Response:
        self._remove(request.match_info["id"])
        return web.Response()

    async def _maintenance(self, request: web.Request) -> web.Response:
        enable = request.query.get("enable", "")
        if not enable:
            raise Refused(400, "Missing value for enable")
        if enable.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise Refused(400, f'Invalid value for enable: "{enable}"')
        self._registry.maintenance(
            request.match_info["id"],
            enable=enable.lower() in ("true", "t", "1"),
            reason=request.query.get("reason", ""),
            now=self._now(),
        )
        return web.Response()

    async def _ttl(self, request: web.Request) -> web.Response:
        verb, check_id = request.match_info["verb"], request.match_info["id"]
        status = {"pass": "passing", "warn": "warning", "fail": "critical", "update": ""}[verb]
        output = request.query.get("note", "")
        if verb == "update":
            body = await _json(request)
            status, output = str(body.get("Status", "")), str(body.get("Output", ""))
            if status not in STATUSES:
                raise Refused(400, f"Invalid check status: '{status}'")
        if self._registry.check(check_id).kind != "ttl":
            raise Refused(500, f'CheckID "{check_id}" does not have associated TTL')
        if check_id in self._runners:
            self._runners[check_id].heard()
        self._registry.report(check_id, status, output, now=self._now())
        return web.Response()

    async def _catalog_services(self, request: web.Request) -> web.Response:
        registry = self._registry
        return await self._blocking(request, lambda: registry.index, self._views.catalog_services)

    async def _catalog_service(self, request: web.Request) -> web.Response:
        registry, name, tags = self._registry, request.match_info["name"], request.query.getall("tag", [])
        return await self._blocking(
            request, lambda: registry.index_of(name), lambda: self._views.catalog_service(name, tags)
        )

    async def _health_service(self, request: web.Request) -> web.Response:
        registry, name, tags = self._registry, request.match_info["name"], request.query.getall("tag", [])
        wanted = request.query.get("passing", "false").lower()
        if wanted not in ("", "true", "t", "1", "false", "f", "0"):
            raise Refused(400, "Invalid value for ?passing")
        passing = wanted in ("", "true", "t", "1")
        return await self._blocking(
            request, lambda: registry.index_of(name), lambda: self._views.health_service(name, tags, passing=passing)
        )

    async def _health_checks(self, request: web.Request) -> web.Response:
        registry, name = self._registry, request.match_info["name"]
        return await self._blocking(request, lambda: registry.index_of(name), lambda: self._views.health_checks(name))

    async def _health_state(self, request: web.Request) -> web.Response:
        registry, state = self._registry, request.match_info["state"]
        return await self._blocking(request, lambda: registry.index, lambda: self._views.health_state(state))

    async def _blocking(
        self, request: web.Request, index_of: Callable[[], int], read: Callable[[], Any]
    ) -> web.Response:
        """A read that waits, if asked to, until the index is higher than the asker's."""
        query = request.query
        for conflict in ("stale", "cached"):
            if conflict in query and "consistent" in query:
                raise Refused(400, f"Cannot specify ?{conflict} with ?consistent, conflicting semantics.")
        if query.get("dc", "") not in ("", self._registry.datacenter):
            raise Refused(500, "No path to datacenter")
        index_text, wait_text = query.get("index", ""), query.get("wait", "")
        if index_text and not (index_text.isascii() and index_text.isdigit()):
            raise Refused(400, "Invalid index")
        try:
            wait_s = duration(wait_text, "wait")
        except Refused:
            raise Refused(400, "Invalid wait time") from None
        if index := int(index_text or 0):
            wait_s = min(wait_s or _WAIT_DEFAULT_S, _WAIT_MAX_S)
            # Consul spreads the herd: up to 1/16 longer.
            await self._until(lambda: index_of() > index, wait_s * (1 + self._rng.uniform(0, 1 / 16)))
            if self._site is None and request.transport is not None:
                request.transport.abort()
        headers = {
            "X-Consul-Index": str(max(1, index_of())),
            "X-Consul-KnownLeader": "true",
            "X-Consul-LastContact": "0",
            "X-Consul-Effective-Consistency": "leader",
            "X-Consul-Query-Backend": "blocking-query",
        }
        return web.json_response(read(), headers=headers)

    async def _until(self, true: Callable[[], bool], wait_s: float) -> None:
        epoch, changed = self._epoch, asyncio.Event()
        self._wakers.add(changed)
        try:
            async with asyncio.timeout(wait_s):
                while not true() and epoch == self._epoch:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            pass
        finally:
            self._wakers.discard(changed)

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

    # Checks

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _run_check(self, check_id: str) -> None:
        probe = self._registry.checks[check_id].probe
        runner = self._runners.get(check_id)
        if probe is None or self._http is None or (runner is not None and runner.probe == probe):
            return
        self._stop_check(check_id)

        def report(status: str, output: str) -> None:
            self._registry.report(check_id, status, output, now=self._now())

        self._runners[check_id] = Runner(probe, self._http, report)

    def _stop_check(self, check_id: str) -> None:
        runner = self._runners.pop(check_id, None)
        if runner is not None:
            runner.cancel()
            task = asyncio.get_running_loop().create_task(runner.close(), name=f"close check {check_id}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _remove(self, service_id: str) -> None:
        known = set(self._registry.checks)
        self._registry.deregister(service_id)
        for check_id in known - set(self._registry.checks):
            self._stop_check(check_id)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self._reap_s)
            for service_id in self._registry.expired(self._now(), self._least_s):
                self._remove(service_id)


def _accepting(handler: _Handler, parameters: str) -> _Handler:
    """The handler, where a parameter that would change the answer and is not known is refused."""
    known = {*parameters.split(), *_EVERYWHERE}

    async def checked(request: web.Request) -> web.StreamResponse:
        for name in request.query:
            if name in _ENTERPRISE:
                words = f'Invalid query parameter: "{name}" - {_ENTERPRISE[name]} a Consul Enterprise feature'
                raise Refused(400, words)
            if name not in known:
                raise Refused(400, f"the embedded agent does not support ?{name} for {request.path}: {_ELSEWHERE}")
        return await handler(request)

    return checked


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.text() or "{}")
    except ValueError as error:
        raise Refused(400, f"Request decode failed: {error}") from None


class _Process(Life):
    """An agent in a process of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._agent = Agent(host=host, port=port)

    async def start(self) -> None:
        try:
            await self._agent.start()
        except OSError as error:
            raise _NotListeningError(f"cannot listen on {self._agent.address}: {error.strerror}") from None
        print(f"consul (embedded) {self._agent.url}", flush=True)

    async def close(self) -> None:
        await self._agent.stop()


class _NotListeningError(Exception):
    """The address is not available."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. The exit status: 0, or 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m lb.testing.agent", description="An embedded Consul agent.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one (default)")
    parser.add_argument("--parent-fd", type=int, help="inherited end of a pipe; end when the other end is closed")
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port is {options.port}; expected 0 to 65535")

    async def whole() -> None:
        await live(_Process(options.host, options.port), parent_fd=options.parent_fd)

    try:
        asyncio.run(whole())
    except _NotListeningError as error:
        print(f"embedded consul: {error}", file=sys.stderr)
        return 2
    except NotOpenError as error:
        parser.error(f"--parent-fd is {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
