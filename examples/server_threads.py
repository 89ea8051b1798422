"""A whole server with threads, after pip install '.[server]'. Ctrl-C ends it. With CONSUL_HTTP_ADDR: registered."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import grpc

import lb.server
import lb.server.threads


def hello(request: bytes, context: Any) -> bytes:
    """An answer."""
    return b"hello, " + request


def ticks(request: bytes, context: Any) -> Iterator[bytes]:
    """A stream that would never end by itself. When the server drains, clients open another one elsewhere."""
    draining = lb.server.threads.draining()
    yield b"tick"
    while not draining.wait(1):
        yield b"tick"


unary: Any = grpc.unary_unary_rpc_method_handler(hello)
stream: Any = grpc.unary_stream_rpc_method_handler(ticks)
handlers = grpc.method_handlers_generic_handler("Greeter", {"Hello": unary, "Ticks": stream})
limits = lb.server.Limits(rate=lb.server.Rate(1000))  # a second; and as many at once as it can

logging.basicConfig(level=logging.INFO)
registered = "CONSUL_HTTP_ADDR" in os.environ
with lb.server.threads.Server("greeter", threads=32, limits=limits, register=registered) as server:
    server.add_generic_rpc_handlers([handlers])  # with stubs: add_GreeterServicer_to_server(Greeter(), server)
    server.serve()
