"""Streams of requests: what writers see, what is replayed, what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tenacity import wait_fixed

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS, fail, hang
from tests.aio.kit import HANGS_S, SS, SU, Kind, channel_to, ready

STREAMS = pytest.mark.parametrize("kind", [SU, SS], ids=str)


@STREAMS
async def test_a_writer_waits_between_two_attempts(backend: Backend, kind: Kind) -> None:
    """A writer that never pauses must neither fill the memory nor keep the loop from making the next attempt."""
    backend.script(fail(), hang())
    enough = 20_000
    written = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal written
        while written < enough:
            written += 1
            yield message

    message = bytes(10_000)
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(0.05))
    async with channel_to(backend, retry=retry) as channel:
        await ready(channel, 1)
        call = kind.stub(channel)(requests())
        await backend.until(lambda: len(backend.received) == 2)
        call.cancel()
        assert written < enough


async def test_a_write_to_a_call_that_has_failed_raises_its_status(backend: Backend) -> None:
    """The first write that can not be sent raises the call's error; a message is never lost without a word."""
    backend.script(fail(grpc.StatusCode.NOT_FOUND, "no such thing", after=1))
    async with channel_to(backend) as channel:
        call = SS.stub(channel)()
        await call.write(b"1")
        assert await call.read() == b"1"
        error = await _written_to_its_end(call, b"more")
        # grpcio's upper layer has another error for who writes when the end is known already.
        assert isinstance(error, (grpc.aio.AioRpcError, asyncio.InvalidStateError))
        assert await call.details() == "no such thing"
        if isinstance(error, grpc.aio.AioRpcError):
            assert error.details() == "no such thing"


async def test_a_write_ends_though_the_answers_are_not_read(backend: Backend) -> None:
    """The server answered, then failed: who only writes learns that, and does not wait for ever."""
    backend.script(fail(grpc.StatusCode.NOT_FOUND, after=1))
    async with channel_to(backend) as channel:
        call = SS.stub(channel)()
        error = await _written_to_its_end(call, bytes(200_000))
        assert isinstance(error, (grpc.aio.AioRpcError, asyncio.InvalidStateError))


async def _written_to_its_end(call: Any, message: bytes, within_s: float = HANGS_S) -> BaseException:
    """Write until that raises; what it raised."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                await call.write(message)
                await asyncio.sleep(0)
    except Exception as error:  # noqa: BLE001  # the caller looks at it
        return error
