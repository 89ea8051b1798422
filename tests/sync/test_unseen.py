"""What no server has seen is sent again, for threads: see tests/aio/test_unseen.py, whose servers these are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest

import lb
from lb.core.outcome import Origin
from lb.core.words import Meaning, Words
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY
from tests.aio.kit import eventually
from tests.support.http2 import Narrow, goaway, raw, settings
from tests.support.passing_on import EACH_WORDING, passing_on
from tests.support.process import gopeer
from tests.sync.kit import HANGS_S, KINDS, UU, Kind, failure, in_flight, ready

IDEMPOTENT = lb.Retry(idempotent=[UNARY_UNARY])
CALLERS = 64


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """A server in the tests' own loop."""
    async with Backend("a") as started:
        yield started


async def at_once(count: int, call: Callable[[], Any]) -> list[Any]:
    """The same in so many threads."""
    with ThreadPoolExecutor(count) as pool:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, call) for _ in range(count)))


def started(kind: Kind, channel: Any) -> Any:
    """The call without blocking from its beginning on."""
    return kind.finish(kind.start(channel))


@EACH_WORDING
async def test_a_server_that_only_says_so_is_not_believed(words: Words) -> None:
    """Of every kind, blocking or not: its handler has run, and its connection stands."""
    expected = {Meaning.REFUSED: Origin.REFUSED, Meaning.NO_CREDENTIALS: Origin.CALLER}

    def call_all(address: str) -> int:
        calls = 0
        with lb.sync.channel(f"static:///{address}") as channel:
            ready(channel, 1)
            for kind in KINDS:
                for call in (partial(kind.run, channel), partial(started, kind, channel)):
                    error = failure(call)
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    (attempt,) = lb.attempts(error)
                    assert attempt.outcome is not None
                    assert attempt.outcome.origin is expected.get(words.meaning, Origin.PEER)
                    calls += 1
        return calls

    async with passing_on({kind.name: kind.method for kind in KINDS}) as peer:
        peer.say(words)
        assert await asyncio.to_thread(call_all, peer.address) == peer.calls


@pytest.mark.gopeer
async def test_calls_that_wait_for_a_stream_outlive_their_connection() -> None:
    """Connections of 0.3 s and five streams under 64 blocking callers: none fails, none runs twice."""
    server = await gopeer("go", "--max-age", "300ms", "--max-streams", 5, "--latency", 0.01).start()
    again: set[str] = set()

    def work() -> int:
        done = 0
        while "transparent" not in again or done < 4:
            _, call = stub.with_call(b"one", timeout=HANGS_S)
            again.update(attempt.why.partition(":")[0] for attempt in lb.attempts(call))
            done += 1
        return done

    try:
        with await asyncio.to_thread(lb.sync.channel, f"static:///{server.address}") as channel:
            stub: Any = channel.unary_unary(UNARY_UNARY)
            await asyncio.to_thread(ready, channel, 1)
            done = sum(await at_once(CALLERS, work))
            assert channel.snapshot().endpoints[0].breaker == "CLOSED"
        assert again <= {"", "transparent"}
        assert (await server.tell())["calls"] == done
    finally:
        await server.stop()


async def test_streams_above_a_servers_limit_wait_here() -> None:
    """Twelve blocked threads, five places: seven are refused once, then wait their turn."""
    narrow = Narrow(5)
    async with raw(narrow) as peer:
        with lb.sync.channel(f"static:///{peer.address}", retry=IDEMPOTENT) as channel:
            await asyncio.to_thread(ready, channel, 1)
            for _ in range(2):
                running = asyncio.ensure_future(at_once(12, lambda: UU.stub(channel)(b"one", timeout=HANGS_S)))
                await eventually(lambda: in_flight(channel) == 5 and narrow.refused == 7)
                for _ in range(12):
                    await eventually(lambda: narrow.open)
                    narrow.answer()
                assert await running == [b"done"] * 12
            assert narrow.refused == 7
            (endpoint,) = channel.snapshot().endpoints
            assert (endpoint.breaker, endpoint.in_flight) == ("CLOSED", 0)


@pytest.mark.alone  # core's news of the loss may come so late that the text has no proof
async def test_a_connection_that_closes_as_it_begins_costs_no_call(backend: Backend) -> None:
    """SETTINGS and GOAWAY in one segment, of which core tells no watcher: all calls go to the other endpoint."""

    def call_all(channel: Any) -> None:
        ready(channel, 1)
        for kind in KINDS:
            for _ in range(10):
                assert kind.run(channel, timeout=HANGS_S) == kind.echo()
                assert kind.finish(kind.start(channel, timeout=HANGS_S)) == kind.echo()

    async with raw(lambda connection, stream: None, lambda connection: connection.send(settings(), goaway(0))) as peer:
        with lb.sync.channel(f"static:///{peer.address},{backend.address}") as channel:
            await asyncio.to_thread(call_all, channel)
    assert len(backend.received) == 80
