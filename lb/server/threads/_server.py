"""A whole ``grpc.server`` with threads: the life of `lb.server.Server`, around handlers that are plain functions.

::

    the caller's thread      an event loop: signals, checks, registration, the order of leaving
    grpcio's thread          interceptors: the gate, the user's, admission, reports of load, the inner ones, incoming
    the pool's threads       handlers

The rules of its life are those of asyncio's server, in the same modules. What blocks there has a daemonic thread.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from signal import Signals
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import grpc

from lb.core.checks import segment as named
from lb.core.serving.settings import Limits
from lb.server import arguments
from lb.server.address import join_host_port
from lb.server.dependencies import Check, Dependencies
from lb.server.ending import Ending
from lb.server.gate import not_grpcs_own
from lb.server.life import Life, live
from lb.server.listening import bind, checked
from lb.server.optional import wanted
from lb.server.orca import LoadReporter
from lb.server.reasons import SIGNALS
from lb.server.registering import Registering
from lb.server.threads.admission import Admission
from lb.server.threads.leaving import Gate
from lb.server.threads.orca import LoadTrailers
from lb.sync import incoming

if TYPE_CHECKING:
    from lb.aio import Registration

_log = logging.getLogger("lb.server")

T = TypeVar("T")

ASYNC_CHECK = "the check is `async def`; with threads it is a plain function"


class Server(grpc.Server):
    """A ``grpc.Server`` with a life: health, admission, reports of its load, registration and drain.

    ::

        with lb.server.threads.Server("catalog", listen="0.0.0.0:50051", register=True) as server:
            add_CatalogServicer_to_server(Catalog(), server)
            server.serve()  # healthy, registered; SIGTERM drains, 30 s at most

    Arguments that it shares with `lb.server.Server` mean the same.

    Args:
        name: the name of the service, as clients write it (``consul:///NAME``).
        listen: where it listens, ``host:port``; port 0 takes a free one.
        threads: how many handlers run at once at most, those of open streams included.
        limits: what it takes on at once. False: anything, in as many threads. Default: ``Limits()``.
        register: whether it is registered in Consul once it is healthy; or arguments of `lb.aio.registration`.
        checks: what it depends on: functions by name. While one raises, or takes longer than two seconds, health says
            NOT_SERVING.
        credentials: for TLS.
        options: channel arguments of grpcio.
        interceptors: those of your own. They stand around admission, and run in grpcio's one thread.
        load: what reports its load. By default the places in use are the application's utilization.
        health: whether it serves ``grpc.health.v1.Health``. Default: if that is installed.
        drain_s: how long leaving takes at most, in seconds, all in all.
        drain_wait_s: for how long it is still open after it has said that it leaves, in seconds.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has a wrong type.
        ImportError: something that is asked for is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        threads: int = 32,
        limits: Limits | Literal[False] | None = None,
        register: bool | Mapping[str, Any] = False,
        checks: Mapping[str, Callable[[], object]] | None = None,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        interceptors: Sequence[grpc.ServerInterceptor] = (),
        load: LoadReporter | None = None,
        health: bool | None = None,
        drain_s: float = 30.0,
        drain_wait_s: float = 1.0,
    ) -> None:
        named("name", name)
        arguments.server(limits=limits, register=register, depends=checks, credentials=credentials, load=load)
        arguments.interceptors("interceptors", interceptors, grpc.ServerInterceptor, "grpc.ServerInterceptor")
        arguments.option("health", health)
        if limits is False:
            limits = Limits(concurrency=None, hopeless=False)
        self.admission = Admission(limits, threads=threads)
        """What limits it."""
        gate = Gate(self.admission.pool)
        reports = LoadTrailers(load or LoadReporter(application=self.admission.used))
        self._server = grpc.server(
            self.admission.pool,
            interceptors=[gate, *interceptors, self.admission, reports, incoming()],
            options=[("grpc.so_reuseport", 0), *options],
        )
        self._life = _Life(name, self._server, self.admission, gate, Ending(name, drain_s, drain_wait_s, 0.0))
        self._life.listens(listen, credentials)
        self._life.depends(checks or {}, healthy=wanted("health", "grpc_health", health), register=register)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``host:port``: what is registered, or else where it listens; empty before `start`."""
        return self._life.address

    @property
    def unhealthy(self) -> Mapping[str, str]:
        """Each of its ``checks`` by name, and why it fails; empty if it passes."""
        return dict(self._life.dependencies.unhealthy)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See ``grpc.Server``."""
        handlers = tuple(generic_rpc_handlers)
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._life.know(handler.service_name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """See ``grpc.Server``."""
        self._life.know(service_name)
        self._server.add_registered_method_handlers(service_name, dict(method_handlers))

    def add_insecure_port(self, address: str) -> int:
        """One more port. See ``grpc.Server``."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """One more port. See ``grpc.Server``."""
        return self._server.add_secure_port(address, server_credentials)

    def serve(self, *, parent_fd: int | None = None, signals: Sequence[Signals] = SIGNALS) -> None:
        """Start, serve until there is a reason to end, and leave. Call it in the main thread, which hears signals.

        Args:
            parent_fd: the reading end of a pipe whose end-of-file means that the supervisor is gone; None without one.
            signals: which signals are reasons to end. The second one ends it at once.

        Raises:
            StartError: it cannot listen there, or has no address to register.
            NotOpenError: ``parent_fd`` is not an open descriptor.
            RuntimeError: it was started before, or this is not the main thread.
        """
        self._life.begins()
        asyncio.run(live(self._life, parent_fd=parent_fd, signals=signals))

    def start(self) -> None:
        """Listen, and return when it is ready. Its life goes on in a thread until `close`, without signals.

        Raises:
            StartError: it cannot listen there, or has no address to register.
            RuntimeError: it was started before.
        """
        self._life.begins()
        begun = threading.Event()
        errors: list[Exception] = []

        def lives() -> None:
            try:
                asyncio.run(live(self._life, signals=()))
            except Exception as error:  # noqa: BLE001 - it is raised below
                errors.append(error)
            begun.set()

        self._life.when_ready = begun.set
        self._thread = threading.Thread(target=lives, name="lb-server", daemon=True)
        self._thread.start()
        begun.wait()
        if errors:
            raise errors[0]

    def stop(self, grace: float | None) -> threading.Event:
        """Leave within ``grace`` seconds, or at once, and close. See ``grpc.Server``."""
        self._life.end(grace)
        ended = threading.Event()

        def wait() -> None:
            if self._thread is not None:
                self._thread.join()
            ended.set()

        threading.Thread(target=wait, name="lb-server-stop", daemon=True).start()
        return ended

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """See ``grpc.Server``."""
        return self._server.wait_for_termination(timeout)

    def close(self) -> None:
        """End at once, and close all that was opened. It may be called again."""
        self.stop(None).wait()
        self._server.stop(None)
        self.admission.pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server {self._life!r}, {self.admission!r}>"


class _Life(Life):
    """The life of one server, in the loop of whoever lives it. Stands in for what `Ending` asks of asyncio's parts."""

    def __init__(self, name: str, server: grpc.Server, admission: Admission, gate: Gate, ending: Ending) -> None:
        self.address = ""
        self.when_ready: Callable[[], object] | None = None
        self.dependencies = Dependencies({})
        self._name, self._server, self._admission, self._gate, self._ending = name, server, admission, gate, ending
        self._listen: tuple[str, grpc.ServerCredentials | None] = ("", None)
        self._names = [""]
        self._health: Any = None
        self._registering: Registering | None = None
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._state: Literal["made", "not ready", "serving", "draining", "ended"] = "made"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._healthy = asyncio.Event()
        self._enough = asyncio.Event()
        self._at_once = False
        self._begun = False
        self._started = False

    def listens(self, listen: str, credentials: grpc.ServerCredentials | None) -> None:
        checked(listen)
        self._listen = (listen, credentials)

    def depends(
        self, checks: Mapping[str, Callable[[], object]], *, healthy: bool, register: bool | Mapping[str, Any]
    ) -> None:
        self.dependencies = Dependencies({name: _beside(name, check) for name, check in checks.items()})
        if healthy:
            # Imported here: most processes that import lb.server have no health service, and it needs protobuf.
            from lb.server.threads.health import Health

            self._health = Health()
        if register is not False:
            settings = {} if register is True else register
            self._registering = Registering(settings, health=healthy, tls=self._listen[1] is not None)

    def know(self, service: str) -> None:
        if service not in self._names and not_grpcs_own(f"/{service}/"):
            self._names.append(service)

    def end(self, grace: float | None) -> None:
        """Leave; from any thread, also after its end."""
        self._at_once = not grace
        if grace:
            self._ending.all_s = grace
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._enough.set)

    def begins(self) -> None:
        """Raises ``RuntimeError`` the second time: two lives would close each other's server."""
        if self._begun:
            raise RuntimeError(f"server {self._name}: a server starts once; make a new one")
        self._begun = True

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = "not ready"
        if self._health is not None:
            self._health.add_to(self._server)
            await self._health.say(self._names, serving=False)
        listen, credentials = self._listen
        server: Any = self._server
        self.address = join_host_port(checked(listen)[0], bind(server, listen, credentials))
        if self._registering is not None:
            self.address = await self._registering.address(self.address)
        self._started = True
        self._server.start()
        self._tasks.append(asyncio.create_task(self.dependencies.watch(self._judge)))
        await _either(self._healthy, self._enough)
        if not self._healthy.is_set():
            return
        if self._registering is not None:
            registration = self._registration = self._registering.entry(self._name, self.address)
            entering = asyncio.create_task(registration.__aenter__())
            self._tasks.append(entering)
            await asyncio.wait([entering])
            entering.result()
        _log.info("%s: ready at %s", self._name, self.address)
        if self.when_ready is not None:
            self.when_ready()

    async def run(self) -> None:
        await self._enough.wait()

    async def leave(self, because: str) -> None:
        if self._at_once or not self._healthy.is_set():
            return
        _log.info("%s: draining%s", self._name, f": {because}" if because else "")
        self._state = "draining"
        parts: Any = self
        await self._ending.leave(parts, parts._gate, parts, self._health, self._registration)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._gate.shut()
        if self.address and not self._started:
            self._server.start()  # grpcio closes the ports of no server that never started
        await self.stop(None)
        await self._ending.last(tasks, self._registration)
        self._admission.pool.shutdown(wait=False)
        self._state = "ended"

    async def stop(self, grace: float | None) -> None:
        """As of ``grpc.aio.Server``."""
        await _in_thread(lambda: self._server.stop(grace).wait(), "lb-server-stop")

    @property
    def in_flight(self) -> int:
        """As of `Meter`."""
        return self._admission.in_flight

    async def idle(self) -> None:
        """As of `Meter`."""
        await _in_thread(self._admission.wait_until_idle, "lb-server-idle")

    async def _judge(self) -> None:
        if self._state in ("draining", "ended"):
            return
        broken = self.dependencies.tell(self._name)
        if self._state == ("not ready" if broken else "serving"):
            return
        self._state = "not ready" if broken else "serving"
        if self._health is not None:
            await self._health.say(self._names, serving=not broken)
        if not broken:
            self._healthy.set()

    def __repr__(self) -> str:
        return f"{self._name} at {self.address or 'no address yet'}, {self._state}"


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _beside(name: str, check: Callable[[], object]) -> Check:
    async def ask() -> None:
        answer = await _in_thread(check, f"lb-check-{name}")
        if inspect.iscoroutine(answer):  # nothing was asked yet
            answer.close()
            raise TypeError(ASYNC_CHECK)

    return ask


async def _in_thread(function: Callable[[], T], name: str) -> T:
    """What a function returns that blocks. Nobody waits for its thread at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001 - it belongs to who waits
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
