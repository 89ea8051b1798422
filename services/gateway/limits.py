"""What bounds a request from outside: how many at once, how many a second, and how long one may take in all.

uvicorn bounds none of it; ``read_body`` bounds the body, and `services.gateway.connection` the connection around it.
Whether a request is admitted is decided by its head alone, before its body is read, and by the rules that the services
have as well (`lb.server.Places`): what is refused costs next to nothing.

============================  ============  =====================================================================
request                       priority      why
============================  ============  =====================================================================
``POST /api/orders``          critical      what the shop is for
``GET /api/products``         default       without it nobody buys, but it may be tried again a moment later
an order, the last orders,    sheddable     somebody looks at what is there: it is still there when the shop has
the mesh, traces, all else                  time. Exporters send spans again, or lose them
``/healthz``, ``/``           never         whoever sends traffic here asks for health, and would send none if a
                              refused       full gateway looked like a broken one; the page is a constant
============================  ============  =====================================================================

A client is its address (of IPv6 the network, ``/64``, since one client has all of that), or what a trusted edge before
the gateway writes into a header.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import grpc
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import lb
from lb.server import Concurrency, Place, Places, Priority, Rate, RefusedError
from services.gateway.problems import Problem, retry_after

LONGEST_S = 30.0
PLACES = Concurrency(limit=16, min_limit=4, max_limit=256, queue_s=0.5)
"""A person waits for half a second rather than to be sent away, and has 5 seconds in all."""

SOON_S = 0.25
"""A body that takes longer is a slow one."""

_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that are alike: those of one take about as long each time."""

    name: str
    priority: Priority
    metered: bool = True
    """Whether one counts for the rate of its client."""


_ORDER = Kind("/api/orders/{order_id}", Priority.SHEDDABLE)
_TRACE = Kind("/api/traces/{trace_id}", Priority.SHEDDABLE)
_OTHER = Kind("other", Priority.SHEDDABLE)
_KINDS: Mapping[tuple[str, str], Kind] = {
    ("POST", "/api/orders"): Kind("POST /api/orders", Priority.CRITICAL),
    ("GET", "/api/products"): Kind("/api/products", Priority.DEFAULT),
    ("GET", "/api/orders"): Kind("GET /api/orders", Priority.SHEDDABLE),
    ("GET", "/api/mesh"): Kind("/api/mesh", Priority.SHEDDABLE),
    # From the mesh's own processes, which in the demo have the same address as its clients.
    ("POST", "/v1/traces"): Kind("/v1/traces", Priority.SHEDDABLE, metered=False),
}
_NEVER_REFUSED = frozenset({"/", "/healthz"})


def kind_of(method: str, path: str) -> Kind | None:
    """What a request asks for; None if it is never refused. Nothing in its headers changes it."""
    if path in _NEVER_REFUSED:
        return None
    if path.startswith("/api/orders/"):
        return _ORDER
    if path.startswith("/api/traces/"):
        return _TRACE
    return _KINDS.get((method, path), _OTHER)


class Bounds:
    """Admits requests to an application, each for ``longest_s`` seconds at most.

    ``client_rate`` is what ``places`` grant to a client: it is told with each answer. ``client_header`` names the
    header with the client, if a trusted edge sets it.
    """

    def __init__(
        self,
        app: ASGIApp,
        places: Places,
        *,
        client_rate: Rate | None = None,
        client_header: str | None = None,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._app = app
        self._places = places
        self._rate = client_rate
        self._header = client_header.lower().encode() if client_header else None
        self._longest_s = longest_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application within the bounds."""
        kind = kind_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if kind is None:
            await self._run(scope, receive, send)
            return
        client = client_of(scope, self._header) if kind.metered else ""
        try:
            async with AsyncExitStack() as places:

                async def take(client: str = "") -> Place:
                    return await places.enter_async_context(
                        self._places.take(kind.name, priority=kind.priority, client=client)
                    )

                place = await take(client)
                # What a client says of its importance stays here, as all of its headers do.
                with lb.priority(kind.priority), _Answer(place, take, receive, send, self._told(client)) as answer:
                    await self._run(scope, answer.receive, answer.send)
                    answer.over()
        except RefusedError as error:
            response = _problem(error, dict(self._told(client))).response(instance=scope["path"])
            await response(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._longest_s):
                await self._app(scope, receive, send)
        except TimeoutError:
            # The handlers have deadlines of their own: whoever is still here does not read its answer.
            # Returning without having ended it makes uvicorn close the connection.
            return

    def _told(self, client: str) -> tuple[tuple[str, str], ...]:
        """What a client is told of its rate: the fields of the IETF's draft "RateLimit header fields for HTTP".

        The rate of all clients together is nobody's to keep, and tells how to fill the gateway: it is not told.
        """
        rate = self._rate
        left = self._places.left(client) if rate is not None and client else None
        if rate is None or left is None:
            return ()
        whole = max(0, math.floor(left))
        wait_s = math.ceil((whole + 1 - left) / rate.per_s) if whole < rate.burst else 0
        return (
            ("RateLimit-Policy", f'"client";q={math.floor(rate.burst)};w={math.ceil(rate.burst / rate.per_s)}'),
            ("RateLimit", f'"client";r={whole};t={wait_s}'),
        )


class _Answer:
    """One admitted request: when it began, and how it is answered.

    The place is taken before the body is read, and given back if the body does not come at once: a few clients with
    slow bodies would have all places. Who has sent it all in the end takes another one.
    """

    __slots__ = ("_begun", "_headers", "_place", "_receive", "_send", "_status", "_take", "_timer")

    def __init__(
        self,
        place: Place,
        take: Callable[[], Awaitable[Place]],
        receive: Receive,
        send: Send,
        told: tuple[tuple[str, str], ...],
    ) -> None:
        self._place = place
        self._take = take
        self._receive = receive
        self._send = send
        self._headers = [(name.lower().encode(), value.encode()) for name, value in told]
        self._begun = False
        self._status = 0
        self._timer = asyncio.get_running_loop().call_later(SOON_S, place.over)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def receive(self) -> Message:
        """A piece of the request. How long a client takes for its body says nothing about the shop."""
        message = await self._receive()
        if not self._begun and not message.get("more_body", False):
            self._begun = True
            self._timer.cancel()
            if self._place.held:
                self._place.begun()
            else:
                try:
                    self._place = await self._take()
                except RefusedError as error:
                    raise _problem(error, {}) from None
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)

    def over(self) -> None:
        """The application is done. An error may come much sooner than an answer: only these are compared."""
        if 200 <= self._status < 400:
            self._place.answered()


def client_of(scope: Scope, header: bytes | None) -> str:
    """Who asks. In a list (``X-Forwarded-For``) the last one counts: that is what the trusted edge has added."""
    if header is not None:
        for name, value in reversed(scope["headers"]):
            if name == header:
                client: str = value.decode("latin-1").rpartition(",")[2].strip()[-_LONGEST_NAME:]
                if client:
                    return _network(client)
    peer = scope.get("client")
    return _network(peer[0]) if peer else "unknown"


def _network(address: str) -> str:
    """The address; of IPv6 the network of 64 bits."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))


def _problem(error: RefusedError, told: dict[str, str]) -> Problem:
    headers = {**told, **retry_after(error.retry_s)}
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Problem(429, str(error), headers=headers)
    return Problem(503, "too many requests at once; nothing was done", headers=headers)
