"""A FastAPI application that calls a gRPC service: one channel for its whole life, and the request's deadline.

::

    pip install fastapi uvicorn
    python examples/servers.py              # in another terminal
    OPERATORS_TOKEN=secret uvicorn examples.fastapi_app:app
    curl -H 'x-timeout-ms: 500' 127.0.0.1:8000/products/espresso
    curl -H 'authorization: Bearer secret' 127.0.0.1:8000/endpoints
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import grpc
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

import lb
from mesh.catalog.v1 import CatalogStub, GetProductRequest

log = logging.getLogger("shop")

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The channel lives as long as the application: made in its event loop, closed when that ends.

    A channel for each request would have to find, connect and measure everything each time.
    """
    async with lb.aio.channel("consul:///catalog", policy="p2c", hedging=lb.Hedging()) as channel:
        channel.get_state(try_to_connect=True)  # so the first request need not wait for connections
        app.state.channel = channel
        app.state.catalog = CatalogStub(channel)
        yield


app = FastAPI(lifespan=lifespan)


class Deadline:
    """The moment at which the caller stops waiting. All calls of one request share it, including retries."""

    def __init__(self, x_timeout_ms: Annotated[int, Header(ge=1, le=60_000)] = 5_000) -> None:
        self._at = time.monotonic() + x_timeout_ms / 1000

    def left_s(self) -> float:
        """The time that is left for the next call, in seconds."""
        return max(0.0, self._at - time.monotonic())


@app.get("/products/{sku}")
async def product(sku: str, request: Request, deadline: Annotated[Deadline, Depends()]) -> dict[str, Any]:
    """A product of the catalog."""
    call = request.app.state.catalog.GetProduct(GetProductRequest(sku=sku), timeout=deadline.left_s())
    found = (await call).product
    return {"sku": found.sku, "name": found.name, "attempts": [a.endpoint_id for a in lb.attempts(call)]}


def operator(given: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> None:
    """Let those in who have the token, and nobody while none is set."""
    wanted = os.environ.get("OPERATORS_TOKEN", "")
    if not wanted or not secrets.compare_digest(given.credentials.encode(), wanted.encode()):
        raise HTTPException(403)


@app.get("/endpoints", dependencies=[Depends(operator)])
async def endpoints(request: Request) -> dict[str, Any]:
    """What the channel knows, for operators: addresses and errors of the servers behind it."""
    snapshot: dict[str, Any] = request.app.state.channel.snapshot().as_dict()
    return snapshot


@app.exception_handler(grpc.aio.AioRpcError)
async def failed(request: Request, error: grpc.aio.AioRpcError) -> JSONResponse:
    """A call's status as an HTTP status. By now the channel has tried every retry that is allowed.

    The details are for the log: they may name addresses of servers, and what these said.
    """
    log.warning("%r: %s: %r", request.url.path, error.code().name, error.details())
    return JSONResponse({"error": error.code().name}, HTTP_STATUS.get(error.code(), 502))
