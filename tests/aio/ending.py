"""A server whose streams end at a moment that a test chooses.

It has threads of its own. So a test can hold the client's event loop until the server has ended a call: what the loop
then finds are the end, and all that came before it, at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from itertools import islice
from typing import Any

import grpc

from lb.testing.backend import STREAM_STREAM, STREAM_UNARY, UNARY_STREAM
from tests.aio.kit import HANGS_S

ABORTED = grpc.StatusCode.ABORTED
HEADERS = (("x-early", "1"),)
Step = Callable[[Any], None]


def fails(context: Any) -> None:
    """Only a status."""
    context.abort(ABORTED, "scripted")


def answers_then_fails(context: Any) -> None:
    """Headers, and the end right after."""
    context.send_initial_metadata(HEADERS)
    context.abort(ABORTED, "scripted")


def ends_well(context: Any) -> None:
    """OK, without a message."""


class Ending:
    """A server for one stream at a time: it reads as many messages as it is told to, waits for `end`, and ends."""

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, handlers=[_Handler(self)], options=(("grpc.so_reuseport", 0),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._go = threading.Event()
        self._ended = threading.Event()
        self.next(fails)

    def next(self, then: Step, *, reads: int | None = 0, echo: bool = False) -> None:
        """How the next stream ends, and after how many of its messages (None: after all); ``echo``: answer them."""
        self._then, self._reads, self._echo = then, reads, echo
        self._ended.clear()
        self._go.clear()

    def let_end(self) -> None:
        """End the stream as soon as it has come and its messages were read."""
        self._go.set()

    def end(self) -> None:
        """End it, and hold this thread until that has happened."""
        self.let_end()
        assert self._ended.wait(HANGS_S)
        time.sleep(0.003)  # core has threads of its own; were they slower, the test would show less, and not fail

    def stop(self) -> None:
        """End the server."""
        self.let_end()
        self._server.stop(0).wait()
        self._pool.shutdown()

    def stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Any kind."""
        context.add_callback(self._ended.set)
        for request in islice(requests, self._reads):
            if self._echo:
                yield request
        assert self._go.wait(HANGS_S)
        self._then(context)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, ending: Ending) -> None:
        self._methods: dict[str, Any] = {
            UNARY_STREAM: grpc.unary_stream_rpc_method_handler(lambda request, c: ending.stream(iter([request]), c)),
            STREAM_UNARY: grpc.stream_unary_rpc_method_handler(
                lambda requests, c: b"".join(ending.stream(requests, c))
            ),
            STREAM_STREAM: grpc.stream_stream_rpc_method_handler(ending.stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """By method."""
        return self._methods.get(handler_call_details.method)
