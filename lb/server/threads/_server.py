"""A whole ``grpc.server`` with threads: the life of `lb.server.Server`, around handlers that are plain functions.

::

    the caller's thread      an event loop: signals, checks, registration, the order of leaving
    grpcio's thread          interceptors: the gate, the user's, admission, reports of load, the inner ones, incoming
    the pool's threads       handlers

The rules of its life are those of asyncio's server, in the same modules. What blocks there has a daemonic thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from signal import Signals
from types import TracebackType
from typing import Any, Literal, Self

import grpc

from lb.core.checks import segment as named
from lb.core.serving.settings import Limits
from lb.server import arguments
from lb.server.ending import Ending
from lb.server.gate import not_grpcs_own
from lb.server.life import live
from lb.server.listening import apart, checked, with_default
from lb.server.orca import LoadReporter
from lb.server.readiness import State
from lb.server.reasons import SIGNALS
from lb.server.threads.admission import Admission
from lb.server.threads.leaving import Gate
from lb.server.threads.life import ServerLife
from lb.server.threads.orca import LoadTrailers
from lb.sync import incoming


class Server(grpc.Server):
    """A ``grpc.Server`` with a life: health, admission, reports of its load, registration and drain.

    ::

        with lb.server.threads.Server("catalog", listen="0.0.0.0:50051", register=True) as server:
            add_CatalogServicer_to_server(Catalog(), server)
            server.serve()  # healthy, registered; SIGTERM drains, 30 s at most

    Arguments that it shares with `lb.server.Server` mean the same.

    Args:
        name: the name of the service, as clients write it (``consul:///NAME``).
        listen: where it listens, ``host:port``; port 0 takes a free one. None: only on the ports that you add.
        threads: how many handlers run at once at most, those of open streams included.
        limits: what it takes on at once. False: anything, in as many threads. Default: ``Limits()``.
        register: whether it is registered in Consul once it is healthy; or arguments of `lb.aio.registration`.
        checks: what it depends on: functions by name. While one raises, or takes longer than two seconds, health says
            NOT_SERVING.
        credentials: for TLS.
        options: channel arguments of grpcio. Two servers never share a port unless ``grpc.so_reuseport`` is set.
        compression: of its answers.
        interceptors: those of your own. They stand around admission, and run in grpcio's one thread.
        inner: those that stand right around the handlers. They run there as well, also for what admission refuses; what
            they put around a handler runs only for what it admits.
        load: what reports its load. By default the places in use are the application's utilization.
        counts: which methods (``/package.Service/Method``) are the service's own work: only those are limited, refused
            while it drains, reported, and known to health. By default all but gRPC's own.
        trailers: trailing metadata of what it refuses, such as its id.
        health: whether it serves ``grpc.health.v1.Health``. Default: if that is installed.
        reflection: whether it serves reflection. Default: if that is installed.
        drain_s: how long leaving takes at most, in seconds, all in all.
        drain_wait_s: for how long it is still open after it has said that it leaves, in seconds; below ``drain_s``, or
            0.
        flush_s: how much of ``drain_s`` is kept for what was given to `on_close`, in seconds.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has a wrong type.
        ImportError: something that is asked for is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        listen: str | None = "127.0.0.1:0",
        threads: int = 32,
        limits: Limits | Literal[False] | None = None,
        register: bool | Mapping[str, Any] = False,
        checks: Mapping[str, Callable[[], object]] | None = None,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
        compression: grpc.Compression | None = None,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
        inner: Sequence[grpc.ServerInterceptor] = (),
        load: LoadReporter | None = None,
        counts: Callable[[str], bool] | None = None,
        trailers: Sequence[tuple[str, str | bytes]] = (),
        health: bool | None = None,
        reflection: bool | None = None,
        drain_s: float = 30.0,
        drain_wait_s: float = 1.0,
        flush_s: float = 2.0,
    ) -> None:
        named("name", name)
        arguments.server(
            grpc.ServerInterceptor,
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
            checked(listen)
            apart(listen, options)
        ending = Ending(name, drain_s, drain_wait_s, flush_s)
        if limits is False:
            limits = Limits(concurrency=None, hopeless=False)
        counts = counts or not_grpcs_own
        self.admission = Admission(limits, threads=threads, counts=counts, trailers=trailers)
        """What limits it."""
        gate = Gate(self.admission.pool, trailers, counts)
        reports = LoadTrailers(load or LoadReporter(application=self.admission.used), counts=counts)
        self._server = grpc.server(
            self.admission.pool,
            interceptors=[gate, *interceptors, self.admission, reports, *inner, incoming()],
            options=with_default(options),
            compression=compression,
        )
        self._life = ServerLife(
            name,
            self._server,
            self.admission,
            gate,
            ending,
            checks=checks or {},
            counts=counts,
            health=health,
            reflection=reflection,
        )
        self._life.listens(listen, credentials)
        self._life.registers(register)
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; 0 before `start`."""
        return self._life.port

    @property
    def address(self) -> str:
        """``host:port``: what is registered, or else where it listens; empty before `start`."""
        return self._life.address

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._life.ready.state

    @property
    def unhealthy(self) -> Mapping[str, str]:
        """Each of its ``checks`` by name, and why it fails; empty if it passes."""
        return dict(self._life.ready.dependencies.unhealthy)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call this, in a thread, once no call runs any more, within the time for leaving: to send the last spans, for
        example.

        A second signal skips it. What must be closed in any case belongs into a ``with`` around the server.

        Raises:
            TypeError: it is not a function.
        """
        arguments.callback(callback)
        self._life.on_close(callback)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See ``grpc.Server``."""
        handlers = tuple(generic_rpc_handlers)
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._life.ready.know(handler.service_name())
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """See ``grpc.Server``."""
        self._life.ready.know(service_name)
        self._server.add_registered_method_handlers(service_name, dict(method_handlers))

    def add_insecure_port(self, address: str) -> int:
        """One more port. See ``grpc.Server``."""
        return self._life.opened(address, self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """One more port. See ``grpc.Server``."""
        return self._life.opened(address, self._server.add_secure_port(address, server_credentials))

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
        self._life.ready.begins()
        asyncio.run(live(self._life, parent_fd=parent_fd, signals=signals, leave_s=None))

    def start(self) -> None:
        """Listen, and return when it is ready. Its life goes on in a thread until `close`, without signals.

        Raises:
            StartError: it cannot listen there, or has no address to register.
            RuntimeError: it was started before.
        """
        self._life.ready.begins()
        begun = threading.Event()
        errors: list[Exception] = []

        def lives() -> None:
            try:
                asyncio.run(live(self._life, signals=(), leave_s=None))
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
