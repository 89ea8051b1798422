"""What clients see of a rolling restart: ``make bench-drain``.

Three servers are registered in a real Consul; a client in a process of its own finds them there. One after the other
gets SIGTERM, and another one is started in its place. Meanwhile the client sends calls, as a Poisson process, at 60 %
of what the remaining two can do, and keeps streams open: some end by themselves after a second, some last until their
server says that it leaves, and are opened again elsewhere. No call may fail, and none may need a second attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

import lb
from bench import rig, servers
from bench.goals import Goal, Table, finish
from bench.pressure import LAG_MS, percentile
from tests.support import consul
from tests.support.servers import HOW_TO_GET, find

INSTANCES = 3
SHARE = 0.6
RATE = SHARE * (INSTANCES - 1) * servers.SLOTS / servers.SLOT_S
STREAMS = 8
"""Of each kind, at any moment."""
TIMEOUT_S = 10.0
SETTLE_S = 1.5
"""Between a new server and the end of the next old one."""
LEAVE_S = 30.0


class Client:
    """What the client's process does until its standard input ends."""

    def __init__(self) -> None:
        self._channel = lb.aio.channel(f"consul:///{servers.SERVICE}")
        self._leaving = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: dict[str, Counter[str]] = {"calls": Counter(), "streams": Counter(), "watches": Counter()}
        self.errors: list[str] = []
        self.took_ms: list[float] = []
        self.lags_ms: list[float] = []

    async def run(self) -> dict[str, Any]:
        """Call until told to end, and wait for all ends."""
        echo: Any = self._channel.unary_unary(servers.ECHO)
        await echo(b"0", timeout=TIMEOUT_S, wait_for_ready=True)
        print("{}", flush=True)
        end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        end.add_done_callback(lambda _: self._leaving.set())
        watching = [asyncio.create_task(self._watch()) for _ in range(STREAMS)]
        streaming = [asyncio.create_task(self._few()) for _ in range(STREAMS)]
        await self._calls()
        await asyncio.gather(*watching, *streaming, *self._tasks)
        await self._channel.close()
        return {
            "counts": self.counts,
            "errors": self.errors[:10],
            "p99_ms": percentile(self.took_ms, 99),
            "lag_ms": percentile(self.lags_ms, 99),
        }

    async def _calls(self) -> None:
        stub: Any = self._channel.unary_unary(servers.SLOT)
        rng = random.Random(1)
        at = time.monotonic()
        while not self._leaving.is_set():
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            self.lags_ms.append((time.monotonic() - at) * 1000)
            task = asyncio.create_task(self._call(stub))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            at += rng.expovariate(RATE)

    async def _call(self, stub: Any) -> None:
        began = time.monotonic()
        running = stub(b"0", timeout=TIMEOUT_S)
        error = None
        try:
            await running
        except grpc.aio.AioRpcError as raised:
            error = raised
        self.took_ms.append((time.monotonic() - began) * 1000)
        self._ended("calls", running, error)

    async def _few(self) -> None:
        stub: Any = self._channel.unary_stream(servers.FEW)
        while not self._leaving.is_set():
            running = stub(b"0", timeout=TIMEOUT_S)
            received, error = 0, None
            try:
                async for _ in running:
                    received += 1
            except grpc.aio.AioRpcError as raised:
                error = raised
            if error is None and received != servers.MESSAGES:
                self.errors.append(f"streams: {received} of {servers.MESSAGES} messages came")
                self.counts["streams"]["failed"] += 1
            self._ended("streams", running, error)

    async def _watch(self) -> None:
        stub: Any = self._channel.unary_stream(servers.WATCH)
        while not self._leaving.is_set():
            running = stub(b"0")
            error = None
            told = asyncio.create_task(self._leaving.wait())
            try:
                async for _ in running:
                    if told.done():
                        break
            except grpc.aio.AioRpcError as raised:
                error = raised
            told.cancel()
            running.cancel()
            self._ended("watches", running, error)

    def _ended(self, kind: str, running: Any, error: grpc.aio.AioRpcError | None) -> None:
        counts = self.counts[kind]
        counts["all"] += 1
        attempts = lb.attempts(running)
        counts["retries"] += len(attempts) - 1
        if len(attempts) > 1:
            self.errors.append(f"{kind}: {[*map(repr, attempts)]}")
        if error is not None:
            counts["failed"] += 1
            self.errors.append(f"{kind}: {error.code().name}: {error.details()}")


async def client() -> None:
    """The client's process."""
    print(json.dumps(await Client().run()), flush=True)


class Shift:
    """What a rolling restart took."""

    def __init__(self) -> None:
        self.left_s: list[float] = []
        self.statuses: list[int] = []
        self.seen: dict[str, Any] = {}


def restart(rounds: int) -> Shift:
    """Replace each server, so many times."""
    shift = Shift()
    with contextlib.ExitStack() as stack:
        running = [servers.Started("registered") for _ in range(INSTANCES)]

        @stack.callback
        def stop() -> None:
            for server in running:
                server.stop()

        caller = subprocess.Popen(
            [sys.executable, __file__, "--client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(caller.kill)
        rig.answer("client", caller)
        time.sleep(SETTLE_S)
        for _ in range(rounds):
            for index in range(INSTANCES):
                began = time.monotonic()
                shift.statuses.append(running[index].terminate())
                shift.left_s.append(time.monotonic() - began)
                running[index] = servers.Started("registered")
                time.sleep(SETTLE_S)
        words, _ = caller.communicate()
        shift.seen = json.loads(words)
    return shift


async def measure(rounds: int) -> Shift:
    """With a Consul of its own."""
    async with consul.running() as registry:
        os.environ["CONSUL_HTTP_ADDR"] = registry.url
        return await asyncio.to_thread(restart, rounds)


def main() -> int:
    """Measure, print, write; the exit status."""
    if "--client" in sys.argv:
        asyncio.run(client())
        return 0
    if find("consul") is None:
        print(f"needs a Consul. {HOW_TO_GET}")
        return 2
    short = "--short" in sys.argv
    shift = asyncio.run(measure(1 if short else 3))
    seen = shift.seen
    void = seen["lag_ms"] > LAG_MS
    titles = ["", "all", "failed", "retries"]
    rows = [
        [name, counts.get("all", 0), counts.get("failed", 0), counts.get("retries", 0)]
        for name, counts in seen["counts"].items()
    ]
    longest = max(shift.left_s)
    words = (
        f"{len(shift.left_s)} servers left, each within {longest:.1f} s; calls at {RATE:.0f} a second had a p99 of"
        f" {seen['p99_ms']:.0f} ms; the generator's lag: {seen['lag_ms']:.1f} ms{' (**void**)' * void}."
    )
    for text in seen["errors"]:
        print(text)
    goals = [
        # A lag of the client excuses no failure. Calls that it sends late come at once, and may find a full server.
        Goal("calls and streams that failed", sum(row[2] for row in rows), most=0, promise=0),
        Goal("retries", sum(row[3] for row in rows), most=0, promise=0, void=void),
        Goal("the longest leave, s", longest, most=LEAVE_S, promise=LEAVE_S),
        Goal("servers that ended with another status than 0", sum(map(bool, shift.statuses)), most=0, promise=0),
    ]
    return finish("drain", [Table(titles, rows), words], goals, keep=not short, raw=shift.left_s)


if __name__ == "__main__":
    sys.exit(main())
