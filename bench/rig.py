"""What the measures share: servers in processes of their own, clients that take turns, and the arithmetic.

Each client is a process of its own and holds one channel. What is compared is the CPU time of all threads of the
process. In a turn, the clients that are compared run one after the other, twice, and the order is reversed in the next
turn; the ratio is taken within a turn. So a machine that grows slower, or a busy neighbour, disturbs all sides alike.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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
ROOT = Path(__file__).resolve().parent.parent
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


def grpc_go() -> str | None:
    """The client in Go, built if it can be; None if it cannot."""
    name = "gocaller"
    if shutil.which("go") or (ROOT / ".cache" / "bin" / name).exists():
        subprocess.run([ROOT / "tools" / "servers" / "build.sh", name, "."], check=False, stdout=subprocess.DEVNULL)
    return shutil.which(name) or shutil.which(name, path=str(ROOT / ".cache" / "bin"))


@contextmanager
def workers(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process for each command, ready for its first turn."""
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, command in commands.items():
            started[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, worker in started.items():
            answer(name, worker)
        yield started
    finally:
        for worker in started.values():
            worker.communicate()


def measure(name: str, worker: subprocess.Popen[str]) -> float:
    """Have a worker make its calls once; returns the CPU microseconds of each."""
    tell(worker)
    return float(answer(name, worker)["us"])


def tell(worker: subprocess.Popen[str]) -> None:
    """Have a worker begin."""
    say(worker, "turn")


def say(worker: subprocess.Popen[str], words: Any) -> None:
    """Send a worker a line of JSON."""
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(words) + "\n")
    worker.stdin.flush()


def answer(name: str, worker: subprocess.Popen[str]) -> Any:
    """What a worker says: first that it is ready, then ``us`` and ``done`` of each measure."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"the worker {name!r} ended with status {worker.wait()}")
    return json.loads(line)


async def take_turns(load: Callable[[], Awaitable[int]]) -> None:
    """A worker's life: a measure of ``load`` for each line of its standard input."""
    print("{}", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        start = time.process_time()
        done = await load()
        us = (time.process_time() - start) / done * 1e6
        print(json.dumps({"us": us, "done": done}), flush=True)


def turn(names: Sequence[str], started: Mapping[str, subprocess.Popen[str]], number: int) -> dict[str, float]:
    """One turn: the microseconds of each, from two measures."""
    order = names if number % 2 == 0 else names[::-1]
    figures = [{name: measure(name, started[name]) for name in order} for _ in range(2)]
    return {name: sum(one[name] for one in figures) / 2 for name in names}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median, the upper one."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return low, median, high


def versions() -> dict[str, str]:
    """What was measured with."""
    known = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def write(name: str, rows: Any) -> None:
    """Keep the rows of one measure, with versions."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
