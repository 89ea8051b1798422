"""The client itself is held (its loop, or the interpreter): what has arrived counts, and no endpoint is blamed."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import lb
from lb.aio import pulse
from lb.aio.consul import ConsulError
from lb.testing import Backend
from lb.testing.backend import METHODS, hang
from tests.aio.kit import HANGS_S, KINDS, SS, UU, Kind, failure, ready
from tests.support import doors
from tests.support.calls import unblamed
from tests.support.stalls import HOLDS, STRICT, addresses, hold_interpreter, hold_loop

__all__ = ["addresses"]

LIMIT_S = 0.6


@pytest.fixture(params=HOLDS)
def hold(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """What holds the client."""
    return HOLDS[request.param]


async def connected(addresses: list[str], **settings: Any) -> Any:
    """A channel to all of them, READY."""
    channel = lb.aio.channel("static:///" + ",".join(addresses), **settings)
    await ready(channel, len(addresses))
    return channel


async def under_way(kind: Kind, channel: Any, count: int = 6, **options: Any) -> list[Any]:
    """Tasks of so many calls, which have begun and have no answer yet: the loop has turned a few times only."""
    tasks = [asyncio.ensure_future(_run(kind, channel, options)) for _ in range(count)]
    for _ in range(4):
        await asyncio.sleep(0)
    return tasks


async def _run(kind: Kind, channel: Any, options: Any) -> tuple[list[bytes], int]:
    call = kind.start(channel, **options)
    return await kind.responses(call), len(lb.attempts(call))


@pytest.mark.parametrize("held_s", [LIMIT_S - 0.02, 1.0])
async def test_answers_that_arrived_meanwhile_count(
    addresses: list[str], kind: Kind, hold: Callable[[float], None], held_s: float
) -> None:
    """Held until just before ``attempt_timeout_s`` passes, or for longer: each first attempt is OK."""
    settings: dict[str, Any] = {
        "retry": lb.Retry(attempt_timeout_s=LIMIT_S, idempotent=METHODS),
        "breaker": lb.Breaker(**STRICT),
    }
    async with await connected(addresses, **settings) as channel:
        tasks = await under_way(kind, channel, timeout=HANGS_S)
        hold(held_s)
        for task in tasks:
            assert await task == (kind.echo(), 1)
        assert unblamed(channel), str(channel.snapshot())


async def test_five_seconds_are_as_one(addresses: list[str]) -> None:
    """The longest stall: no call of any kind is lost, none is sent twice."""
    settings: dict[str, Any] = {
        "retry": lb.Retry(attempt_timeout_s=LIMIT_S, idempotent=METHODS),
        "breaker": lb.Breaker(**STRICT),
    }
    async with await connected(addresses, **settings) as channel:
        tasks = {kind: await under_way(kind, channel, timeout=HANGS_S) for kind in KINDS}
        hold_interpreter(5)
        for kind, begun in tasks.items():
            for task in begun:
                assert await task == (kind.echo(), 1)
        assert unblamed(channel), str(channel.snapshot())


@pytest.mark.parametrize("kind", [UU, SS], ids=str)
async def test_slow_calls_are_those_of_endpoints(
    addresses: list[str], kind: Kind, hold: Callable[[float], None]
) -> None:
    """``slow_call_s`` counts the time for which the client ran, and so does the latency that policies read."""
    async with await connected(addresses, breaker=lb.Breaker(**STRICT, slow_call_s=1.0)) as channel:
        tasks = await under_way(kind, channel, timeout=HANGS_S)
        hold(1.5)
        for task in tasks:
            assert await task == (kind.echo(), 1)
        assert unblamed(channel), str(channel.snapshot())


@pytest.mark.parametrize("kind", [UU, SS], ids=str)
async def test_a_deadline_that_passed_before_anything_was_sent(
    addresses: list[str], kind: Kind, hold: Callable[[float], None]
) -> None:
    """The call fails, as with grpcio; the endpoint that was chosen for it is not the one that did not answer."""
    async with await connected(addresses, breaker=lb.Breaker(**STRICT, unanswered_s=1.0)) as channel:
        tasks = [asyncio.ensure_future(_run(kind, channel, {"timeout": 1.1})) for _ in range(6)]
        asyncio.get_running_loop().call_soon(hold, 1.5)
        ends: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        for ended in ends:
            assert isinstance(ended, tuple) or ended.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert unblamed(channel), str(channel.snapshot())


async def test_hedges_wait_for_what_has_arrived(addresses: list[str], hold: Callable[[float], None]) -> None:
    """No hedge is sent for an answer that lies in the socket."""
    settings: dict[str, Any] = {
        "retry": lb.Retry(idempotent=METHODS),
        "breaker": lb.Breaker(**STRICT),
        "hedging": lb.Hedging(delay_s=0.6),
    }
    async with await connected(addresses, **settings) as channel:
        tasks = await under_way(UU, channel, timeout=HANGS_S)
        hold(1)
        for task in tasks:
            assert await task == (UU.echo(), 1)
        assert unblamed(channel), str(channel.snapshot())


async def test_the_line_moves_on_after_a_stall(addresses: list[str], hold: Callable[[float], None]) -> None:
    """Calls that wait for a place wait ``queue_s`` of the time for which the client runs: none is refused."""
    limit = lb.ConcurrencyLimit(limit=1, queue=100, queue_s=1.0)
    async with await connected(addresses, limit=limit, breaker=lb.Breaker(**STRICT)) as channel:
        tasks = await under_way(UU, channel, 60, timeout=HANGS_S)
        hold(1.5)
        for task in tasks:
            assert await task == (UU.echo(), 1)
        assert unblamed(channel), str(channel.snapshot())


async def test_connections_stand_through_a_stall(
    addresses: list[str], hold: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Keepalive and health are core's own affair, which goes on: no connection is lost, no endpoint goes."""
    connection = lb.Connection(keepalive_s=0.2, keepalive_timeout_s=0.2)
    caplog.set_level(logging.DEBUG, "lb.channel")
    settings: dict[str, Any] = {"connection": connection, "breaker": lb.Breaker(**STRICT), "health": "shop"}
    async with await connected(addresses, **settings) as channel:
        before = len(caplog.records)
        hold(1.5)
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()
        moves = [record.getMessage() for record in caplog.records[before:]]
        assert not [words for words in moves if "idle" in words or "transient_failure" in words]
        assert unblamed(channel), str(channel.snapshot())


async def test_a_silent_endpoint_is_still_found_out(backend: Backend) -> None:
    """What was held does not count, all else does: after the stall ``attempt_timeout_s`` runs on and passes."""
    backend.always(hang())
    retry = lb.Retry(attempt_timeout_s=LIMIT_S)
    async with await connected([backend.address], retry=retry, breaker=lb.Breaker(**STRICT)) as channel:
        tasks = await under_way(UU, channel, 1)
        hold_loop(1)
        error = await failure(tasks[0])
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "attempt_timeout_s" in str(error.details())
        assert channel.snapshot().endpoints[0].breaker == "OPEN"


# ---- what waits for Consul ----


class _Agent(http.server.BaseHTTPRequestHandler):
    """Answers each question at once, in a thread of its own."""

    def do_GET(self) -> None:
        body = json.dumps([]).encode()
        self.send_response(200)
        self.send_header("X-Consul-Index", "7")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


async def test_consuls_answer_that_arrived_meanwhile_counts() -> None:
    """A read whose time-out passes while the loop is held brings what Consul has sent."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = doors.consul().AgentClient(doors.consul().agents_from(f"127.0.0.1:{server.server_port}")[0])
        try:
            await client.get("/v1/health/service/x", timeout_s=HANGS_S)  # connected
            asking = asyncio.ensure_future(client.get("/v1/health/service/x", timeout_s=0.2))
            for _ in range(4):
                await asyncio.sleep(0)
            hold_loop(0.6)
            assert (await asking).headers["X-Consul-Index"] == "7"
        finally:
            await client.close()
            server.shutdown()
            thread.join()


async def test_consul_that_says_nothing_is_an_error_all_the_same() -> None:
    """The time for which the loop ran passes the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client = doors.consul().AgentClient(doors.consul().agents_from(f"127.0.0.1:{mute.getsockname()[1]}")[0])
        try:
            with pytest.raises(ConsulError, match=r"no answer within 0\.2 s"):
                await client.get("/v1/health/service/x", timeout_s=0.2)
        finally:
            await client.close()


# ---- the time-out itself ----


async def test_a_timeout_counts_the_time_for_which_the_loop_ran() -> None:
    """What lies in the socket is read; what never comes is a TimeoutError."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)

        def send_and_hold() -> None:
            theirs.send(b"x")
            hold_loop(0.6)

        asyncio.get_running_loop().call_later(0.01, send_and_hold)
        async with pulse.timeout(0.2):
            assert await reader.readexactly(1) == b"x"
        with pytest.raises(TimeoutError):
            async with pulse.timeout(0.1):
                await reader.readexactly(1)
        writer.close()
        await writer.wait_closed()


async def test_a_cancellation_is_not_a_timeout() -> None:
    """As with ``asyncio.timeout``."""

    async def wait() -> None:
        async with pulse.timeout(HANGS_S):
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
