"""``initial_metadata()``: it comes as soon as headers do, and asking for it costs no retry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from lb.aio import _grpcio
from lb.testing import Backend
from lb.testing.backend import echo, fail
from tests.transport.conftest import Fleet
from tests.transport.kit import HANGS_S, IDEMPOTENT, SS, SU, US, First, Kind, channel_to, ready

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


class LateStatus:
    """grpcio's lower call whose empty headers come some turns of the loop before its failure.

    Both stand in one frame, yet core tells them one after the other: under load other callbacks
    come between.
    """

    def __init__(self) -> None:
        self._initial_metadata: tuple[Any, ...] | None = None
        self._status: Any = None
        self._callbacks: list[Callable[[], None]] = []
        self._over = asyncio.Event()

    async def initiate_unary_stream(self, request: bytes, metadata: Any, *context: Any) -> None:
        """Return with the headers; the status follows."""
        self._initial_metadata = ()
        self._failing = asyncio.ensure_future(self._fail())

    async def initiate_stream_stream(self, metadata: Any, metadata_sent: Callable[[], None], *context: Any) -> None:
        """The same; messages may be sent."""
        metadata_sent()
        await self.initiate_unary_stream(b"", metadata)

    async def _fail(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        self._status = _grpcio.AioRpcStatus(grpc.StatusCode.UNAVAILABLE.value[0], "away", (), "")
        self._over.set()
        for callback in self._callbacks:
            callback()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back at the end."""
        self._callbacks.append(callback)

    def done(self) -> bool:
        """Whether the status is there."""
        return self._status is not None

    async def initial_metadata(self) -> Any:
        """Empty, and there from the beginning."""
        return ()

    async def status(self) -> Any:
        """The status, once it is there."""
        await self._over.wait()
        return self._status

    async def receive_serialized_message(self) -> Any:
        """None came."""
        await self._over.wait()
        return _grpcio.EOF

    async def send_serialized_message(self, message: bytes) -> None:
        """Goes nowhere."""

    async def send_receive_close(self) -> None:
        """Goes nowhere."""

    def cancel(self, details: str) -> None:
        """It ends by itself."""


class Handle:
    """A subchannel whose calls are all `LateStatus`."""

    def call(self, *arguments: Any) -> LateStatus:
        """A new one."""
        return LateStatus()

    def connected(self) -> bool:
        """It is."""
        return True


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_waiting_for_headers_costs_no_retry(fleet: Fleet, kind: Kind) -> None:
    """An attempt that fails without headers is followed by another, also when somebody waits for headers."""
    away, good = await fleet(2)
    async with channel_to(away, good, policy=First(), retry=IDEMPOTENT) as channel:
        await ready(channel, 2)
        candidate = next(c for c in channel._channel.balancer.candidates if c.endpoint.address == away.address)
        real, candidate.handle = candidate.handle, Handle()
        try:
            call = kind.start(channel, timeout=HANGS_S)
            waiting = asyncio.ensure_future(call.initial_metadata())
            assert await kind.responses(call) == kind.echo()
            await waiting
        finally:
            candidate.handle = real


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
