"""The gateway's HTTP interface.

========  ==========================  ==============================================================
POST      ``/api/orders``             buy: 201 with ``order_id``, ``trace_id``, ``served_by``
GET       ``/api/orders``             the last 50 orders that this process was asked for, newest first
GET       ``/api/orders/{order_id}``  one order
GET       ``/api/products``           the assortment with prices and stock
GET       ``/api/mesh``               the instances, their health and how many calls each has served
GET       ``/api/traces/{trace_id}``  the spans of a trace, by start
POST      ``/v1/traces``              takes spans (OTLP/HTTP, protobuf)
GET       ``/healthz``                200 once every service was there, 503 before that and while leaving
GET       ``/``                       a page that shows all this
========  ==========================  ==============================================================

A request has 5 seconds, or fewer by the header ``Request-Timeout: SECONDS``. A client that hangs up
cancels what it asked for. What reaches the shop (an order, the assortment) is traced, and nothing
else: looking at the mesh leaves no trace. Errors are problem documents (``problems.py``), and who is
let in at all says ``limits.py``.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import math
import secrets
from collections import deque
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import lb
from services.gateway.backends import Backends
from services.gateway.bodies import parse_order, read_body, require_json
from services.gateway.problems import FieldError, Problem, retry_after
from services.gateway.topology import MAX_AGE_S, Topology
from services.gateway.traces import Traces, TraceStore, check_trace_id, receive_otlp, trace_json
from services.runtime.validation import LONGEST_ID

TIMEOUT_S = 5.0
LARGEST_ORDER = 64 << 10
BODY_TIMEOUT_S = 5.0
_GRACE_S = 0.5
_RECENT = 50
_TIMEOUT_HEADER = "Request-Timeout"
_NO_STORE = {"Cache-Control": "no-store"}

T = TypeVar("T")


class Gateway:
    """The handlers, and what they work with. ``asgi`` is the application."""

    def __init__(
        self,
        backends: Backends,
        topology: Topology,
        traces: Traces,
        store: TraceStore,
        *,
        provider: TracerProvider | None = None,
    ) -> None:
        self._backends = backends
        self._topology = topology
        self._traces = traces
        self._store = store
        self._ready = False
        self._recent: deque[dict[str, object]] = deque(maxlen=_RECENT)
        self._page = importlib.resources.files("services.gateway").joinpath("page.html").read_text("utf-8")
        self.leaving = False
        """Set before the port closes: ``/healthz`` says so to whoever sends traffic here."""
        app = Starlette(
            routes=[
                Route("/api/orders", self._place_order, methods=["POST"]),
                Route("/api/orders", self._last_orders, methods=["GET"]),
                Route("/api/orders/{order_id}", self._get_order, methods=["GET"]),
                Route("/api/products", self._products, methods=["GET"]),
                Route("/api/mesh", self._mesh, methods=["GET"]),
                Route("/api/traces/{trace_id}", self._trace, methods=["GET"]),
                Route("/v1/traces", self._receive, methods=["POST"]),
                Route("/healthz", self._health, methods=["GET"]),
                Route("/", self._show_page, methods=["GET"]),
            ],
            exception_handlers={
                Problem: _on_problem,
                HTTPException: _on_http,
                _ClientGone: _on_gone,
                Exception: _on_bug,
            },
        )
        app.router.redirect_slashes = False
        self.asgi: ASGIApp = _Traced(app, provider)

    async def _place_order(self, request: Request) -> Response:
        require_json(request)
        form = parse_order(await read_body(request, limit=LARGEST_ORDER, timeout_s=BODY_TIMEOUT_S))
        key = form.idempotency_key or secrets.token_hex(16)
        timeout_s = _timeout_s(request)
        loop = asyncio.get_running_loop()
        seen: dict[str, object] = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "trace_id": _trace_id()}
        started = loop.time()
        try:
            placed = await _while_connected(request, timeout_s, self._backends.place_order(form, key))
            seen.update(placed)
        except Problem as problem:
            seen["error"] = f"{problem.status} {problem.detail}"
            raise
        finally:
            seen["duration_ms"] = round((loop.time() - started) * 1000, 1)
            self._recent.appendleft(seen)
        answer = {"order_id": placed["order_id"], "trace_id": _trace_id(), **placed}
        return JSONResponse(answer, 201, headers={"Location": f"/api/orders/{placed['order_id']}"})

    async def _last_orders(self, request: Request) -> Response:
        return JSONResponse({"orders": list(self._recent)}, headers=_NO_STORE)

    async def _get_order(self, request: Request) -> Response:
        order_id = request.path_params["order_id"]
        if len(order_id) > LONGEST_ID or not order_id.isprintable():
            raise Problem(404, "no order has such an id", errors=[FieldError("order_id", "is not known")])
        order = await _while_connected(request, _timeout_s(request), self._backends.get_order(order_id))
        return JSONResponse(order, headers=_NO_STORE)

    async def _products(self, request: Request) -> Response:
        products = await _while_connected(request, _timeout_s(request), self._backends.products())
        return JSONResponse({"products": products}, headers=_NO_STORE)

    async def _mesh(self, request: Request) -> Response:
        return JSONResponse(await self._topology.get(), headers=_NO_STORE)

    async def _trace(self, request: Request) -> Response:
        trace_id = check_trace_id(request.path_params["trace_id"])
        spans = await _while_connected(request, _timeout_s(request), self._traces.get(trace_id))
        if not spans:
            raise Problem(404, f"no trace {trace_id} is known; spans arrive a moment after their call")
        return JSONResponse(trace_json(trace_id, spans), headers=_NO_STORE)

    async def _receive(self, request: Request) -> Response:
        return await receive_otlp(request, self._store)

    async def start(self) -> None:
        """Look for the services until each was there once: health must not depend on having been asked before."""
        while await self._missing():  # noqa: ASYNC110 - it is Consul that is asked
            await asyncio.sleep(MAX_AGE_S)

    async def _missing(self) -> list[str]:
        """The services that were never seen."""
        if self._ready:
            return []
        missing = await self._topology.missing()
        self._ready = not missing
        return missing

    async def _health(self, request: Request) -> Response:
        if self.leaving:
            raise Problem(503, "the gateway is shutting down")
        if missing := await self._missing():
            raise Problem(503, f"starting: no instance of {', '.join(missing)} yet", headers=retry_after())
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    async def _show_page(self, request: Request) -> Response:
        # The page has its script and style within, and loads nothing from anywhere.
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": f"{policy}; img-src data:", **_NO_STORE})


class _Traced:
    """A server span around what reaches the shop, named by its route."""

    def __init__(self, app: ASGIApp, provider: TracerProvider | None) -> None:
        self._app = app
        self._traced = OpenTelemetryMiddleware(
            app, default_span_details=_span_details, exclude_spans=["receive", "send"], tracer_provider=provider
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        traced = scope["type"] == "http" and _route(scope) is not None
        await (self._traced if traced else self._app)(scope, receive, send)


def _route(scope: Scope) -> str | None:
    """The route of a request that is traced, else None."""
    path: str = scope["path"]
    if path == "/api/products" or (path == "/api/orders" and scope["method"] == "POST"):
        return path
    return "/api/orders/{order_id}" if path.startswith("/api/orders/") else None


def _span_details(scope: Scope) -> tuple[str, dict[str, str]]:
    route = _route(scope) or ""
    return f"{scope['method']} {route}", {"http.route": route}


class _ClientGone(Exception):
    """The client hung up before the answer."""


async def _while_connected(request: Request, timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, cancelled when the client hangs up. The body must have been read before.

    Calls to services end by the deadline themselves; whatever does not is cancelled half a second later: 504.
    """
    with lb.deadline(timeout_s):
        task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s + _GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise _ClientGone
        raise Problem(504, "not done in time")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout_s(request: Request) -> float:
    text = request.headers.get(_TIMEOUT_HEADER)
    if text is None:
        return TIMEOUT_S
    try:
        wanted_s = float(text)
    except ValueError:
        wanted_s = math.nan
    if not 0 < wanted_s < math.inf:
        detail = f"is {text[:32]!r}; expected seconds, more than 0 (at most {TIMEOUT_S:g} are granted)"
        raise Problem(400, f"{_TIMEOUT_HEADER} {detail}", errors=[FieldError(_TIMEOUT_HEADER, detail)])
    return min(wanted_s, TIMEOUT_S)


def _trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(instance=request.url.path, trace_id=_trace_id())


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            detail = "no such page"
        case 405:
            detail = f"method {request.method} is not allowed; the header Allow has those that are"
        case _:
            detail = str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # starlette names the methods of the first route alone
        here = [route for route in request.app.routes if route.path_regex.match(request.url.path)]
        headers["Allow"] = ", ".join(sorted({method for route in here for method in route.methods}))
    problem = Problem(error.status_code, detail, headers=headers)
    return problem.response(instance=request.url.path, trace_id=_trace_id())


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it, but the span has it


async def _on_bug(request: Request, error: Exception) -> Response:
    # starlette raises the error again, and uvicorn logs it
    problem = Problem(500, "internal error; the gateway has logged it")
    return problem.response(instance=request.url.path, trace_id=_trace_id())
