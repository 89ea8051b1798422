"""A whole server, after pip install '.[server]'. Ctrl-C ends it. With CONSUL_HTTP_ADDR it is registered in Consul."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

import lb.server


async def hello(request: bytes, context: Any) -> bytes:
    """An answer."""
    return b"hello, " + request


async def ticks(request: bytes, context: Any) -> AsyncIterator[bytes]:
    """A stream that would never end by itself. When the server drains, clients open another one elsewhere."""
    draining = asyncio.ensure_future(lb.server.draining())
    while not draining.done():
        yield b"tick"
        await asyncio.wait([draining], timeout=1)


async def main() -> None:
    """Serve. With stubs, a line such as `add_GreeterServicer_to_server(Greeter(), server)` adds the handlers."""
    unary: Any = grpc.unary_unary_rpc_method_handler(hello)
    stream: Any = grpc.unary_stream_rpc_method_handler(ticks)
    handlers = grpc.method_handlers_generic_handler("Greeter", {"Hello": unary, "Ticks": stream})
    limits = lb.server.Limits(rate=lb.server.Rate(1000))  # a second; and as many at once as it can
    async with lb.server.Server("greeter", limits=limits, register="CONSUL_HTTP_ADDR" in os.environ) as server:
        server.add_generic_rpc_handlers([handlers])
        await server.serve()


logging.basicConfig(level=logging.INFO)
asyncio.run(main())
