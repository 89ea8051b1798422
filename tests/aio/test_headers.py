"""``initial_metadata()``: it comes as soon as headers do, and asking for it costs no retry."""

from __future__ import annotations

import asyncio

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import echo, fail
from tests.aio.kit import HANGS_S, IDEMPOTENT, NO_BREAKER, SS, SU, US, First, Kind, Told, channel_to, ready
from tests.support.http2 import Connection, raw

HEADERS = (("x-early", "1"),)


@pytest.mark.parametrize("kind", [SU, SS], ids=str)
async def test_headers_arrive_before_anything_is_written(backend: Backend, kind: Kind) -> None:
    """A client may wait for the headers before it sends its first message."""
    backend.script(echo(initial_metadata=HEADERS))
    async with channel_to(backend) as channel:
        call = kind.stub(channel)()
        async with asyncio.timeout(HANGS_S):
            assert ("x-early", "1") in tuple(await call.initial_metadata())
        await call.write(b"1")
        await call.done_writing()
        assert await (call.read() if kind.streams_responses else call) == b"1"


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_waiting_for_headers_costs_no_retry(backend: Backend, kind: Kind) -> None:
    """An attempt whose headers are empty, and that fails a moment later, is followed by another.

    Also when somebody waits for headers: to core, empty ones look like those of a failure, of which it tells the
    headers first and the status some turns of the loop later.
    """

    def answer(connection: Connection, stream: int) -> None:
        connection.headers(stream)
        asyncio.get_running_loop().call_soon(connection.end, stream, grpc.StatusCode.UNAVAILABLE.value[0], "away")

    async with raw(answer) as away:
        first, second = lb.Endpoint(away.address), lb.Endpoint(backend.address)
        async with lb.aio.channel(Told(first, second), policy=First(), retry=IDEMPOTENT, breaker=NO_BREAKER) as channel:
            await ready(channel, 2)
            call = kind.start(channel, timeout=HANGS_S)
            waiting = asyncio.ensure_future(call.initial_metadata())
            assert await kind.responses(call) == kind.echo()
            await waiting
            assert len(lb.attempts(call)) == 2


async def test_wait_for_connection_raises_when_every_attempt_failed(backend: Backend) -> None:
    """A stream of responses: no connection is an error. A server's status may come a moment after its empty headers."""
    backend.always(fail())
    async with channel_to(backend, retry=IDEMPOTENT) as channel:
        call = US.start(channel)

        async def connected_and_read() -> object:
            await call.wait_for_connection()
            return await call.read()

        with pytest.raises(grpc.aio.AioRpcError):
            await connected_and_read()


async def test_all_kinds_tell_headers_that_came_with_the_answer(backend: Backend, kind: Kind) -> None:
    """Asked after the call as well."""
    backend.script(echo(initial_metadata=HEADERS))
    async with channel_to(backend) as channel:
        call = kind.start(channel)
        assert await kind.responses(call) == kind.echo()
        assert ("x-early", "1") in tuple(await call.initial_metadata())
