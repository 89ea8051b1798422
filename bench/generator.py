"""A load generator in a process of its own: makes the calls of a job, and says what became of each.

A job is a line of JSON on standard input, the answer a line on standard output. A job has phases, one right after the
other. In an *open* phase calls are sent at a rate, whatever becomes of them, evenly or as a Poisson process. In a
*closed* phase so many callers each wait for their answer, and then call again (after a failure, 20 ms later).

A call's latency counts from when it should have been sent. How late calls were sent, and in a closed phase how late a
timer is, is the generator's own lag, and is told as well: a generator that has no time for its calls measures itself.

With a command as arguments, that command does the jobs: the one in Go takes a fraction of the CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

import lb
from bench.rig import plain

AFTER_FAILURE_S = 0.02
TICK_S = 0.01
OK = "OK"

Ended = tuple[str, float | None, int]
"""A call's status, how long its last attempt took, and the number of its attempts."""


class Job:
    """One job: its channel, its phases, and what became of its calls."""

    def __init__(self, words: dict[str, Any]) -> None:
        self._words = words
        self._rng = random.Random(words["seed"])
        self._target: Calls | Orders = Orders(words) if words["channel"] == "http" else Calls(words)
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: list[tuple[int, int, float, float, str, float | None, int]] = []
        """Of each call: its phase, its kind, when it should have been sent, how long it took, its status; how long the
        last attempt took, if that is known, and the number of its attempts."""
        self.lags_ms: list[list[float]] = [[] for _ in words["phases"]]

    async def run(self) -> None:
        """Make all calls, and wait for their ends."""
        async with contextlib.aclosing(self._target):
            await self._target.warm_up()
            begin = max(self._words["begin"], time.monotonic())
            for number, phase in enumerate(self._words["phases"]):
                end = begin + phase["s"]
                if phase["rate"]:
                    await self._open(number, phase, begin, end)
                else:
                    await self._closed(number, phase, begin, end)
                begin = end
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _open(self, number: int, phase: dict[str, Any], begin: float, end: float) -> None:
        lags, mean_s = self.lags_ms[number], 1.0 / phase["rate"]
        at = begin + self._rng.random() * mean_s
        while at < end:
            now = time.monotonic()
            if at > now:
                await asyncio.sleep(at - now)
                now = time.monotonic()
            lags.append((now - at) * 1000)
            self._begin(self._call(number, phase, at))
            at += self._rng.expovariate(1.0) * mean_s if phase["poisson"] else mean_s

    async def _closed(self, number: int, phase: dict[str, Any], begin: float, end: float) -> None:
        async def caller(index: int) -> None:
            # They come one after the other, in the first half second.
            await asyncio.sleep(begin + 0.5 * index / phase["callers"] - time.monotonic())
            while (now := time.monotonic()) < end:
                if not await self._call(number, phase, now):
                    await asyncio.sleep(AFTER_FAILURE_S)

        async def clock() -> None:
            lags = self.lags_ms[number]
            while (due := time.monotonic() + TICK_S) < end:
                await asyncio.sleep(TICK_S)
                lags.append((time.monotonic() - due) * 1000)

        await asyncio.gather(clock(), *(caller(index) for index in range(phase["callers"])))

    def _begin(self, call: Any) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, number: int, phase: dict[str, Any], at: float) -> bool:
        """One call; whether it went well."""
        kind = self._rng.choices(range(len(phase["kinds"])), phase["weights"])[0]
        method, metadata = phase["kinds"][kind]
        body = b"%d" % self._rng.randrange(100)
        code, last_s, tries = await self._target.call(method, body, phase["timeout_s"], metadata)
        self.calls.append((number, kind, at, time.monotonic() - at, code, last_s, tries))
        return code == OK


class Calls:
    """Calls of gRPC."""

    def __init__(self, words: dict[str, Any]) -> None:
        self._addresses = words["addresses"]
        self._echo = words["echo"]
        self._stubs: dict[str, Any] = {}
        self._ours = words["channel"] == "lb"
        if self._ours:
            self._channel: Any = lb.aio.channel("static:///" + ",".join(self._addresses))
        else:
            self._channel = plain(self._addresses)

    async def warm_up(self) -> None:
        """A connection to each server, before anything is measured."""
        for _ in range(4 * len(self._addresses)):
            await self.call(self._echo, b"0", 10.0, ())

    async def call(self, method: str, body: bytes, timeout_s: float, metadata: Any) -> Ended:
        """Make a call."""
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = self._channel.unary_unary(method, _registered_method=True)
        running = stub(body, timeout=timeout_s, metadata=metadata, wait_for_ready=method == self._echo)
        code = OK
        try:
            await running
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        if not self._ours:
            return code, None, 1
        attempts = lb.attempts(running)
        return code, attempts[-1].duration_s if attempts else None, len(attempts)

    async def aclose(self) -> None:
        """Close the channel."""
        await self._channel.close()


class Orders:
    """Orders by HTTP. A kind's method is the product."""

    def __init__(self, words: dict[str, Any]) -> None:
        self._url = f"{words['addresses'][0]}/api/orders"
        self._session: Any = None

    async def warm_up(self) -> None:
        """Open the session."""
        import aiohttp

        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def call(self, sku: str, body: bytes, timeout_s: float, metadata: Any) -> Ended:
        """Place an order; OK, or the status of HTTP, or what broke, in the place of gRPC's."""
        import aiohttp

        order = {"items": [{"sku": sku, "quantity": 1}]}
        try:
            async with self._session.post(
                self._url, json=order, timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as answer:
                await answer.read()
                return (OK if answer.status == 201 else str(answer.status)), None, 1
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__, None, 1

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def go_first() -> None:
    """The generator stands for other machines: it takes the CPU before all else, as far as it may."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(-10)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


async def main() -> None:
    """Do one job after the other, until standard input ends."""
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = Job(json.loads(line))
        gc.collect()
        gc.disable()  # a pause of its own would count as the server's
        await job.run()
        gc.enable()
        print(json.dumps({"calls": job.calls, "lags_ms": job.lags_ms}), flush=True)


if __name__ == "__main__":
    go_first()
    if sys.argv[1:]:
        os.execv(sys.argv[1], sys.argv[1:])
    asyncio.run(main())
