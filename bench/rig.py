"""What the measures share: servers in processes of their own, workers that take turns, and the arithmetic.

A worker is a process of its own, since an OpenTelemetry SDK is set up once in a process. It holds a channel of
grpcio's (the *plain* one) and its subject, and in each of its turns measures plain, subject, subject, plain. What
is compared is the CPU time of all threads of the process within one turn, so that a machine that grows slower in
the middle, or a busy neighbour, disturbs both sides alike.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

SERVERS = 4
BODY = b"x" * 100
UNARY = "/bench.Echo/Unary"
RESPONSES = "/bench.Echo/Responses"
BOTH = "/bench.Echo/Both"
HANG = "/bench.Echo/Hang"
MESSAGES = 100
"""In each stream."""
ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}')
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("grpcio", "lb-mesh", "tenacity", "opentelemetry-api", "opentelemetry-sdk", "purgatory")


async def serve(ports: int) -> None:
    """An echo server on so many ports; prints them in a line and ends when its standard input does."""

    async def unary(request: bytes, context: Any) -> bytes:
        return request

    async def responses(request: bytes, context: Any) -> Any:
        for _ in range(MESSAGES):
            yield request

    async def both(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request

    async def hang(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return request

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Responses": grpc.unary_stream_rpc_method_handler(responses),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    print(*(server.add_insecure_port("127.0.0.1:0") for _ in range(ports)), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


@contextmanager
def servers(count: int = SERVERS, ports: int = 1) -> Iterator[list[str]]:
    """The addresses of so many servers."""
    command = [sys.executable, __file__, str(ports)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        yield [f"127.0.0.1:{port}" for server in started if server.stdout for port in server.stdout.readline().split()]
    finally:
        for server in started:
            server.communicate()


def plain(addresses: Sequence[str], factory: Callable[..., Any] = grpc.aio.insecure_channel) -> Any:
    """The channel that others are compared with: round_robin, in core."""
    return factory("ipv4:" + ",".join(addresses), options=[ROUND_ROBIN])


async def cpu_us(load: Callable[[], Awaitable[int]]) -> float:
    """CPU microseconds of the process for each of the things that ``load`` says it has done."""
    start = time.process_time()
    done = await load()
    return (time.process_time() - start) / done * 1e6


@contextmanager
def workers(
    command: Sequence[str], names: Sequence[str], *arguments: str
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A worker process for each name, ready for its first turn."""
    started = {
        name: subprocess.Popen([*command, name, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    try:
        for name, worker in started.items():
            _answer(name, worker)
        yield started
    finally:
        for worker in started.values():
            worker.communicate()


def turn(name: str, worker: subprocess.Popen[str]) -> dict[str, float]:
    """One turn of a worker: microseconds of the plain channel and of its subject."""
    assert worker.stdin is not None
    worker.stdin.write("turn\n")
    worker.stdin.flush()
    return dict(_answer(name, worker))


def _answer(name: str, worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"the worker {name!r} ended with status {worker.wait()}")
    return json.loads(line)


async def take_turns(measure: Callable[[], Awaitable[dict[str, float]]]) -> None:
    """A worker's life: a turn for each line of its standard input."""
    print("{}", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await measure()), flush=True)


def ratio(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median and quartiles of the ratios within each turn, and the medians of both sides."""
    ratios = [one["subject"] / one["plain"] for one in turns]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "ratio": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "us": round(statistics.median(one["subject"] for one in turns), 1),
        "plain_us": round(statistics.median(one["plain"] for one in turns), 1),
    }


def versions() -> dict[str, str]:
    """What was measured with."""
    known = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def write(name: str, rows: dict[str, Any]) -> None:
    """Keep the rows of one measure, with versions."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
