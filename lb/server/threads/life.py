"""The life of a server with threads: an event loop for what waits, and daemonic threads for what blocks."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from lb.server.address import join_host_port
from lb.server.dependencies import Check
from lb.server.ending import Ending
from lb.server.life import Life
from lb.server.listening import bind, checked, told
from lb.server.optional import wanted
from lb.server.readiness import Readiness
from lb.server.registering import Registering, enter, registering
from lb.server.threads.admission import Admission
from lb.server.threads.leaving import Gate

if TYPE_CHECKING:
    from lb.aio import Registration

_log = logging.getLogger("lb.server")

T = TypeVar("T")

ASYNC_CHECK = "the check is `async def`; with threads it is a plain function"


class ServerLife(Life):
    """The life of one server, in one event loop. It also gives `Ending` what asyncio has a server and a meter for."""

    def __init__(
        self,
        name: str,
        server: grpc.Server,
        admission: Admission,
        gate: Gate,
        ending: Ending,
        *,
        checks: Mapping[str, Callable[[], object]],
        counts: Callable[[str], bool],
        health: bool | None,
        reflection: bool | None,
    ) -> None:
        self.address = ""
        self.port = 0
        self.when_ready: Callable[[], object] | None = None
        self._name, self._server, self._admission, self._gate, self._ending = name, server, admission, gate, ending
        self._listen: str | None = None
        self._credentials: grpc.ServerCredentials | None = None
        self._reflection = wanted("reflection", "grpc_reflection", reflection)
        self._health: Any = None
        if wanted("health", "grpc_health", health):
            # Imported here: most processes that import lb.server have no health service, and it needs protobuf.
            from lb.server.threads.health import Health

            self._health = Health()
        asked = {name: _beside(name, check) for name, check in checks.items()}
        self.ready = Readiness(name, asked, counts, self._health)
        self._registering: Registering | None = None
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._enough = asyncio.Event()
        self._at_once = False
        self._started = False

    def listens(self, listen: str | None, credentials: grpc.ServerCredentials | None) -> None:
        """Where; None: only on the ports that are `opened`."""
        self._listen, self._credentials = listen, credentials

    def registers(self, register: bool | Mapping[str, Any]) -> None:
        """Whether, and as what."""
        tls = self._credentials is not None
        self._registering = registering(register, health=self._health is not None, tls=tls)

    def opened(self, address: str, port: int) -> int:
        """A port was added. The first one is the one that is told, if it listens on no other."""
        if self._listen is None and not self.port:
            self.port, self.address = port, told(address, port)
        return port

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call it in a thread at the end."""
        self._ending.callbacks.append(lambda: _in_thread(callback, "lb-server-on-close"))

    def end(self, grace: float | None) -> None:
        """Leave; from any thread, also after its end."""
        self._at_once = not grace
        if grace:
            self._ending.all_s = grace
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._enough.set)

    async def start(self) -> None:
        """See `Life`."""
        await self.ready.open()
        self._loop = asyncio.get_running_loop()
        self._serves_beside()
        if self._listen is not None:
            server: Any = self._server
            self.port = bind(server, self._listen, self._credentials)
            self.address = join_host_port(checked(self._listen)[0], self.port)
        if self._registering is not None:
            self.address = await self._registering.address(self.address)
        self._started = True
        self._server.start()
        self._tasks.append(asyncio.create_task(self.ready.watch()))
        await _either(self.ready.healthy, self._enough)
        if not self.ready.healthy.is_set():
            return
        if self._registering is not None:
            self._registration = self._registering.entry(self._name, self.address)
            await enter(self._registration, self._tasks)
        _log.info("%s: ready at %s", self._name, self.address)
        if self.when_ready is not None:
            self.when_ready()

    def _serves_beside(self) -> None:
        own = list(self.ready.services)
        if self._health is not None:
            self._health.add_to(self._server)
            own.append("grpc.health.v1.Health")
        if self._reflection:
            # Imported here: most processes that import lb.server have no reflection, and it needs protobuf.
            from lb.server.reflection import add_reflection

            add_reflection(self._server, own, threads=True)

    async def run(self) -> None:
        """See `Life`."""
        await self._enough.wait()

    async def leave(self, because: str) -> None:
        """See `Life`."""
        if self._at_once or not self.ready.drains(because):
            return
        parts: Any = self
        await self._ending.leave(parts, parts._gate, parts, self._health, self._registration)

    async def close(self) -> None:
        """See `Life`."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._gate.shut()
        if self.port and not self._started:
            self._server.start()  # grpcio closes the ports of no server that never started
        await self.stop(None)
        await self._ending.last(tasks, self._registration)
        self._admission.pool.shutdown(wait=False)
        self.ready.state = "ended"

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

    def __repr__(self) -> str:
        return f"{self._name} at {self.address or 'no address yet'}, {self.ready.state}"


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
