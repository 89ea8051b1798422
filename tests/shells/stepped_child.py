"""Calls in a process whose wall clock is set while they wait or pause: ``python -m tests.shells.stepped_child``.

Arguments: ``aio``, ``threads`` or ``grpcio`` (its own channel, for comparison), and by how many seconds the clock
is set. Prints for each call, by name, how it ended and after how many seconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from tenacity import wait_fixed

import lb
import lb.sync
from lb.shared import scopes
from lb.testing import Backend
from lb.testing.backend import METHODS, Gate, fail, hang, hold
from tests.aio import kit as aio
from tests.support.stepped import step
from tests.sync import kit as threads

TIMEOUT_S = 6.0
LONG_S = 60.0
PAUSE_S = 0.3
GIVEN_UP_S = 30.0
RETRY = lb.Retry(idempotent=METHODS, wait=wait_fixed(PAUSE_S), jitter=0.0)

Run = Callable[[], Awaitable[object]]


class Begun:
    """Stands for the scope of an incoming call, in which each call of ours reports once its deadline is taken in."""

    calls = 0

    def bound(self, deadline: float | None) -> float | None:
        """It has no deadline of its own."""
        return deadline

    def headers(self, metadata: tuple[object, ...]) -> tuple[object, ...]:
        """It has no priority either."""
        return metadata

    def add(self, call: object) -> None:
        """Count it."""
        self.calls += 1


async def told(run: Run) -> tuple[str, float]:
    """How a call ended, and after how long; HANGS when it did not."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(GIVEN_UP_S):
            await run()
        words = "OK"
    except grpc.RpcError as error:
        words = error.code().name
    except TimeoutError:
        words = "HANGS"
    return words, time.monotonic() - began


class Aio:
    """``lb.aio``, or grpcio's own."""

    def __init__(self, stack: contextlib.AsyncExitStack, ours: bool = True) -> None:
        self._stack = stack
        self._ours = ours

    async def channel(self, backend: Backend | None, **settings: Any) -> Any:
        """To this backend; without one, a channel that never gets ready."""
        if not self._ours:
            address = "127.0.0.1:1" if backend is None else backend.address
            return await self._stack.enter_async_context(grpc.aio.insecure_channel(address))
        target: Any = aio.Told() if backend is None else aio.target(backend)
        channel = lb.aio.channel(target, retry=RETRY, breaker=aio.NO_BREAKER, **settings)
        return await self._stack.enter_async_context(channel)

    def run(self, channel: Any, number: int, timeout: float) -> Run:
        """A call of one of the four kinds."""
        return lambda: aio.KINDS[number].run(channel, timeout=timeout, wait_for_ready=True)


class Threads:
    """``lb.sync``: each call in a thread, blocking where there is one response."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._pool = stack.enter_context(ThreadPoolExecutor(16))  # one for each call

    async def channel(self, backend: Backend | None, **settings: Any) -> Any:
        """As of `Aio`."""
        target: Any = aio.Told() if backend is None else aio.target(backend)
        return self._stack.enter_context(lb.sync.channel(target, retry=RETRY, breaker=aio.NO_BREAKER, **settings))

    def run(self, channel: Any, number: int, timeout: float) -> Run:
        """As of `Aio`."""
        begin = partial(threads.KINDS[number].run, channel, timeout=timeout, wait_for_ready=True)
        context = contextvars.copy_context()
        return lambda: asyncio.get_running_loop().run_in_executor(self._pool, context.run, begin)


async def main(side: str, ahead_s: float) -> None:
    """Begin all calls, set the clock while they wait, and tell how they end."""
    begun = Begun()
    scopes.enter(begun)  # type: ignore[arg-type]  # it has what calls use
    async with contextlib.AsyncExitStack() as stack:
        backends = {name: await stack.enter_async_context(Backend(name)) for name in ("paused", "hanging", "running")}
        api: Any = Threads(stack) if side == "threads" else Aio(stack, side == "aio")
        runs: dict[str, Run] = {}
        gate = Gate()
        scripts = {
            "paused": ([fail()] * 4, None, LONG_S),  # OK after the pause
            "hanging": ([fail()] * 4, hang(), TIMEOUT_S),  # DEADLINE_EXCEEDED in the second attempt
            "running": ([], hold(gate), LONG_S),  # OK, once the gate is open
        }
        ours = side != "grpcio"  # whose own channel has no retries here
        for name, (first, then, timeout) in scripts.items():
            backends[name].script(*first if ours else ())
            backends[name].always(then)
            channel = await api.channel(backends[name])
            for number in range(4):
                runs[f"{name} {aio.KINDS[number]}"] = api.run(channel, number, timeout)
        nowhere = await api.channel(None)
        for number in range(4):
            runs[f"waiting {aio.KINDS[number]}"] = api.run(nowhere, number, TIMEOUT_S)
        ends = {name: asyncio.ensure_future(told(run)) for name, run in runs.items()}
        for name in backends:
            await _received(backends[name], 4)
        await aio.eventually(lambda: begun.calls == len(ends) or not ours)
        step(ahead_s)
        await _received(backends["paused"], 8 if ours else 4)
        gate.open()
        print(json.dumps({name: await end for name, end in ends.items()}))


async def _received(backend: Backend, calls: int) -> None:
    await backend.until(lambda: len(backend.received) >= calls)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
