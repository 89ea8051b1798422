"""A gRPC server that echoes, in a process of its own: ``python -m tests.chaos.server``.

It prints its port. Each line of standard input, a JSON object, changes how it answers: ``latency_s``
(each answer takes 0.75 to 1.25 times that), ``failing`` (the share of calls that fail at once) and ``code`` (how:
UNAVAILABLE unless told otherwise); the line that it prints in return says how many calls it has had and has. It ends
with its standard input, or on SIGTERM as a service of the mesh does: the registry is told first, for ``--notice``
seconds it serves whoever has not heard, then the port closes and what is in flight ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from tests.chaos.child import commands, say

if TYPE_CHECKING:
    from lb.aio import Registration

SERVICE = "chaos.Echo"
UNARY = f"/{SERVICE}/Unary"
UNARY_STREAM = f"/{SERVICE}/UnaryStream"
STREAM_UNARY = f"/{SERVICE}/StreamUnary"
STREAM_STREAM = f"/{SERVICE}/StreamStream"
METHODS = (UNARY, UNARY_STREAM, STREAM_UNARY, STREAM_STREAM)

_COPIES = 3
_GRACE_S = 5.0

Context = grpc.aio.ServicerContext[bytes, bytes]


class Echo:
    """The four methods, and how they misbehave."""

    def __init__(self, latency_s: float, failing: float) -> None:
        self._latency_s = latency_s
        self._failing = failing
        self._code = "UNAVAILABLE"
        self._calls = 0
        self._running = 0
        self._rng = Random()

    def obey(self, wishes: dict[str, Any]) -> dict[str, int]:
        """Take over new settings; returns how many calls there were so far, and how many are running."""
        self._latency_s = wishes.get("latency_s", self._latency_s)
        self._failing = wishes.get("failing", self._failing)
        self._code = wishes.get("code", self._code)
        return {"calls": self._calls, "running": self._running}

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._calls += 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _work(self, context: Context) -> None:
        if self._failing and self._rng.random() < self._failing:
            await context.abort(grpc.StatusCode[self._code], "told to fail")
        if self._latency_s:
            await asyncio.sleep(self._latency_s * self._rng.uniform(0.75, 1.25))

    async def unary(self, request: bytes, context: Context) -> bytes:
        """The request."""
        with self._counted():
            await self._work(context)
            return request

    async def unary_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """The request a few times, each after as long as a unary call takes."""
        with self._counted():
            for _ in range(_COPIES):
                await self._work(context)
                yield request

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """All requests joined."""
        with self._counted():
            answer = b"".join([request async for request in requests])
            await self._work(context)
            return answer

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Each request."""
        with self._counted():
            async for request in requests:
                await self._work(context)
                yield request

    def handlers(self) -> grpc.GenericRpcHandler:
        """As grpcio wants them."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "UnaryStream": grpc.unary_stream_rpc_method_handler(self.unary_stream),
                "StreamUnary": grpc.stream_unary_rpc_method_handler(self.stream_unary),
                "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream_stream),
            },
        )


async def serve(arguments: argparse.Namespace) -> None:
    """Until standard input or a signal ends it."""
    echo = Echo(arguments.latency, arguments.failing)
    options: list[tuple[str, int]] = [("grpc.so_reuseport", 0)]
    if arguments.max_age_ms:
        options += [
            ("grpc.max_connection_age_ms", arguments.max_age_ms),
            ("grpc.max_connection_age_grace_ms", int(_GRACE_S * 1000)),
        ]
    if arguments.max_streams:
        options.append(("grpc.max_concurrent_streams", arguments.max_streams))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((echo.handlers(),))
    if arguments.consul:
        await _add_health(server)
    port = server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    await server.start()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with AsyncExitStack() as stack:
        registration = await _register(arguments, port, stack) if arguments.consul else None
        say(port)
        listening = asyncio.create_task(commands(echo.obey))
        leaving = asyncio.create_task(asked.wait())
        done, _ = await asyncio.wait([listening, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving in done:
            if registration is not None:
                await registration.drain()
            await asyncio.sleep(arguments.notice)
            if registration is not None:
                await registration.close()
            await server.stop(_GRACE_S)
        listening.cancel()
        leaving.cancel()
    await server.stop(None)


async def _add_health(server: grpc.aio.Server) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)


async def _register(arguments: argparse.Namespace, port: int, stack: AsyncExitStack) -> Registration:
    import lb.aio  # only here: most servers of the rig need nothing of it, and start sooner

    return await stack.enter_async_context(
        lb.aio.registration(
            arguments.service,
            address=f"127.0.0.1:{port}",
            id=arguments.id or f"{arguments.service}-{port}",
            check="grpc",
            consul=arguments.consul,
        )
    )


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="tests.chaos.server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--failing", type=float, default=0.0, help="share of calls")
    parser.add_argument("--max-age-ms", type=int, default=0, help="of a connection, which then gets a GOAWAY")
    parser.add_argument("--max-streams", type=int, default=0, help="at once on a connection")
    parser.add_argument("--notice", type=float, default=0.0, help="seconds between the drain and the end")
    parser.add_argument("--consul", default="", help="host:port of the agent to register at")
    parser.add_argument("--service", default="echo")
    parser.add_argument("--id", default="")
    logging.getLogger("lb").setLevel(logging.CRITICAL)  # Consul is gone on purpose
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
