"""All addresses behind a name, looked up again and again.

The system's resolver (``getaddrinfo``) does not tell the time to live. So the name is looked up every ``refresh_s``
seconds, at once when a connection was lost (`DnsResolver.resolve_now`), and sooner after a failure, with growing
pauses.

A lookup blocks, and nothing can cancel it. So each one has a thread of its own. A busy executor of the loop then
delays no lookup, and a name server that hangs blocks no other work in that executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import threading
from collections.abc import Awaitable, Callable

from lb.core.endpoint import Endpoint, Listener, Resolution
from lb.core.peers import one_line
from lb.core.target import REFRESH_S, join_host_port

_log = logging.getLogger("lb.dns")

FLOOR_S = 1.0
"""The least time between two lookups of a name, however often one is asked for."""
SLOW_S = 5.0
"""After this time without an answer the log says so. The answer still counts when it comes."""
GIVE_UP_S = 60.0
"""After this time another lookup begins. (glibc's own limit is 5 s x 2 attempts x 3 name servers.)"""
_RETRY_FIRST_S = 1.0
_MOST_HANGING = 4
# Errors that mean "there is no such name", and not "the name server could not be asked".
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)

Lookup = Callable[[str, int], Awaitable[list[str]]]


class SystemLookup:
    """A lookup by the system's resolver, each in a daemon thread."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of ``host`` as ``ip:port``, sorted, each once. Raises what ``getaddrinfo`` raises.

        When cancelled, the thread runs on until the system answers, and its answer is dropped. Raises
        ``TimeoutError`` while too many lookups hang already.
        """
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= _MOST_HANGING:
            raise TimeoutError(f"{len(self._threads)} lookups hang in the system's resolver")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def settle(found: list[str] | Exception) -> None:
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found: list[str] | Exception
            try:
                records = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = sorted({join_host_port(str(address[0]), port) for *_, address in records})
            except (OSError, ValueError) as error:
                found = error
            except BaseException as error:  # noqa: BLE001  # whatever it is, the loop must hear of it
                found = RuntimeError(f"the system's resolver raised {error!r}")
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, found)

        thread = threading.Thread(target=look_up, name=f"lb dns {host}", daemon=True)
        thread.start()
        self._threads.append(thread)
        return await answer


class DnsResolver:
    """Every A and AAAA record of ``host``, each an endpoint with the weight 1.

    The last good set outlives a failing name server. A name that does not exist is an empty
    set at first, so that a misspelt target fails at once; later it is an error like others.
    ``lookup`` is for tests: ``(host, port)`` to a list of ``ip:port``. So are the times.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        refresh_s: float = REFRESH_S,
        floor_s: float = FLOOR_S,
        slow_s: float = SLOW_S,
        give_up_s: float = GIVE_UP_S,
        lookup: Lookup | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._refresh_s = refresh_s
        self._floor_s = min(floor_s, refresh_s)
        self._slow_s = slow_s
        self._give_up_s = give_up_s
        self._lookup = lookup or SystemLookup()
        self._rng = rng or random.Random()
        self._wanted = asyncio.Event()
        self._known: list[str] | None = None
        self._failures = 0
        self._said = ""
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: Listener) -> None:
        """Begin to look up, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(listener), name=f"lb dns {self._host}")

    def resolve_now(self) -> None:
        """Look up at once, or as soon as the last lookup is ``floor_s`` old."""
        self._wanted.set()

    async def close(self) -> None:
        """Stop. A lookup that is under way ends in its thread, and its answer is dropped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, listener: Listener) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            self._wanted.clear()
            try:
                delay = await self._look_up(listener)
            except Exception:  # noqa: BLE001  # a bug: without lookups the set would never change again
                _log.exception("dns %s: an answer could not be used", self._host)
                delay = self._refresh_s
            try:
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(max(0.0, began + self._floor_s - clock()))

    async def _look_up(self, listener: Listener) -> float:
        """Look up once and tell the listener. Returns the seconds until the next lookup."""
        lookup = asyncio.ensure_future(self._lookup(self._host, self._port))
        try:
            done, _ = await asyncio.wait([lookup], timeout=self._slow_s)
            if not done:
                self._failed(listener, f"no answer in {self._slow_s:g} s")
                done, _ = await asyncio.wait([lookup], timeout=self._give_up_s - self._slow_s)
            addresses = lookup.result() if done else None
        except Exception as error:  # noqa: BLE001  # a system's resolver, or its encoding of a name, may raise anything
            nowhere = isinstance(error, ValueError) or (  # ValueError: no name at all (an empty or too long label)
                isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME
            )
            self._failed(
                listener, one_line(getattr(error, "strerror", None) or str(error) or repr(error)), nowhere=nowhere
            )
            addresses = None
        finally:
            if lookup.cancel():
                await asyncio.wait([lookup])
        if addresses is None:
            self._failures += 1
            longest = min(self._refresh_s, _RETRY_FIRST_S * 2.0 ** min(self._failures - 1, 10))
            return longest * self._rng.uniform(0.5, 1.0)
        if addresses != self._known or self._said:
            _log.info("dns %s: %s", self._host, ", ".join(addresses))
            listener.update(Resolution(tuple(Endpoint(a) for a in addresses), f"dns {self._host}"))
        else:
            listener.confirm()
        self._known, self._failures, self._said = addresses, 0, ""
        return self._refresh_s

    def _failed(self, listener: Listener, reason: str, *, nowhere: bool = False) -> None:
        message = f"dns {self._host}: {reason}"
        if self._known is None and nowhere:
            self._known = []
            listener.update(Resolution((), message))
        else:
            listener.error(message)
        if message != self._said:
            _log.warning("%s", message)
        self._said = message

    def __repr__(self) -> str:
        return f"DnsResolver({join_host_port(self._host, self._port)})"
