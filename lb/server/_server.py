"""A whole server for asyncio: what every server needs besides its handlers, in the right order.

::

    start ─► not ready ─ every check passes ─► serving ─ SIGTERM, Ctrl-C, supervisor gone ─► draining ─► ended
                 ▲                                │
                 └────────── a check fails ───────┘

Draining, in this order, and within one time for all: health says NOT_SERVING, and Consul says maintenance. For a while
clients that have not noticed yet are still served, so that leaving costs nobody a retry. Then new calls are refused
with push-back 0, handlers that wait for `draining` are told, the registration goes, and the port closes. Calls in
flight end, or are cancelled when their time is over. Then come the callbacks of ``on_close``. A second reason to end
skips what is left (`lb.server.live`).

Around each handler, from outside to inside: the gate, which counts and refuses while draining; the user's interceptors;
admission; reports of load; the user's inner interceptors; `lb.aio.incoming`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from signal import Signals
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import grpc

from lb.aio import incoming
from lb.core.checks import segment as named
from lb.core.serving.settings import Limits
from lb.server import arguments
from lb.server.address import join_host_port
from lb.server.admission import Admission
from lb.server.chain import joined
from lb.server.dependencies import Check
from lb.server.ending import Ending
from lb.server.gate import Gate, Meter, not_grpcs_own
from lb.server.life import Life, live
from lb.server.listening import apart, bind, checked, told, with_default
from lb.server.optional import health_service, wanted
from lb.server.orca import LoadReporter, LoadTrailers
from lb.server.readiness import Readiness, State
from lb.server.reasons import SIGNALS
from lb.server.registering import enter, registering
from lb.server.strain import Strain

if TYPE_CHECKING:
    from lb.aio import Registration
    from lb.server.health import Health

_log = logging.getLogger("lb.server")


class Server(Life, grpc.aio.Server):
    """A ``grpc.aio.Server`` with a life: health, reflection, admission, reports of its load, registration and drain.

    Make it in a running loop, add servicers, then call `serve`, or in a test `start`::

        async with lb.server.Server("catalog", listen="0.0.0.0:50051", register=True) as server:
            add_CatalogServicer_to_server(Catalog(), server)
            await server.serve()

    Health and reflection are served if ``grpcio-health-checking`` and ``grpcio-reflection`` are installed (the extra
    ``server``).

    Args:
        name: the name of the service, as clients write it (``consul:///NAME``).
        listen: where it listens, ``host:port``; port 0 takes a free one. None: only on the ports that you add.
        limits: what it takes on at once. False: anything. Default: ``Limits()``.
        register: whether it is registered in Consul once it is healthy. Instead of True, a mapping with arguments of
            `lb.aio.registration`: ``address``, ``weight``, ``zone``, ``meta`` and so on. As ``address`` it may have a
            host, and ``"auto"`` for the local address from which Consul is reached, which is the default if it listens
            on all addresses.
        checks: what it depends on: functions by name, each ``async def``. While one raises, or takes longer than two
            seconds, health says NOT_SERVING.
        credentials: for TLS.
        options: channel arguments of grpcio. Two servers never share a port unless ``grpc.so_reuseport`` is set.
        compression: of its answers.
        interceptors: those of your own. They stand around admission, so that they see refusals as well.
        inner: those that stand right around the handlers. What admission refuses does not reach them.
        load: what reports its load. By default the places in use are the application's utilization, with the loop's lag
            beside it.
        counts: which methods (``/package.Service/Method``) are the service's own work: only those are counted, limited,
            refused while it drains, and known to health. By default all but gRPC's own.
        trailers: trailing metadata of what it refuses, such as its id.
        health: whether it serves ``grpc.health.v1.Health``. Default: if that is installed.
        reflection: whether it serves reflection. Default: if that is installed.
        drain_s: how long leaving takes at most, in seconds, all in all.
        drain_wait_s: for how long it is still open after it has said that it leaves, in seconds; below ``drain_s``, or
            0.
        flush_s: how much of ``drain_s`` is kept for what was given to `on_close`, in seconds; at most half of it.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has a wrong type.
        ImportError: something that is asked for is not installed.
        RuntimeError: no event loop runs.
    """

    def __init__(
        self,
        name: str,
        *,
        listen: str | None = "127.0.0.1:0",
        limits: Limits | Literal[False] | None = None,
        register: bool | Mapping[str, Any] = False,
        checks: Mapping[str, Check] | None = None,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        compression: grpc.Compression | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        inner: Sequence[grpc.aio.ServerInterceptor] = (),
        load: LoadReporter | None = None,
        counts: Callable[[str], bool] | None = None,
        trailers: Sequence[tuple[str, str | bytes]] = (),
        health: bool | None = None,
        reflection: bool | None = None,
        drain_s: float = 30.0,
        drain_wait_s: float = 1.0,
        flush_s: float = 2.0,
    ) -> None:
        _in_a_loop()
        named("name", name)
        self._host = "" if listen is None else checked(listen)[0]
        self._ending = Ending(name, drain_s, drain_wait_s, flush_s)
        arguments.server(
            grpc.aio.ServerInterceptor,
            limits=limits,
            register=register,
            depends=checks,
            credentials=credentials,
            options=options,
            interceptors=interceptors,
            inner=inner,
            load=load,
            counts=counts,
            trailers=trailers,
            health=health,
            reflection=reflection,
        )
        if listen is not None:
            apart(listen, options)
        self._name = name
        self._listen = listen
        self._credentials = credentials
        self._counts = counts or not_grpcs_own
        self._health: Health | None = health_service(health)
        self._reflection = wanted("reflection", "grpc_reflection", reflection)
        self._registering = registering(register, health=self._health is not None, tls=credentials is not None)
        self._ready = Readiness(name, checks or {}, self._counts, self._health)
        self._started = False
        self._starting: asyncio.Timeout | None = None
        self._start_over = asyncio.Event()
        self._start_over.set()
        self._closed = asyncio.Event()
        self._port = 0
        self._address = ""
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.meter: Meter = Meter()
        """How many calls have ended, and how many run."""
        self.admission: Admission | None = None
        """What limits it; None if nothing does."""
        if limits is not False:
            self.admission = Admission(limits, counts=self._counts, trailers=trailers)
        used = self.admission.places.used if self.admission is not None else None
        self._strain = Strain()
        self._gate = Gate(self.meter, trailers, counts=self._counts)
        self._server = grpc.aio.server(
            interceptors=[
                *joined(
                    [
                        self._gate,
                        *interceptors,
                        *([] if self.admission is None else [self.admission]),
                        LoadTrailers(
                            load or LoadReporter(application=used, utilization=self._strain.lag),
                            counts=self._counts,
                        ),
                        *inner,
                        incoming(),
                    ]
                )
            ],
            options=with_default(options),
            compression=compression,
        )

    @property
    def port(self) -> int:
        """The port that it listens on; 0 before `start`."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port``: what is registered, or else where it listens; empty before `start`."""
        return self._address

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._ready.state

    @property
    def unhealthy(self) -> Mapping[str, str]:
        """Each of its ``checks`` by name, and why it fails; empty if it passes."""
        return dict(self._ready.dependencies.unhealthy)

    def on_close(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Call this once no call runs any more, within the time for leaving: to send the last spans, for example.

        A second signal skips it. What must be closed in any case belongs into an ``async with`` around the server.

        Raises:
            TypeError: it is not a function.
        """
        arguments.callback(callback)
        self._ending.callbacks.append(callback)

    # ---- a grpc.aio.Server, to which servicers and ports are added before it starts

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See ``grpc.aio.Server``."""
        handlers = tuple(generic_rpc_handlers)
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._ready.know(handler.service_name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """See ``grpc.aio.Server``."""
        self._ready.know(service_name)
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """One more port. See ``grpc.aio.Server``."""
        return self._opened(address, self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """One more port. See ``grpc.aio.Server``."""
        return self._opened(address, self._server.add_secure_port(address, server_credentials))

    def _opened(self, address: str, port: int) -> int:
        if self._listen is None and not self._port:  # the first one is the one that is told
            self._port, self._address = port, told(address, port)
        return port

    # ---- its life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def serve(self, *, parent_fd: int | None = None, signals: Sequence[Signals] = SIGNALS) -> None:
        """Start, serve until there is a reason to end, and leave.

        Args:
            parent_fd: the reading end of a pipe whose end-of-file means that the supervisor is gone; None without one.
            signals: which signals are reasons to end. The second one ends it at once.

        Raises:
            StartError: it cannot listen there, or has no address to register.
            NotOpenError: ``parent_fd`` is not an open descriptor.
        """
        await live(self, parent_fd=parent_fd, signals=signals, leave_s=None)

    async def start(self) -> None:
        """Listen, and register once every check passes. Then it is ready.

        Raises:
            StartError: it cannot listen there, or has no address to register.
            RuntimeError: it was started before, or is closed before it is ready.
        """
        self._ready.begins()
        self._starting = starting = asyncio.timeout(None)  # `close` ends it
        try:
            async with starting:
                await self._ready.open()
                await self._open()
                await self._ready.healthy.wait()
                if self._registering is not None:
                    self._registration = self._registering.entry(self._name, self._address)
                    await enter(self._registration, self._tasks)
        except Exception as error:
            if isinstance(error, TimeoutError) and starting.expired():  # `close` goes on by itself
                raise RuntimeError(f"server {self._name}: it was closed before it was ready") from None
            self._begun()
            await self.close()
            raise
        finally:
            self._begun()
        _log.info("%s: ready at %s", self._name, self._address)

    async def run(self) -> None:
        """Serve until it is closed."""
        await self._closed.wait()

    async def leave(self, because: str = "") -> None:
        """Drain. Before clients could know of it, there is nobody to wait for."""
        if self._ready.drains(because):
            await self._ending.leave(self._server, self._gate, self.meter, self._health, self._registration)

    async def stop(self, grace: float | None) -> None:
        """Leave within ``grace`` seconds, or at once, and close. See ``grpc.aio.Server``."""
        if grace:
            self._ending.all_s = grace
            await self.leave()
        await self.close()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """See ``grpc.aio.Server``."""
        return await self._server.wait_for_termination(timeout)

    async def close(self) -> None:
        """End at once, and close all that was opened. It may be called again."""
        await self._end_start()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._strain.stop()
        self._gate.shut()
        if self._port and not self._started:
            self._started = True
            await self._server.start()  # grpcio closes the ports of no server that never started
        await self._server.stop(None)
        await self._ending.last(tasks, self._registration)
        self._ready.state = "ended"
        self._closed.set()

    async def _end_start(self) -> None:
        """End a `start` that another task is in, and wait until it has: what it opens later nobody would close."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.reschedule(0.0)
            self._start_over.clear()
        await self._start_over.wait()

    def _begun(self) -> None:
        """`start` is over, one way or the other."""
        self._starting = None
        self._start_over.set()

    async def _open(self) -> None:
        own = list(self._ready.services)
        if self._health is not None:
            self._health.add_to(self._server)
            own.append("grpc.health.v1.Health")
        if self._reflection:
            # Imported here: most processes that import lb.server have no reflection, and it needs protobuf.
            from lb.server.reflection import add_reflection

            add_reflection(self._server, own)
        if self._listen is not None:
            self._port = bind(self._server, self._listen, self._credentials)
            self._address = join_host_port(self._host, self._port)
        if self._registering is not None:
            self._address = await self._registering.address(self._address)
        self._started = True
        await self._server.start()
        self._strain.start()
        self._tasks.append(asyncio.create_task(self._ready.watch(), name=f"lb server {self._name} checks"))

    def __repr__(self) -> str:
        return f"<Server {self._name} at {self._address or 'no address yet'}, {self.state}, {self.meter!r}>"


def _in_a_loop() -> None:
    """Raises ``RuntimeError`` outside of a running loop: grpcio would take one in which nothing ever runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("a Server is made in a running event loop: in the coroutine that serves") from None
