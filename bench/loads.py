"""What a client does while it is measured: for each kind of call, so many of them, over any channel like grpcio's.

Each load returns how many calls (or messages) it has made. 64 calls are in flight; streams have 100 messages, and 16
run at once; blocking calls come from 16 threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from bench.rig import BODY, BOTH, MESSAGES, RESPONSES, UNARY

IN_FLIGHT = 64
STREAMS = 16
THREADS = 16
TIMEOUT_S = 30.0

Load = Callable[[Any, int], Awaitable[int]]


async def unary(channel: Any, calls: int) -> int:
    """Calls with one request and one response."""
    call = channel.unary_unary(UNARY, _registered_method=True)
    return await at_once(lambda: call(BODY, timeout=TIMEOUT_S), calls)


async def at_once(call: Callable[[], Awaitable[Any]], calls: int) -> int:
    """So many calls, 64 in flight."""
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return calls


async def responses(channel: Any, messages: int) -> int:
    """Streams from the server."""
    call = channel.unary_stream(RESPONSES, _registered_method=True)

    async def read() -> None:
        async for _ in call(BODY, timeout=TIMEOUT_S):
            pass

    return await _streams(read, messages)


async def both(channel: Any, messages: int) -> int:
    """Streams both ways, each message echoed; counts pairs of messages."""
    call = channel.stream_stream(BOTH, _registered_method=True)

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(MESSAGES):
            yield BODY

    async def exchange() -> None:
        async for _ in call(requests(), timeout=TIMEOUT_S):
            pass

    return await _streams(exchange, messages)


async def _streams(stream: Callable[[], Awaitable[None]], messages: int) -> int:
    rounds = max(1, messages // (STREAMS * MESSAGES))
    for _ in range(rounds):
        await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return rounds * STREAMS * MESSAGES


class InThreads:
    """Loads from 16 threads, for channels that are not asyncio's."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def _each(self, work: Callable[[], None]) -> None:
        for done in [self._pool.submit(work) for _ in range(THREADS)]:
            await asyncio.wrap_future(done)

    async def unary(self, channel: Any, calls: int) -> int:
        """Calls that block their thread."""
        call = channel.unary_unary(UNARY, _registered_method=True)
        share = max(1, calls // THREADS)

        def work() -> None:
            for _ in range(share):
                call(BODY, timeout=TIMEOUT_S)

        await self._each(work)
        return share * THREADS

    async def futures(self, channel: Any, calls: int) -> int:
        """Futures, of which each thread has four at once."""
        call = channel.unary_unary(UNARY, _registered_method=True)
        at_once = IN_FLIGHT // THREADS
        share = max(1, calls // IN_FLIGHT)

        def work() -> None:
            for _ in range(share):
                for future in [call.future(BODY, timeout=TIMEOUT_S) for _ in range(at_once)]:
                    future.result()

        await self._each(work)
        return share * IN_FLIGHT

    async def responses(self, channel: Any, messages: int) -> int:
        """Streams from the server."""
        call = channel.unary_stream(RESPONSES, _registered_method=True)
        return await self._streams(lambda: call(BODY, timeout=TIMEOUT_S), messages)

    async def both(self, channel: Any, messages: int) -> int:
        """Streams both ways, each message echoed; counts pairs of messages."""
        call = channel.stream_stream(BOTH, _registered_method=True)

        def requests() -> Iterator[bytes]:
            for _ in range(MESSAGES):
                yield BODY

        return await self._streams(lambda: call(requests(), timeout=TIMEOUT_S), messages)

    async def _streams(self, stream: Callable[[], Any], messages: int) -> int:
        share = max(1, messages // (THREADS * MESSAGES))

        def work() -> None:
            for _ in range(share):
                for _message in stream():
                    pass

        await self._each(work)
        return share * THREADS * MESSAGES


KINDS = {
    "unary": 1,
    "responses": 5,
    "both": 3,
    "threads": 1,
    "futures": 1,
    "sync responses": 3,
    "sync both": 3,
}
"""How many messages are about as much work as a call."""
METHODS = {kind: {"responses": RESPONSES, "both": BOTH}.get(kind.removeprefix("sync "), UNARY) for kind in KINDS}
"""What each kind calls."""


def of_kind(kind: str, threads: InThreads) -> Load:
    """The load for a kind."""
    return {
        "unary": unary,
        "responses": responses,
        "both": both,
        "threads": threads.unary,
        "futures": threads.futures,
        "sync responses": threads.responses,
        "sync both": threads.both,
    }[kind]
