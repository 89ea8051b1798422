"""The servers that are compared, each a process of its own with the same handlers: ``python bench/servers.py KIND``.

- ``naive``: the shape of grpcio's hello world, a ``grpc.server`` with ten threads. Each call makes its own channel to
  the other service, and its own connection to the database.
- ``plain``: a ``grpc.aio.server`` with one channel and one connection for all calls, and no limits.
- ``lb``: an `lb.server.Server` with a channel of `lb`'s; all the rest is the same.
- ``downstream``: the other service; it answers after a while.
- ``registered``: as ``lb``, registered in Consul, with streams; it leaves at SIGTERM, or when its standard input ends.

``--without`` takes one thing away from ``lb``, for the ablation. Each prints its port in a line of JSON, then answers
each line of its standard input with the CPU seconds that it has used, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

import lb
from lb.server import Concurrency, Limits, Rate, Server, draining

SERVICE = "bench.Work"
ECHO, WORK, SLOT, FAST, SLOW, CPU, HANG = (
    f"/{SERVICE}/{name}" for name in ("Echo", "Work", "Slot", "Fast", "Slow", "Cpu", "Hang")
)
"""``Work`` is one call to the other service and one query. ``Slot``, ``Fast`` and ``Slow`` hold one of the process's
four slots for 40, 1 and 200 ms. ``Cpu`` computes for 5 ms. ``Hang`` ends only with its client."""
FEW, WATCH = f"/{SERVICE}/Few", f"/{SERVICE}/Watch"
"""Streams of the registered server: one of 20 messages in a second, and one that lasts until the server leaves."""
MESSAGES, PAUSE_S = 20, 0.05
ANSWER = "/bench.Downstream/Answer"
SLOTS = 4
SLOT_S, FAST_S, SLOW_S, CPU_S = 0.040, 0.001, 0.200, 0.005
THREADS = 10
"""Of grpcio's hello world."""
THINGS = ("admission", "lb's channel", "a kept channel", "a kept connection", "asyncio")
"""What ``--without`` may name."""
QUERY = "SELECT name, price FROM products WHERE sku = ?"
PRODUCTS = 100
OPTIONS = (("grpc.so_reuseport", 0),)


def compute() -> None:
    """Use 5 ms of CPU, however busy the machine is."""
    end = time.thread_time() + CPU_S
    while time.thread_time() < end:
        sum(range(200))


def query(connection: sqlite3.Connection, request: bytes) -> bytes:
    """What the database knows about the product that a request names."""
    name, price = connection.execute(QUERY, (int(request or b"0") % PRODUCTS,)).fetchone()
    return f"{name} {price}".encode()


class Threads:
    """The handlers for a server with threads."""

    def __init__(self, downstream: str, database: str, *, keep: bool) -> None:
        self._downstream = downstream
        self._database = database
        self._slots = threading.Semaphore(SLOTS)
        self._keep = keep
        self._kept = threading.local()
        self._channel = grpc.insecure_channel(downstream) if keep else None

    def handlers(self) -> dict[str, Any]:
        """By the method's name."""
        return {
            "Echo": self._echo,
            "Work": self._work,
            "Slot": lambda request, _: self._hold(request, SLOT_S),
            "Fast": lambda request, _: self._hold(request, FAST_S),
            "Slow": lambda request, _: self._hold(request, SLOW_S),
            "Cpu": self._cpu,
            "Hang": self._hang,
        }

    def _echo(self, request: bytes, context: Any) -> bytes:
        return request

    def _work(self, request: bytes, context: Any) -> bytes:
        channel: Any = self._channel
        if channel is None:
            with grpc.insecure_channel(self._downstream) as channel:
                answer: bytes = channel.unary_unary(ANSWER)(request)
            with contextlib.closing(sqlite3.connect(self._database)) as connection:
                return answer + query(connection, request)
        kept = self._kept
        if not hasattr(kept, "connection"):
            kept.connection = sqlite3.connect(self._database)
        return bytes(channel.unary_unary(ANSWER)(request)) + query(kept.connection, request)

    def _hold(self, request: bytes, takes_s: float) -> bytes:
        with self._slots:
            time.sleep(takes_s)
        return request

    def _cpu(self, request: bytes, context: Any) -> bytes:
        compute()
        return request

    def _hang(self, request: bytes, context: Any) -> bytes:
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()
        return request


class Loop:
    """The handlers for a server of asyncio."""

    def __init__(self, downstream: str, database: str, without: str, *, ours: bool) -> None:
        self._downstream = downstream
        self._database = database
        self._slots = asyncio.Semaphore(SLOTS)
        self._ours = ours and without != "lb's channel"
        self._channel = None if without == "a kept channel" else self._connect()
        self._connection = None if without == "a kept connection" else sqlite3.connect(database)

    def _connect(self) -> Any:
        if self._ours:
            return lb.aio.channel(f"static:///{self._downstream}")
        return grpc.aio.insecure_channel(self._downstream)

    def handlers(self) -> dict[str, Any]:
        """By the method's name."""
        return {
            "Echo": self._echo,
            "Work": self._work,
            "Slot": self._slot,
            "Fast": self._fast,
            "Slow": self._slow,
            "Cpu": self._cpu,
            "Hang": self._hang,
        }

    async def _echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def _work(self, request: bytes, context: Any) -> bytes:
        if self._channel is None:
            async with self._connect() as channel:
                answer = await channel.unary_unary(ANSWER)(request)
        else:
            answer = await self._channel.unary_unary(ANSWER)(request)
        if self._connection is None:
            with contextlib.closing(sqlite3.connect(self._database)) as connection:
                return bytes(answer) + query(connection, request)
        return bytes(answer) + query(self._connection, request)

    async def _hold(self, request: bytes, takes_s: float) -> bytes:
        async with self._slots:
            await asyncio.sleep(takes_s)
        return request

    async def _slot(self, request: bytes, context: Any) -> bytes:
        return await self._hold(request, SLOT_S)

    async def _fast(self, request: bytes, context: Any) -> bytes:
        return await self._hold(request, FAST_S)

    async def _slow(self, request: bytes, context: Any) -> bytes:
        return await self._hold(request, SLOW_S)

    async def _cpu(self, request: bytes, context: Any) -> bytes:
        compute()
        return request

    async def _hang(self, request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return request

    async def close(self) -> None:
        """Close what is kept."""
        if self._channel is not None:
            await self._channel.close()
        if self._connection is not None:
            self._connection.close()


def _add(server: Any, handlers: dict[str, Any]) -> None:
    made: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, made),))


def _tell(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def _obey() -> None:
    """Answer each line with the CPU that this process has used."""
    while sys.stdin.readline():
        _tell(cpu_s=time.process_time())


def in_threads(arguments: argparse.Namespace) -> None:
    """A server with ten threads, until its standard input ends."""
    server = grpc.server(ThreadPoolExecutor(max_workers=THREADS), options=OPTIONS)
    handlers = Threads(arguments.downstream, arguments.database, keep=arguments.kind == "lb")
    _add(server, handlers.handlers())
    _tell(port=server.add_insecure_port("127.0.0.1:0"))
    server.start()
    _obey()
    os._exit(0)  # threads that wait for a slot, or for a client, are not waited for


def limits(arguments: argparse.Namespace) -> Limits:
    """What the server takes on."""
    concurrency: Concurrency | None = Concurrency()
    if arguments.most:
        concurrency = Concurrency(limit=arguments.most, adaptive=False, queue=0)
    rate = Rate(arguments.rate) if arguments.rate else None
    return Limits(concurrency=concurrency, rate=rate)


async def in_loop(arguments: argparse.Namespace) -> None:
    """A server of asyncio, until its standard input ends."""
    ours = arguments.kind == "lb"
    handlers = Loop(arguments.downstream, arguments.database, arguments.without, ours=ours)
    if ours:
        bounds: Limits | Literal[False] = False if arguments.without == "admission" else limits(arguments)
        async with Server("bench", limits=bounds) as server:
            _add(server, handlers.handlers())
            await server.start()
            _tell(port=server.port)
            await asyncio.to_thread(_obey)
    else:
        bare = grpc.aio.server(options=OPTIONS)
        _add(bare, handlers.handlers())
        _tell(port=bare.add_insecure_port("127.0.0.1:0"))
        await bare.start()
        await asyncio.to_thread(_obey)
        await bare.stop(0)
    await handlers.close()


async def downstream(answers_after_s: float) -> None:
    """The other service."""

    async def answer(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(answers_after_s)
        return request

    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {"Answer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Downstream", handlers),))
    _tell(port=server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.to_thread(_obey)
    await server.stop(0)


class Registered(Server):
    """Says when it is ready."""

    async def start(self) -> None:
        """Start, and tell the port."""
        await super().start()
        _tell(port=self.port)


async def registered() -> None:
    """A server that is registered as `SERVICE`, until there is a reason to end."""
    handlers = Loop("127.0.0.1:1", ":memory:", "", ours=True)

    async def few(request: bytes, context: Any) -> Any:
        for _ in range(MESSAGES):
            yield request
            await asyncio.sleep(PAUSE_S)

    async def watch(request: bytes, context: Any) -> Any:
        leaving = asyncio.ensure_future(draining())
        try:
            while not leaving.done():
                yield request
                await asyncio.wait([leaving], timeout=PAUSE_S)
        finally:
            leaving.cancel()

    streams = {"Few": few, "Watch": watch}
    made: dict[str, Any] = {name: grpc.unary_stream_rpc_method_handler(handler) for name, handler in streams.items()}
    made |= {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.handlers().items()}
    server = Registered(SERVICE, register=True)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, made),))
    await server.serve(parent_fd=sys.stdin.fileno())
    await handlers.close()


class Started:
    """A started server, as the bench sees it."""

    def __init__(self, kind: str, *options: str) -> None:
        command = [sys.executable, __file__, kind, *options]
        environment = os.environ | {"GRPC_VERBOSITY": "NONE"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if kind == "naive" else None,  # its pool prints each call that was cancelled
            text=True,
            env=environment,
        )
        self._command = command
        self.address = f"127.0.0.1:{self._answer()['port']}"

    def cpu_s(self) -> float:
        """The CPU seconds that it has used."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer()["cpu_s"])

    def stop(self) -> None:
        """End it."""
        self._process.communicate()

    def terminate(self) -> int:
        """SIGTERM; returns its exit status."""
        self._process.terminate()
        return self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._command} ended with status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def started(kind: str, *options: str, count: int = 1) -> Iterator[list[Started]]:
    """So many servers of a kind."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            server = Started(kind, *options)
            stack.callback(server.stop)
            found.append(server)
        yield found


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The path of a database with some products."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "products.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE products (sku INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
            rows = [(number, f"product {number}", 100 + number) for number in range(PRODUCTS)]
            connection.executemany("INSERT INTO products VALUES (?, ?, ?)", rows)
            connection.commit()
        yield path


def main(arguments: Sequence[str] | None = None) -> None:
    """Be the server that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("naive", "plain", "lb", "downstream", "registered"))
    parser.add_argument("--downstream", default="127.0.0.1:1")
    parser.add_argument("--database", default=":memory:")
    parser.add_argument("--without", default="", choices=("", *THINGS))
    parser.add_argument("--most", type=int, default=0, help="a fixed limit of calls at once, without a queue")
    parser.add_argument("--rate", type=float, default=0.0, help="a token bucket: calls a second")
    parser.add_argument("--after", type=float, default=0.0, help="seconds after which `downstream` answers")
    found = parser.parse_args(arguments)
    if found.kind == "registered":
        asyncio.run(registered())
    elif found.kind == "downstream":
        asyncio.run(downstream(found.after))
    elif found.kind == "naive" or found.without == "asyncio":
        in_threads(found)
    else:
        asyncio.run(in_loop(found))


if __name__ == "__main__":
    main()
