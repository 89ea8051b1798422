"""Who is let in: by importance, by how much a client asks, and what those are told who are not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lb.server import Concurrency, Limits, Places, Priority, Rate
from lb.testing.clock import FakeClock
from services.gateway import limits
from services.gateway.limits import Bounds, client_of, kind_of
from tests.services.gateway.conftest import Bench, serve
from tests.support.wait import eventually

ORDER = {"items": [{"sku": "tea", "quantity": 1}]}


class Slow:
    """An application whose requests are held until they are released, each path for itself."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.release = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold, and answer."""
        self.held.append(f"{scope['method']} {scope['path']}")
        await self.release.wait()
        await PlainTextResponse("done")(scope, receive, send)


async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers."""
    await PlainTextResponse("done")(scope, receive, send)


@asynccontextmanager
async def gateway(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of such an application."""
    async with (
        serve(app) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("method", "path", "priority"),
    [
        ("POST", "/api/orders", Priority.CRITICAL),
        ("GET", "/api/products", Priority.DEFAULT),
        ("GET", "/api/orders", Priority.SHEDDABLE),
        ("GET", "/api/orders/o-1", Priority.SHEDDABLE),
        ("GET", "/api/mesh", Priority.SHEDDABLE),
        ("GET", "/api/traces/1", Priority.SHEDDABLE),
        ("POST", "/v1/traces", Priority.SHEDDABLE),
        ("POST", "/api/products", Priority.SHEDDABLE),
        ("GET", "/nothing", Priority.SHEDDABLE),
    ],
)
def test_buying_is_more_important_than_looking(method: str, path: str, priority: Priority) -> None:
    """Each request has its importance by what it asks for."""
    kind = kind_of(method, path)
    assert kind is not None
    assert kind.priority is priority


async def test_an_order_drives_out_who_only_looks() -> None:
    """Where one may run and one may wait, an order takes the room of a look at the mesh, and not the other way."""
    slow = Slow()
    places = Places(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=1, queue_s=60.0)))
    async with gateway(Bounds(slow, places)) as client:
        first = asyncio.create_task(client.get("/api/products"))
        await eventually(lambda: places.load == 1.0)
        look = asyncio.create_task(client.get("/api/mesh"))
        await eventually(lambda: places.load == 2.0)
        order = asyncio.create_task(client.post("/api/orders", json=ORDER))
        answer = await look
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["instance"] == "/api/mesh"
        assert (await client.get("/api/mesh")).status_code == 503
        slow.release.set()
        assert [(await task).status_code for task in (first, order)] == [200, 200]
    assert slow.held == ["GET /api/products", "POST /api/orders"]
    assert places.load == 0.0


async def test_health_and_the_page_are_never_refused() -> None:
    """Neither for too many at once nor for too many a second."""
    slow = Slow()
    one = Concurrency(limit=1, adaptive=False, queue=0)
    places = Places(Limits(concurrency=one, rate=Rate(0.001, 1)))
    async with gateway(Bounds(slow, places)) as client:
        held = asyncio.create_task(client.get("/api/mesh"))
        await eventually(lambda: places.load == 1.0)
        assert (await client.get("/api/mesh")).status_code == 429
        slow.release.set()
        for path in ("/", "/healthz"):
            assert (await client.get(path)).status_code == 200
        await held


async def test_a_client_that_asks_too_often_is_told_so() -> None:
    """429 and when to come back; each answer says what is left, as the RateLimit fields have it."""
    clock, rate = FakeClock(), Rate(2.0, 3.0)
    places = Places(Limits(client_rate=rate), clock=clock)
    async with gateway(Bounds(at_once, places, client_rate=rate)) as client:
        for left in (2, 1, 0):
            answer = await client.get("/api/mesh")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"client";q=3;w=2'
            assert answer.headers["ratelimit"] == f'"client";r={left};t=1'
        answer = await client.post("/api/orders", json=ORDER)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["ratelimit"] == '"client";r=0;t=1'
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"] == "Too Many Requests"
        # spans come from the mesh's own processes
        assert (await client.post("/v1/traces", content=b"x")).status_code == 200
        clock.advance(0.5)
        assert (await client.post("/api/orders", json=ORDER)).status_code == 200


async def test_all_together_have_a_rate_that_nobody_is_told() -> None:
    """429 with Retry-After, and no RateLimit fields: it is no client's own."""
    places = Places(Limits(rate=Rate(0.25, 1)), clock=FakeClock())
    async with gateway(Bounds(at_once, places)) as client:
        assert (await client.get("/api/mesh")).status_code == 200
        answer = await client.get("/api/mesh")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "4")
        assert not [name for name in answer.headers if name.startswith("ratelimit")]


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("::ffff:10.0.0.1", None, "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        # what the client wrote itself stands before what the edge has added
        ("10.0.0.1", "1.1.1.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::/64"),
        ("10.0.0.1", "not: an address", "not: an address"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "x" * 1000, "x" * 64),
    ],
)
def test_who_a_client_is(peer: str, header: str | None, client: str) -> None:
    """Its address, its network with IPv6, or what the trusted edge says; a long name takes no more room than others."""
    headers = [] if header is None else [(b"x-forwarded-for", b"9.9.9.9"), (b"x-forwarded-for", header.encode())]
    if header == "":
        headers = headers[1:]
    scope: Scope = {"client": (peer, 1234), "headers": headers}
    assert client_of(scope, b"x-forwarded-for") == client
    assert client_of({**scope, "client": None}, None) == "unknown"


async def test_clients_cannot_say_how_important_they_are(bench: Bench) -> None:
    """The gateway says it to the services, by what is asked for; a client's own word goes no further."""
    own = {"lb-priority": "critical"}
    assert (await bench.client.post("/api/orders", json=ORDER, headers={"lb-priority": "sheddable"})).status_code == 201
    await bench.client.get("/api/orders/o-1", headers=own)
    await bench.client.get("/api/products", headers=own)
    assert bench.shop.priorities[:2] == ["critical", "sheddable"]
    assert set(bench.shop.priorities[2:]) <= {None, "default"}


async def test_a_slow_body_keeps_no_place(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place goes to others while it comes; once it is there, the request takes one again, or is refused."""
    monkeypatch.setattr(limits, "SOON_S", 0.01)
    places = Places(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0)))
    intake = places.rules.intake
    assert intake is not None
    body = json.dumps(ORDER).encode()
    head = b"POST /api/orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    async with serve(Bounds(bench.gateway.asgi, places)) as port:
        for turn, (full, status) in enumerate(((False, b"201"), (True, b"503"))):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + body[:-1])
            await eventually(lambda least=2 * turn: intake.admitted > least and not intake.in_flight)  # type: ignore[misc]
            async with places.take("other") if full else nullcontext():
                writer.write(body[-1:])
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            assert (b"retry-after: 1\r\n" in answer.lower()) == full
            writer.close()


async def test_only_what_went_well_says_how_long_it_takes() -> None:
    """An error at once, and a body that comes slowly, leave the limit as it is."""
    clock = FakeClock()
    places = Places(Limits(concurrency=Concurrency(limit=1, max_limit=1)), clock=clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(5.0)  # the client's body
        await receive()
        if scope["path"] == "/error":
            await PlainTextResponse("no", 409)(scope, receive, send)
            return
        clock.advance(0.1)
        await PlainTextResponse("done")(scope, receive, send)

    async with gateway(Bounds(app, places)) as client:
        for path in ("/error", "/other") * 20:
            await client.get(path)
    assert places.rules.times("other").baseline.usual_s == pytest.approx(0.1)
