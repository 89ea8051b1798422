"""Connectivity, in all worlds: `get_state`, `wait_for_state_change` and `channel_ready`."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from lb.testing import Backend
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, UU
from tests.aio.worlds import Side, World

IDLE = grpc.ChannelConnectivity.IDLE
CONNECTING = grpc.ChannelConnectivity.CONNECTING
READY = grpc.ChannelConnectivity.READY
FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE
SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


async def reach(channel: Any, wanted: grpc.ChannelConnectivity) -> list[grpc.ChannelConnectivity]:
    """Watch until the state is that one; the states seen on the way."""
    seen = [channel.get_state()]
    async with asyncio.timeout(HANGS_S):
        while seen[-1] is not wanted:
            await channel.wait_for_state_change(seen[-1])
            seen.append(channel.get_state())
    return seen


async def test_a_new_channel_is_idle_and_stays_so(world: World) -> None:
    """Neither looking, nor waiting, nor making stubs connects it."""
    for kind in KINDS:
        kind.stub(world.channel)
    for _ in range(3):
        assert world.channel.get_state() is IDLE
        assert world.channel.get_state(False) is IDLE
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await world.channel.wait_for_state_change(IDLE)
    assert world.channel.get_state() is IDLE


async def test_asking_it_to_connect(world: World) -> None:
    """The state from before is told, and READY follows by way of CONNECTING."""
    assert world.channel.get_state(try_to_connect=True) is IDLE
    assert await reach(world.channel, READY)
    assert world.channel.get_state(True) is READY


async def test_a_first_call_connects_it(world: World) -> None:
    """A watcher of IDLE is told."""
    watching = asyncio.ensure_future(world.channel.wait_for_state_change(IDLE))
    await asyncio.sleep(0)
    assert await UU.run(world.channel) == UU.echo()
    async with asyncio.timeout(HANGS_S):
        assert await watching is None
    assert world.channel.get_state() is READY


async def test_channel_ready(world: World) -> None:
    """Connects and waits; returns nothing, also the second time and for several who wait."""
    async with asyncio.timeout(HANGS_S):
        assert await asyncio.gather(*(world.channel.channel_ready() for _ in range(3))) == [None] * 3
        assert await world.channel.channel_ready() is None
    assert world.channel.get_state() is READY


async def test_waiting_for_another_state_than_the_present_one(world: World) -> None:
    """Returns at once."""
    async with asyncio.timeout(HANGS_S):
        for state in (CONNECTING, READY, FAILING):
            assert await world.channel.wait_for_state_change(state) is None


async def test_several_watchers(world: World) -> None:
    """Each is told; one that was cancelled disturbs nobody."""
    watchers = [asyncio.ensure_future(world.channel.wait_for_state_change(IDLE)) for _ in range(4)]
    await asyncio.sleep(0)
    watchers[0].cancel()
    await world.channel.channel_ready()
    async with asyncio.timeout(HANGS_S):
        seen = await asyncio.gather(*watchers, return_exceptions=True)
    assert isinstance(seen[0], asyncio.CancelledError)
    assert seen[1:] == [None] * 3


async def test_a_dead_server(side: Side, free_port: int) -> None:
    """TRANSIENT_FAILURE, `channel_ready` waits; READY when a server comes, and a call goes through."""
    async with side.make(f"127.0.0.1:{free_port}") as channel:
        channel.get_state(try_to_connect=True)
        await reach(channel, FAILING)
        waiting = asyncio.ensure_future(channel.channel_ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        async with Backend(port=free_port):
            async with asyncio.timeout(HANGS_S):
                await waiting
            assert channel.get_state() is READY
            assert await UU.run(channel) == UU.echo()


async def test_a_server_that_goes_and_comes_back(side: Side, fleet: Fleet) -> None:
    """The state leaves READY when the last one is gone, and is READY again afterwards."""
    backends = await fleet(side.backends)
    async with side.to(backends) as channel:
        await channel.channel_ready()
        for backend in backends:
            await backend.stop()
        async with asyncio.timeout(HANGS_S):
            await channel.wait_for_state_change(READY)
        assert channel.get_state() is not READY
        await backends[0].start()
        channel.get_state(try_to_connect=True)
        async with asyncio.timeout(HANGS_S):
            await channel.channel_ready()
        assert await UU.run(channel) == UU.echo()


async def test_a_closed_channel(world: World) -> None:
    """SHUTDOWN, however it is asked; who waited is told, who begins to wait gets ``UsageError``."""
    watching = asyncio.ensure_future(world.channel.wait_for_state_change(IDLE))
    await asyncio.sleep(0)
    await world.channel.close()
    async with asyncio.timeout(HANGS_S):
        assert await watching is None
    assert world.channel.get_state() is world.channel.get_state(True) is SHUTDOWN
    for state in (SHUTDOWN, READY):
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            await world.channel.wait_for_state_change(state)
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        await world.channel.channel_ready()


async def test_closing_ends_who_waits_for_ready(side: Side, free_port: int) -> None:
    """``UsageError``, not a wait for ever."""
    channel = side.make(f"127.0.0.1:{free_port}")
    waiting = asyncio.ensure_future(channel.channel_ready())
    await reach(channel, FAILING)
    await channel.close()
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            await waiting


@pytest.mark.parametrize("state", [None, 7, "READY"], ids=str)
async def test_a_state_of_no_kind(world: World, state: Any) -> None:
    """``AttributeError``."""
    with pytest.raises(AttributeError, match="value"):
        await world.channel.wait_for_state_change(state)
