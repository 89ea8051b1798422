"""Servers that end their connections again and again: no call fails, and none is carried out twice.

One thing nobody can hide: a server that closes while bytes of the client are on their way resets the
connection, and takes the answers on it along. It happens to about 1 call in 20,000 of such short-lived ones;
a method that is not idempotent fails then, as it must.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import grpc
import pytest

import lb
from lb.aio.subchannel import Subchannel
from lb.core.candidate import Candidate, Connectivity
from lb.core.connection import Pace
from lb.testing import Backend
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    ONCE,
    UU,
    Kind,
    channel_to,
    eventually,
    in_flight,
    ready,
)
from tests.support import doors

CALLS = 1000
AT_ONCE = 32


@pytest.mark.parametrize("age_ms", [20, 100])
async def test_the_end_of_a_connection_is_not_seen(fleet: Fleet, kind: Kind, age_ms: int) -> None:
    """Methods that are not idempotent, connections of a short life: each call reaches a handler exactly once."""
    backends = await fleet(3, options=(("grpc.max_connection_age_ms", age_ms),))
    failed: Counter[str] = Counter()
    numbers = iter(range(CALLS))
    async with channel_to(*backends) as channel:

        async def worker() -> None:
            for number in numbers:
                try:
                    await kind.run(channel, (str(number).encode(),))
                except grpc.aio.AioRpcError as error:
                    failed[f"{error.code().name}: {error.details()}"] += 1

        async with asyncio.timeout(60):
            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        assert in_flight(channel) == 0
    peers = {received.peer for backend in backends for received in backend.received}
    assert len(peers) > len(backends), "no connection ended: nothing was tested"
    resets = sum(count for words, count in failed.items() if "reset by peer" in words or "Broken pipe" in words)
    assert resets == failed.total() <= CALLS // 100, failed
    seen = Counter(message for backend in backends for received in backend.received for message in received.messages)
    assert set(seen.values()) == {1}
    assert CALLS - resets <= len(seen) <= CALLS


async def test_a_connection_that_comes_and_goes_unseen_is_opened_again(backend: Backend) -> None:
    """Both while the loop was busy: the state is the same as before, and yet somebody has to connect."""
    async with channel_to(backend) as channel:
        await ready(channel, 1)
        for _ in range(3):
            await backend.stop()
            await eventually(lambda: channel.snapshot().endpoints[0].connectivity != "READY")
            await backend.start()
            await ready(channel, 1)
        (candidate,) = doors.candidates(channel)
        watched: list[Any] = []

        class Deaf:
            """A core that never tells of a change from IDLE, as when it is back there before anyone looks."""

            def __init__(self, core: Any) -> None:
                self._core = core

            def __getattr__(self, name: str) -> Any:
                return getattr(self._core, name)

            async def watch_connectivity_state(self, last: int, deadline: float | None) -> bool:
                if last == grpc.ChannelConnectivity.IDLE.value[0] and len(watched) < 3:
                    watched.append(deadline)
                    assert deadline is not None, "it would wait for ever"
                    await asyncio.sleep(0)
                    return False
                found: bool = await self._core.watch_connectivity_state(last, deadline)
                return found

        with doors.another_core(candidate, Deaf):
            await doors.left(candidate, grpc.ChannelConnectivity.IDLE)
            assert len(watched) == 3


async def test_a_loss_is_told_even_if_the_connection_stands_again() -> None:
    """It was away for less than a turn of the loop: what comes of calls depends on it."""
    told: list[Connectivity] = []

    class Lower:
        watched = 0

        async def watch_connectivity_state(self, last: int, deadline: float | None) -> bool:
            self.watched += 1
            if self.watched > 1:
                await asyncio.Event().wait()
            return True

        def call(self) -> None:
            pass

        def close(self) -> None:
            pass

    class Core:
        _channel = Lower()

        def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
            return grpc.ChannelConnectivity.READY

    def connect(*_: Any) -> Any:
        return Core()

    def tell(candidate: Candidate, state: Connectivity, trouble: str, **_: bool) -> None:
        told.append(state)

    candidate = Candidate(lb.Endpoint("h:1"), lb.Breaker().new_state())
    pace = Pace(lb.Connection(), Random(1))
    watched = Subchannel(candidate, (), None, None, tell, pace, connect=connect)
    await eventually(lambda: len(told) == 3)
    assert told == [Connectivity.READY, Connectivity.IDLE, Connectivity.READY]
    task = watched.close()
    assert task is not None
    await asyncio.wait([task])


async def test_with_retries_off_an_end_is_seen(fleet: Fleet) -> None:
    """Transparent retries are retries: off means off. (Most calls do not meet one.)"""
    backends = await fleet(2)
    async with channel_to(*backends, retry=ONCE) as channel:
        calls = [UU.start(channel) for _ in range(50)]
        await asyncio.gather(*calls)
        assert all(len(lb.attempts(call)) == 1 for call in calls)
