"""A channel without calls closes its connections after a while, and nobody notices."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import grpc
from tenacity import wait_fixed

import lb
from lb.aio import Channel
from lb.testing.backend import METHODS, Gate, fail, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import SS, UU, Kind, Told, channel_to, endpoints, eventually, failure, lb_tasks
from tests.support import doors
from tests.support.wait import longer

SOON = lb.Connection(idle_s=0.05)
QUICK = lb.Connection(idle_s=0.02)


def asleep(channel: Channel) -> bool:
    """Whether it has no connection, by its own will."""
    return all(endpoint.connectivity == "IDLE" for endpoint in channel.snapshot().endpoints) and not lb_tasks()


async def test_it_closes_its_connections_and_connects_again(fleet: Fleet, kind: Kind) -> None:
    """Again and again; no call sees it."""
    backends = await fleet(2)
    async with channel_to(*backends, connection=SOON) as channel:
        for _ in range(3):
            assert await kind.run(channel) == kind.echo()
            await eventually(lambda: asleep(channel), "all connections are closed")
            assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        assert await asyncio.gather(*(kind.run(channel) for _ in range(20))) == [kind.echo()] * 20


async def test_a_running_call_keeps_it_awake(fleet: Fleet) -> None:
    """However long it says nothing."""
    (one,) = await fleet(1)
    gate = Gate()
    one.always(hold(gate))
    async with channel_to(one, connection=QUICK) as channel:
        for kind in (UU, SS):
            call = kind.start(channel)
            await one.until(lambda: one.in_flight == 1)
            for _ in range(10):
                await asyncio.sleep(0.01)
                assert channel.get_state() is grpc.ChannelConnectivity.READY
            gate.open()
            assert await kind.responses(call) == kind.echo()


async def test_a_pause_between_attempts_is_survived(fleet: Fleet, kind: Kind) -> None:
    """The channel fell asleep in the pause: the retry wakes it."""

    async def sleeps_in(pause_s: float) -> bool:
        (one,) = await fleet(1)
        one.script(fail())
        retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(pause_s), jitter=0.0)
        async with channel_to(one, connection=QUICK, retry=retry) as channel:
            answers = asyncio.ensure_future(kind.responses(kind.start(channel)))
            await one.until(lambda: one.received)
            await eventually(lambda: asleep(channel) or answers.done(), "it sleeps")
            slept = not answers.done()
            assert await answers == kind.echo()
        return slept

    for pause_s in longer(0.2):
        if slept := await sleeps_in(pause_s):
            break
    assert slept


async def test_what_it_could_not_reach_is_tried_anew(fleet: Fleet) -> None:
    """It fell asleep with its only endpoint down. Long after, a call waits for the connection, which is made."""
    (one,) = await fleet(1)
    async with channel_to(one, connection=SOON) as channel:
        await UU.run(channel)
        await one.stop()
        assert (await failure(UU.start(channel))).code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: asleep(channel))
        await one.start()
        assert await UU.run(channel) == UU.echo()


async def test_asking_to_connect_wakes_it(fleet: Fleet) -> None:
    """Without a call."""
    backends = await fleet(2)
    async with channel_to(*backends, connection=lb.Connection(idle_s=0.3)) as channel:
        await UU.run(channel)
        await eventually(lambda: asleep(channel))

        def connected() -> bool:
            channel.get_state(try_to_connect=True)  # again, should it fall asleep before it is done
            return all(endpoint.connectivity == "READY" for endpoint in channel.snapshot().endpoints)

        await eventually(connected, "it has connected")


async def test_endpoints_that_change_in_its_sleep(fleet: Fleet) -> None:
    """New ones are not connected to before the next call; those that went are gone."""
    one, two = await fleet(2)
    told = Told(*endpoints(one))
    async with lb.aio.channel(told, connection=SOON) as channel:
        await UU.run(channel)
        await eventually(lambda: asleep(channel))
        told.say(*endpoints(two))
        assert asleep(channel)
        assert await UU.run(channel) == UU.echo()
    assert (len(one.received), len(two.received)) == (1, 1)


async def test_closing_it_in_its_sleep(fleet: Fleet) -> None:
    """As any other time; no timer wakes it later."""
    (one,) = await fleet(1)
    channel = channel_to(one, connection=QUICK)
    await UU.run(channel)
    await eventually(lambda: asleep(channel))
    await channel.close()
    await asyncio.sleep(0.05)
    assert lb_tasks() == []


async def test_its_timer_does_not_keep_a_forgotten_channel(fleet: Fleet) -> None:
    """It is freed like one without idling."""
    (one,) = await fleet(1)
    channel: Any = channel_to(one, connection=lb.Connection(idle_s=60))
    await UU.run(channel)
    logical = weakref.ref(doors.engine(channel))
    await channel.close()
    del channel

    def freed() -> bool:
        gc.collect()
        return logical() is None

    await eventually(freed, "the channel is freed")
