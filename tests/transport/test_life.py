"""From making a channel to closing it: connectivity states, cancellation, what is left behind."""

from __future__ import annotations

import asyncio

import grpc

import lb
from lb.testing import Backend
from lb.testing.backend import hang
from tests.transport.kit import UU, Told, channel_to, lb_tasks


async def test_a_close_that_was_cancelled_can_be_repeated(backend: Backend) -> None:
    """Who cancels ``close(grace)`` and closes again leaves no connection and no call behind."""
    backend.always(hang())
    channel = channel_to(backend)
    call = UU.start(channel)
    await backend.until(lambda: backend.in_flight == 1)
    closing = asyncio.ensure_future(channel.close(30))
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await channel.close()
    try:
        assert call.cancelled()
        assert lb_tasks() == []
    finally:
        call.cancel()
        channel._channel.close()
        await channel._channel.wait_closed()


async def test_leaving_idle_is_a_change_of_state() -> None:
    """A watcher of IDLE is told as soon as the channel begins to resolve."""
    async with lb.aio.channel(Told()) as channel:
        watching = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        await asyncio.sleep(0)
        assert channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.CONNECTING
        try:
            async with asyncio.timeout(0.5):
                await watching
        finally:
            watching.cancel()
