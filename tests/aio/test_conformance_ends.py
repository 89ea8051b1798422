"""A server that ends a stream early, at a forced moment: what is under way then ends as with grpcio's channel.

See `tests.aio.ending` for how it is forced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from tests.aio.ending import ABORTED, HEADERS, Ending, Step, answers_then_fails, ends_well, fails
from tests.aio.kit import HANGS_S, SS, Kind
from tests.aio.worlds import REQUEST_STREAMS, RESPONSE_STREAMS, SIDES, Side


@pytest.fixture(params=SIDES[:2], ids=str)
def one_endpoint(request: pytest.FixtureRequest) -> Side:
    """Grpcio's channel, and ours."""
    side: Side = request.param
    return side


async def write(call: Any) -> None:
    """One more message."""
    assert await call.write(b"more") is None


async def half_close(call: Any) -> None:
    """No more messages."""
    assert await call.done_writing() is None


async def ask_for_headers(call: Any) -> None:
    """There may be none."""
    await call.initial_metadata()


async def ask_for_code(call: Any) -> None:
    """The end's."""
    assert await call.code() is ABORTED


# Not a write that is about to begin: its message is never taken. Then grpcio says INTERNAL, and we the status.
UNDER_WAY = [
    pytest.param(operation, begun, id=f"{operation.__name__}{' has begun' if begun else ''}")
    for operation in (write, half_close, ask_for_headers, ask_for_code)
    for begun in (True, False)
    if begun or operation is not write
]


@pytest.mark.parametrize(("operation", "begun"), UNDER_WAY)
@pytest.mark.parametrize("then", [fails, answers_then_fails], ids=["no headers", "headers"])
@REQUEST_STREAMS
async def test_what_is_under_way_as_the_server_ends(
    one_endpoint: Side, ending: Ending, kind: Kind, then: Step, operation: Any, begun: bool
) -> None:
    """A write whose message was taken returns, a half-close never fails; the status is the server's."""
    async with one_endpoint.make(ending.address) as channel, asyncio.timeout(HANGS_S):
        await channel.channel_ready()
        for _ in range(3):
            ending.next(then, reads=2 if operation is write else 1)
            call = kind.stub(channel)()
            await call.write(b"first")
            doing = asyncio.ensure_future(_do(operation, call))
            if begun:
                await asyncio.sleep(0)
            ending.end()
            await doing
            assert await call.code() is ABORTED
            assert await call.details() == "scripted"
            assert (HEADERS[0] in tuple(await call.initial_metadata())) is (then is answers_then_fails)


async def _do(operation: Callable[[Any], Coroutine[Any, Any, None]], call: Any) -> None:
    await operation(call)


@RESPONSE_STREAMS
async def test_a_reader_as_the_server_ends(one_endpoint: Side, ending: Ending, kind: Kind) -> None:
    """It gets the status."""
    async with one_endpoint.make(ending.address) as channel, asyncio.timeout(HANGS_S):
        await channel.channel_ready()
        for _ in range(3):
            ending.next(answers_then_fails)
            # Without an iterator of requests: grpcio's writer makes INTERNAL of one that meets the end of its call.
            call = kind.stub(channel)() if kind.streams_requests else kind.start(channel)
            reading = asyncio.ensure_future(_read(call))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ending.end()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reading
            assert (raised.value.code(), raised.value.details()) == (ABORTED, "scripted")


async def _read(call: Any) -> object:
    return await call.read()


async def test_the_server_ends_well_at_the_half_close(one_endpoint: Side, ending: Ending) -> None:
    """Its OK comes while the half-close is under way: that is no error."""
    async with one_endpoint.make(ending.address) as channel, asyncio.timeout(HANGS_S):
        for _ in range(20):
            ending.next(ends_well, reads=None, echo=True)
            call = SS.stub(channel)()
            await call.write(b"1")
            assert await call.read() == b"1"
            closing = asyncio.ensure_future(_do(half_close, call))
            await asyncio.sleep(0)
            ending.end()
            await closing
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
