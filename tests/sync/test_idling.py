"""A channel for threads that closes its connections when it is not used: nobody may notice."""

from __future__ import annotations

import threading
import time
from random import Random
from typing import Any

import grpc

import lb
from tests.sync.conftest import Fleet
from tests.sync.kit import HANGS_S, IDEMPOTENT, UU, Kind, Server, channel_to, eventually, in_flight

State = grpc.ChannelConnectivity
SOON = lb.Connection(idle_s=0.05)
QUICK = lb.Connection(idle_s=0.01)


def asleep(channel: Any) -> bool:
    """Whether it has no connection, by its own will."""
    snapshot = channel.snapshot()
    return snapshot.state == "IDLE" and bool(snapshot.endpoints)


def test_it_closes_its_connections_and_connects_again(fleet: Fleet, kind: Kind) -> None:
    """Again and again, for calls that block and calls that do not."""
    servers = fleet(2)
    with channel_to(*servers, connection=SOON) as channel:
        for _ in range(2):
            assert kind.run(channel, timeout=HANGS_S) == kind.echo()
            eventually(lambda: asleep(channel), "all connections are closed")
            assert kind.finish(kind.start(channel, timeout=HANGS_S)) == kind.echo()
            eventually(lambda: asleep(channel), "all connections are closed")


def test_asking_to_connect_wakes_it(server: Server) -> None:
    """As a channel that has not been used yet, it is told the state from before."""
    # Long enough for a busy machine to connect in, before it falls asleep again.
    with channel_to(server, connection=lb.Connection(idle_s=0.5)) as channel:
        UU.run(channel)
        eventually(lambda: asleep(channel), "all connections are closed")
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append, try_to_connect=True)
        eventually(lambda: State.READY in states)
        channel.unsubscribe(states.append)
        assert states[0] is State.IDLE


def test_calls_that_meet_its_falling_asleep(fleet: Fleet) -> None:
    """Calls from many threads, with pauses about as long as it takes to fall asleep, are all answered."""
    servers = fleet(2)
    with channel_to(*servers, connection=QUICK, retry=IDEMPOTENT) as channel:
        failed: list[Exception] = []

        def work(seed: int) -> None:
            rng = Random(seed)
            for _ in range(60):
                try:
                    assert UU.run(channel, timeout=HANGS_S) == UU.echo()
                except Exception as error:  # noqa: BLE001  # the test tells it
                    failed.append(error)
                time.sleep(rng.uniform(0.0, 0.03))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
        assert failed == []
        eventually(lambda: in_flight(channel) == 0)
