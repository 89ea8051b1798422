"""All addresses behind a name, looked up again and again.

The system's resolver (``getaddrinfo``) is asked in a thread of the loop's executor. It tells no
time to live, so the name is looked up every ``refresh_s``; after a failure sooner, backing off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable

from lb.core.endpoint import Endpoint, Listener, Resolution
from lb.core.target import join_host_port

_log = logging.getLogger("lb.dns")

REFRESH_S = 30.0
_RETRY_FIRST_S = 1.0
# What says "there is no such name", and not "the name server could not be asked".
_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)

Lookup = Callable[[str, int], Awaitable[list[str]]]


async def lookup(host: str, port: int) -> list[str]:
    """The addresses of ``host`` as ``ip:port``, sorted, each once. Raises ``OSError``."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({join_host_port(str(address[0]), port) for *_, address in found})


class DnsResolver:
    """Every A and AAAA record of ``host``, each an endpoint with the weight 1.

    The last good set outlives a failing name server. A name that does not exist is an empty
    set at first, so that a misspelt target fails at once; later it is an error like others.
    ``lookup`` is for tests: ``(host, port)`` to a list of ``ip:port``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        refresh_s: float = REFRESH_S,
        lookup: Lookup = lookup,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._refresh_s = refresh_s
        self._lookup = lookup
        self._rng = rng or random.Random()
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: Listener) -> None:
        """Begins to look up, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(listener), name=f"lb dns {self._host}")

    async def close(self) -> None:
        """Stops. A lookup under way ends in its thread, unheard."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, listener: Listener) -> None:
        known: list[str] | None = None
        failures, last_error = 0, ""
        while True:
            try:
                addresses = await self._lookup(self._host, self._port)
            except (OSError, ValueError) as error:  # ValueError: what is no name at all (an empty or too long label)
                failures += 1
                message = f"dns {self._host}: {getattr(error, 'strerror', None) or error}"
                nowhere = isinstance(error, ValueError) or (
                    isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME
                )
                if known is None and nowhere:
                    known = []
                    listener.update(Resolution((), message))
                else:
                    listener.error(message)
                if message != last_error:
                    _log.warning("%s", message)
                last_error = message
                longest = min(self._refresh_s, _RETRY_FIRST_S * 2.0 ** min(failures - 1, 10))
                await asyncio.sleep(longest * self._rng.uniform(0.5, 1.0))
                continue
            if addresses != known or failures:
                _log.info("dns %s: %s", self._host, ", ".join(addresses))
                listener.update(Resolution(tuple(Endpoint(a) for a in addresses), f"dns {self._host}"))
            known, failures, last_error = addresses, 0, ""
            await asyncio.sleep(self._refresh_s)

    def __repr__(self) -> str:
        return f"DnsResolver({join_host_port(self._host, self._port)})"
