"""From making a channel to closing it: connectivity states, cancellation, what is left behind."""

from __future__ import annotations

import asyncio
import gc
from itertools import pairwise

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import Gate, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    HANGS_S,
    UU,
    Kind,
    Told,
    channel_to,
    endpoints,
    eventually,
    failure,
    in_flight,
    lb_tasks,
)
from tests.support import doors

IDLE = grpc.ChannelConnectivity.IDLE
READY = grpc.ChannelConnectivity.READY
FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE


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
        doors.engine(channel).close()
        await doors.engine(channel).wait_closed()


async def test_leaving_idle_is_a_change_of_state() -> None:
    """A watcher of IDLE is told as soon as the channel begins to resolve."""
    async with lb.aio.channel(Told()) as channel:
        watching = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        await asyncio.sleep(0)
        assert channel.get_state(try_to_connect=True) is IDLE  # what it was; from now on:
        assert channel.get_state() is grpc.ChannelConnectivity.CONNECTING
        try:
            async with asyncio.timeout(HANGS_S):
                await watching
        finally:
            watching.cancel()


def test_a_channel_is_made_without_an_event_loop() -> None:
    """At import time, say: nothing is started, and it can be looked at."""
    asyncio.set_event_loop(None)  # as in a thread, or after asyncio.run
    told = Told(note="nobody")
    channel = lb.aio.channel(told)
    assert channel.get_state() is IDLE
    assert channel.snapshot().endpoints == ()
    assert not channel.snapshot().resolved
    assert "not resolved yet" in str(channel.snapshot())
    assert repr(channel) == "<lb.aio.Channel told>"
    assert told.started == 0

    async def use() -> grpc.StatusCode:
        async with channel:
            error: grpc.aio.AioRpcError = await failure(UU.start(channel))
            return error.code()

    assert asyncio.run(use()) is grpc.StatusCode.UNAVAILABLE
    assert (told.started, told.closed) == (1, 1)


async def test_nothing_starts_before_the_first_use(backend: Backend) -> None:
    """Neither making a channel, nor a stub, nor looking at the state does; closing it unused is quiet."""
    told = Told(*endpoints(backend))
    async with lb.aio.channel(told) as channel:
        UU.stub(channel)
        assert channel.get_state() is IDLE
        channel.snapshot()
        assert told.started == 0
        assert lb_tasks() == []
    assert (told.started, told.closed) == (0, 1)


async def test_channel_ready_connects_and_waits(fleet: Fleet) -> None:
    """It starts the channel; one connected endpoint is enough."""
    (up,) = await fleet(1)
    down = Backend("down")
    await down.start()
    await down.stop()
    async with channel_to(down, up) as channel:
        async with asyncio.timeout(HANGS_S):
            await channel.channel_ready()
        assert channel.get_state() is READY


async def test_states_follow_the_connections(backend: Backend) -> None:
    """READY, and after the server's end TRANSIENT_FAILURE, and READY again when it is back; watchers see each."""
    async with channel_to(backend) as channel:
        seen = [channel.get_state(try_to_connect=True)]

        async def reach(wanted: grpc.ChannelConnectivity) -> None:
            async with asyncio.timeout(HANGS_S):
                while seen[-1] is not wanted:
                    await channel.wait_for_state_change(seen[-1])
                    seen.append(channel.get_state())

        await reach(READY)
        await backend.stop()
        await reach(FAILING)
        await backend.start()
        await reach(READY)
        assert all(one is not other for one, other in pairwise(seen))
        assert grpc.ChannelConnectivity.SHUTDOWN not in seen


async def test_a_set_without_endpoints_is_a_failure_of_its_own() -> None:
    """TRANSIENT_FAILURE, since a call would fail; CONNECTING while nothing is resolved."""
    told = Told()
    async with lb.aio.channel(told) as channel:
        channel.get_state(try_to_connect=True)
        assert channel.get_state() is grpc.ChannelConnectivity.CONNECTING
        told.say(note="nobody")
        assert channel.get_state() is FAILING


async def test_closing_wakes_who_waits_for_a_state(backend: Backend) -> None:
    """As in grpcio: the change is to SHUTDOWN."""
    for channel in (channel_to(backend), grpc.aio.insecure_channel(backend.address)):
        watching = asyncio.ensure_future(channel.wait_for_state_change(IDLE))
        await asyncio.sleep(0)
        await channel.close()
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(watching, return_exceptions=True)
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_close_with_grace_lets_calls_end(backend: Backend, kind: Kind) -> None:
    """The running call ends well, new ones are refused meanwhile, and closing returns when it ended."""
    gate = Gate()
    backend.script(hold(gate))
    channel = channel_to(backend)
    call = kind.start(channel)
    await backend.until(lambda: backend.in_flight == 1)
    closing = asyncio.ensure_future(channel.close(30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        kind.start(channel)
    gate.open()
    async with asyncio.timeout(HANGS_S):
        assert await kind.responses(call) == kind.echo()
        await closing
    assert lb_tasks() == []


async def test_a_forgotten_channel_cleans_up(backend: Backend) -> None:
    """Nobody closed it: its connections and its resolver end with it."""
    told = Told(*endpoints(backend))
    channel = lb.aio.channel(told)
    await UU.run(channel)
    del channel
    await eventually(lambda: gc.collect() >= 0 and lb_tasks() == [], "its tasks have ended")
    assert told.closed == 1


async def test_two_channels_are_two(backend: Backend) -> None:
    """Closing one leaves the other's connection alone, though core may share it."""
    async with channel_to(backend) as one:
        async with channel_to(backend) as other:
            await UU.run(one)
            await UU.run(other)
        assert await UU.run(one) == UU.echo()


async def test_a_call_that_could_not_be_made_is_not_kept(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection was closed just now, and grpcio refuses: the caller gets that, and nothing of the call stays."""

    def closed(*_: object) -> None:
        raise grpc.aio.UsageError("Channel is closed.")

    async with channel_to(backend) as channel:
        await UU.run(channel)  # the first call of a method goes another way
        (candidate,) = doors.candidates(channel)
        with monkeypatch.context() as patched:
            patched.setattr(candidate.handle, "call", closed)
            with pytest.raises(grpc.aio.UsageError):
                UU.start(channel)
        assert doors.running(channel) == set()
        assert in_flight(channel) == 0
        await UU.run(channel)
