"""What no server has seen is sent again, whatever the method; what only looks so is not.

Against servers outside of Python and raw HTTP/2, which do what grpcio's do not: end connections while calls wait
for a stream, refuse streams, close what has just begun.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

import lb
from lb.core.outcome import Origin
from lb.core.words import TABLE, Meaning, Words
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY
from tests.aio.kit import (
    HANGS_S,
    KINDS,
    UU,
    Kind,
    channel_to,
    eventually,
    failure,
    in_flight,
    ready,
)
from tests.support.http2 import Connection, Narrow, goaway, greet, raw, settings
from tests.support.passing_on import EACH_WORDING, PassingOn, passing_on
from tests.support.process import Process, gopeer

CALLERS = 64


@pytest.fixture
async def gateway() -> Any:
    """A server that passes on words."""
    async with passing_on({kind.name: kind.method for kind in KINDS}) as peer:
        yield peer


@EACH_WORDING
async def test_a_server_that_only_says_so_is_not_believed(gateway: PassingOn, kind: Kind, words: Words) -> None:
    """Its handler has run, and its connection stands: a method that may not run twice runs once."""
    gateway.say(words)
    before = gateway.calls
    async with lb.aio.channel(f"static:///{gateway.address}") as channel:
        await ready(channel, 1)
        call = kind.start(channel)
        assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE
        (attempt,) = lb.attempts(call)
    assert gateway.calls == before + 1
    assert attempt.outcome is not None
    expected = {Meaning.REFUSED: Origin.REFUSED, Meaning.NO_CREDENTIALS: Origin.CALLER}
    assert attempt.outcome.origin is expected.get(words.meaning, Origin.PEER)


async def test_who_says_so_again_and_again_is_left_out(gateway: PassingOn) -> None:
    """Failures in the words of a closing connection count as any other once that is seen to stand."""
    gateway.say(next(words for words in TABLE if words.meaning is Meaning.GIVEN_BACK))
    async with lb.aio.channel(f"static:///{gateway.address}") as channel:
        await ready(channel, 1)
        for _ in range(5):
            await failure(UU.start(channel))
        assert channel.snapshot().endpoints[0].breaker == "OPEN"


# ---- a server in Go ----


async def go(*arguments: object) -> Process:
    """Started."""
    return await gopeer("go", *arguments).start()


@pytest.mark.gopeer
async def test_calls_that_wait_for_a_stream_outlive_their_connection(kind: Kind) -> None:
    """Connections of 0.3 s, five streams: what waits in core goes to the next connection, and nothing runs twice."""
    servers = [await go("--max-age", "300ms", "--max-streams", 5, "--latency", 0.01) for _ in range(2)]
    try:
        target = "static:///" + ",".join(server.address for server in servers)
        async with lb.aio.channel(target) as channel:
            await ready(channel, 2)
            again: Counter[str] = Counter()

            async def worker() -> int:
                done = 0
                while not again["transparent"] or done < 8:
                    call = kind.start(channel, timeout=HANGS_S)
                    await kind.responses(call)
                    again.update(attempt.why.partition(":")[0] for attempt in lb.attempts(call))
                    done += 1
                return done

            async with asyncio.timeout(2 * HANGS_S):
                done = sum(await asyncio.gather(*(worker() for _ in range(CALLERS))))
            assert {endpoint.breaker for endpoint in channel.snapshot().endpoints} == {"CLOSED"}
        assert set(again) <= {"", "transparent"}
        assert sum([(await server.tell())["calls"] for server in servers]) == done
    finally:
        for server in servers:
            await server.stop()


# ---- refused streams ----


IDEMPOTENT = lb.Retry(idempotent=[UNARY_UNARY])


async def test_streams_above_a_servers_limit_wait_here() -> None:
    """Twelve calls, five places: seven are refused once, then wait their turn. None fails, no breaker counts it."""
    narrow = Narrow(5)
    async with raw(narrow) as peer, lb.aio.channel(f"static:///{peer.address}", retry=IDEMPOTENT) as channel:
        await ready(channel, 1)
        calls = [UU.start(channel, timeout=HANGS_S) for _ in range(12)]
        await eventually(lambda: narrow.refused == 7 and in_flight(channel) == 5)
        for _ in range(12):
            await eventually(lambda: narrow.open)
            narrow.answer()
        assert await asyncio.gather(*calls) == [b"done"] * 12
        assert narrow.refused == 7
        (endpoint,) = channel.snapshot().endpoints
        assert (endpoint.breaker, endpoint.in_flight) == ("CLOSED", 0)
        attempts = [lb.attempts(call) for call in calls]
        assert {attempt.why.partition(":")[0] for each in attempts for attempt in each[1:]} == {"transparent"}

        later = [UU.start(channel, timeout=HANGS_S) for _ in range(12)]
        for _ in range(12):
            await eventually(lambda: narrow.open)
            narrow.answer()
        assert await asyncio.gather(*later) == [b"done"] * 12
        assert narrow.refused == 7


async def test_a_refused_stream_goes_elsewhere(backend: Backend) -> None:
    """At once, where another endpoint has room; no method that may not run twice does so for words alone."""
    narrow = Narrow(0)
    async with raw(narrow) as peer:
        for idempotent in (True, False):
            retry = IDEMPOTENT if idempotent else lb.Retry()
            async with lb.aio.channel(f"static:///{peer.address},{backend.address}", retry=retry) as channel:
                await ready(channel, 2)
                calls = [UU.start(channel, timeout=HANGS_S) for _ in range(2)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
                refused = [answer for answer in ended if isinstance(answer, grpc.aio.AioRpcError)]
                assert len(refused) == (0 if idempotent else 1)
                (attempt,) = (lb.attempts(call)[0] for call in calls if lb.attempts(call)[0].address == peer.address)
                assert attempt.outcome is not None
                assert attempt.outcome.origin is Origin.REFUSED
    assert narrow.refused == 2
    assert len(backend.received) == 3


async def one_too_many(narrow: Narrow, channel: Any) -> list[Any]:
    """Three calls over a connection for two streams: one is refused, and waits."""
    await ready(channel, 1)
    calls = [UU.start(channel, timeout=HANGS_S) for _ in range(3)]
    await eventually(lambda: narrow.refused == 1 and in_flight(channel) == 2)
    return calls


async def test_a_learnt_limit_grows_though_no_call_ends() -> None:
    """Streams may run for hours: who waits beside them must not wait for their end where the server has room."""
    narrow = Narrow(2)
    async with raw(narrow) as peer, lb.aio.channel(f"static:///{peer.address}", retry=IDEMPOTENT) as channel:
        calls = await one_too_many(narrow, channel)
        narrow.limit = 3
        await eventually(lambda: len(narrow.open) == 3)
        narrow.answer(3)
        assert await asyncio.gather(*calls) == [b"done"] * 3


async def test_a_learnt_limit_is_forgotten_with_its_connection() -> None:
    """The next connection may be to another server, or to one that was told better."""
    narrow = Narrow(2)
    async with raw(narrow) as peer, lb.aio.channel(f"static:///{peer.address}", retry=IDEMPOTENT) as channel:
        calls = await one_too_many(narrow, channel)
        narrow.limit = 3
        narrow.answer(2)
        await eventually(lambda: narrow.open)
        narrow.answer()
        assert await asyncio.gather(*calls) == [b"done"] * 3
        peer.connections[0].goaway(2**31 - 1)
        peer.connections[0].close()
        await eventually(lambda: len(peer.connections) == 2)
        await ready(channel, 1)
        calls = [UU.start(channel, timeout=HANGS_S) for _ in range(3)]
        await eventually(lambda: len(narrow.open) == 3)
        narrow.answer(3)
        assert await asyncio.gather(*calls) == [b"done"] * 3
    assert narrow.refused == 1


async def test_more_callers_than_grpcios_servers_take(fleet: Any) -> None:
    """They refuse streams that they have no room for: 150 callers, a hundred places, and no call fails."""
    (backend,) = await fleet(1, options=(("grpc.max_concurrent_streams", 100),))
    async with channel_to(backend, retry=IDEMPOTENT, breaker=lb.Breaker()) as channel:
        await ready(channel, 1)
        refused = 0

        async def worker() -> None:
            nonlocal refused
            for _ in range(20):
                call = UU.start(channel, timeout=HANGS_S)
                await UU.responses(call)
                refused += len(lb.attempts(call)) - 1

        await asyncio.gather(*(worker() for _ in range(150)))
        assert channel.snapshot().endpoints[0].breaker == "CLOSED"
    assert refused < 3000 / 5


# ---- connections that close as they begin ----


def closing(connection: Connection) -> None:
    """SETTINGS and GOAWAY in one segment; the connection stays open."""
    connection.send(settings(), goaway(0))


def nothing(connection: Connection, stream: int) -> None:
    """No request can come."""


@pytest.mark.alone  # core's news of the loss may come so late that the text has no proof
@pytest.mark.parametrize("policy", ["round_robin", "p2c", "least_request", "pick_first"])
async def test_a_connection_that_closes_as_it_begins_costs_no_call(backend: Backend, kind: Kind, policy: str) -> None:
    """Core never says that it is closing, and gives back each call: all go to the other endpoint, whatever they are."""
    async with (
        raw(nothing, closing) as peer,
        lb.aio.channel(f"static:///{peer.address},{backend.address}", policy=policy) as channel,
    ):
        await ready(channel, 1)
        for _ in range(10):
            calls = [kind.start(channel, timeout=HANGS_S) for _ in range(5)]
            for call in calls:
                assert await kind.responses(call) == kind.echo()
        closed = next(e for e in channel.snapshot().endpoints if e.address == peer.address)
        assert closed.breaker == "CLOSED"
    assert len(backend.received) == 50


async def test_alone_such_a_server_is_connected_to_again() -> None:
    """Its calls end with that reason until it is better; then they go through."""
    better = False

    def hello(connection: Connection) -> None:
        (greet if better else closing)(connection)

    async with (
        raw(lambda connection, stream: connection.answer(stream, b"done"), hello) as peer,
        lb.aio.channel(f"static:///{peer.address}") as channel,
    ):
        while len(peer.connections) < 3:
            error = await failure(UU.start(channel, timeout=HANGS_S))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.sleep(0.005)  # what is refused at once is not asked again at once
        better = True
        assert await UU.run(channel, timeout=HANGS_S, wait_for_ready=True) == [b"done"]
