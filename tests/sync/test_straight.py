"""Messages of a committed stream, which go from the caller to core and back past the library's loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import pytest

import lb
from lb.shared.fork import POLLER
from lb.testing.backend import UNARY_UNARY
from tests.sync.conftest import Fleet
from tests.sync.kit import (
    HANGS_S,
    IDEMPOTENT,
    SS,
    US,
    UU,
    Kind,
    Server,
    channel_to,
    eventually,
    fail,
    failure,
    in_flight,
    ready,
)


def idle(channel: Any) -> bool:
    """Whether no call of it runs."""
    return in_flight(channel) == 0


MANY = [f"{number}".encode() for number in range(300)]


@pytest.mark.parametrize("kind", [US, SS], ids=str)
def test_responses_are_made_by_their_reader(server: Server, kind: Kind) -> None:
    """A deserializer runs in the thread that reads, so one that waits holds up no other call."""
    with channel_to(server) as channel:
        ready(channel, 1)
        made: list[int] = []
        holds = threading.Event()

        def deserialize(data: bytes) -> bytes:
            made.append(threading.get_ident())
            if len(made) == 2:
                holds.wait(HANGS_S)
            return data

        got: list[list[bytes]] = []
        reader = threading.Thread(
            target=lambda: got.append(list(kind.stub(channel, response_deserializer=deserialize)(kind.argument())))
        )
        reader.start()
        eventually(lambda: len(made) == 2)
        for other in (UU, US, SS):
            assert other.finish(other.start(channel)) == other.echo()
        holds.set()
        reader.join(HANGS_S)
        assert got == [kind.echo()]
        assert set(made) == {reader.ident}


@pytest.mark.parametrize("status_first", [False, True])
def test_a_response_that_can_not_be_made_after_others(server: Server, status_first: bool) -> None:
    """It ends the call with INTERNAL for who reads, whether core has the status by then or not."""
    with channel_to(server) as channel:
        ready(channel, 1)

        def deserialize(data: bytes) -> bytes | None:
            if data != MANY[2]:
                return data
            if status_first:
                eventually(partial(idle, channel))
            return None

        call = SS.stub(channel, response_deserializer=deserialize)(iter(MANY[:3]))
        assert [next(call), next(call)] == MANY[:2]
        error = failure(partial(next, call))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "Exception deserializing response!"


def test_order_in_many_threads(fleet: Fleet) -> None:
    """Each stream has its own messages, all of them, in order, however many run at once. No thread is left."""
    servers = fleet(2, workers=16)
    before = set(threading.enumerate())
    with channel_to(*servers) as channel:
        ready(channel, 2)
        failures: list[Any] = []

        def exchange(number: int) -> None:
            for turn in range(3):
                requests = [b"%d %d " % (number, turn) + data for data in MANY]
                responses = SS.finish(SS.start(channel, requests, timeout=HANGS_S))
                if responses != requests:
                    failures.append(responses)

        threads = [threading.Thread(target=exchange, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
        assert failures == []
        assert in_flight(channel) == 0
    # grpcio's own thread stays as long as a channel object is kept.
    eventually(lambda: all(POLLER in thread.name for thread in set(threading.enumerate()) - before))


def test_what_was_kept_comes_first(fleet: Fleet) -> None:
    """A second attempt gets all requests in order, though the caller goes on to write as soon as it is answered."""
    servers = fleet(2)
    with channel_to(*servers, retry=IDEMPOTENT, policy="round_robin") as channel:
        ready(channel, 2)
        for _ in range(5):
            for server in servers:
                server.reset()
            servers[0].script(fail(grpc.StatusCode.UNAVAILABLE))
            for _ in range(2):
                assert SS.run(channel, MANY, timeout=HANGS_S) == MANY
            assert len(servers[0].received) + len(servers[1].received) == 3


def test_an_answer_that_waits_for_the_next_request(server: Server) -> None:
    """Reader and writer take turns: neither waits for what the other has not asked for yet."""
    turns = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        for data in MANY:
            yield data
            assert turns.acquire(timeout=HANGS_S)

    with channel_to(server) as channel:
        ready(channel, 1)
        got = []
        for response in SS.stub(channel)(requests()):
            got.append(response)
            turns.release()
        assert got == MANY


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_an_end_while_messages_go_to_and_fro(server: Server, end: str) -> None:
    """Every reader learns of it, at whatever message it is; none waits on."""
    for moment in range(0, 60, 3):
        channel = channel_to(server)
        ready(channel, 1)
        going = threading.Event()

        def requests(moment: int = moment, going: threading.Event = going) -> Iterator[bytes]:
            for number in range(100_000):
                if number == moment:
                    going.set()
                yield b"x"

        calls = [SS.stub(channel)(requests()) for _ in range(2)]
        errors: list[Any] = []

        def read(call: Any, errors: list[Any] = errors) -> None:
            errors.append(failure(lambda: list(call)))

        readers = [threading.Thread(target=read, args=(call,)) for call in calls]
        for reader in readers:
            reader.start()
        assert going.wait(HANGS_S)
        if end == "close":
            channel.close()
        else:
            for call in calls:
                call.cancel()
        for reader in readers:
            reader.join(HANGS_S)
        assert [error.code() for error in errors] == [grpc.StatusCode.CANCELLED] * 2
        if end == "cancel":
            eventually(partial(idle, channel))
            channel.close()


def test_beside_a_loop_of_asyncio(server: Server) -> None:
    """All loops of a process read one socket of grpcio's: whichever takes an event, it gets to who waits for it."""
    with channel_to(server) as channel:
        ready(channel, 1)
        over = threading.Event()

        async def call_on() -> int:
            calls = 0
            async with lb.aio.channel(f"static:///{server.address}") as other:
                echo = other.unary_unary(UNARY_UNARY)
                while not over.is_set():
                    assert await echo(b"x", timeout=HANGS_S) == b"x"
                    calls += 1
            return calls

        counts: list[int] = []
        beside = threading.Thread(target=lambda: counts.append(asyncio.run(call_on())))
        beside.start()
        for _ in range(5):
            assert SS.run(channel, MANY, timeout=HANGS_S) == MANY
        over.set()
        beside.join(HANGS_S)
        assert counts[0] > 0


def test_a_deadline_between_two_messages(server: Server) -> None:
    """Who waits for a message that never comes learns of the deadline."""
    gate = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from MANY[:5]
        gate.wait(HANGS_S)

    with channel_to(server) as channel:
        ready(channel, 1)
        call = SS.stub(channel)(requests(), timeout=0.5)
        assert [next(call) for _ in range(5)] == MANY[:5]
        assert failure(partial(next, call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(partial(idle, channel))
        gate.set()
