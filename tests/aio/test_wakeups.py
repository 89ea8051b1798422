"""An event loop takes all wake-ups of grpcio's thread in one turn, and loses none."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from lb.aio import wakeups
from lb.testing import Backend
from tests.aio.kit import HANGS_S, UU, channel_to


class Poller:
    """grpcio's queue and socket, with the same reader; an event is a function."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], object]] = deque()
        self.read_socket, self._write_socket = socket.socketpair()
        self.read_socket.setblocking(False)
        self.turns = 0

    def post(self, event: Callable[[], object]) -> None:
        """As grpcio's thread does it: the event, then the byte."""
        self._queue.append(event)
        self._write_socket.send(b"1")

    def _handle_events(self, loop: asyncio.AbstractEventLoop) -> None:
        self.turns += 1
        self.read_socket.recv(1)
        while True:
            try:
                event = self._queue.popleft()
            except IndexError:
                return
            event()

    def bind(self) -> None:
        """Let the running loop read, as grpcio does for a new channel, and then ours."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.read_socket, functools.partial(self._handle_events, loop))
        assert wakeups.take_all()

    def unbind(self) -> None:
        """Read no more in the running loop."""
        asyncio.get_running_loop().remove_reader(self.read_socket)

    def close(self) -> None:
        """Close the sockets."""
        self.read_socket.close()
        self._write_socket.close()


@pytest.fixture
def poller() -> Iterator[Poller]:
    """Closed at the end."""
    with contextlib.closing(Poller()) as made:
        yield made


async def turn() -> None:
    """The loop looks at its sockets at least once."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_burst_is_one_turn(poller: Poller) -> None:
    """Each event is handled, in order, and grpcio's reader runs once for all of them."""
    seen: list[int] = []

    async def read() -> None:
        poller.bind()
        for number in range(100):
            poller.post(functools.partial(seen.append, number))
        await turn()
        assert seen == list(range(100))
        assert poller.turns == 1
        poller.post(functools.partial(seen.append, 100))
        await turn()
        poller.unbind()

    asyncio.run(read())
    assert seen[-1] == 100


def test_an_error_leaves_nothing_behind(poller: Poller) -> None:
    """As of an event for a loop that is closed: those behind it are handled, and the error is reported."""
    reported: list[dict[str, Any]] = []
    seen: list[str] = []

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    async def read() -> None:
        poller.bind()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        for event in (closed, closed, functools.partial(seen.append, "behind"), closed):
            poller.post(event)
        await turn()
        poller.unbind()

    asyncio.run(read())
    assert seen == ["behind"]
    assert [str(context["exception"]) for context in reported] == ["Event loop is closed"] * 3
    assert "_handle_events" in repr(reported[0]["handle"])  # by which `lb.sync` knows what to be silent about


def test_ctrl_c_leaves_nothing_behind(poller: Poller) -> None:
    """It may come between two events. If the loop runs on, the second one is handled."""
    seen: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        loop.call_soon(poller.bind)
        poller.post(interrupted)
        poller.post(functools.partial(seen.append, "behind"))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(turn())
        loop.run_until_complete(turn())
        loop.remove_reader(poller.read_socket)
    assert seen == ["behind"]


@pytest.mark.parametrize("theirs", [0, 1], ids=["all ours", "one is grpcio's"])
def test_no_event_is_lost_between_loops(poller: Poller, theirs: int) -> None:
    """Several loops in several threads read one socket: each event is handled once, also the last of all."""
    count = 3000
    handled: list[int] = []
    ready = threading.Barrier(4)
    done = threading.Event()

    async def work(ours: bool) -> None:
        loop = asyncio.get_running_loop()
        if ours:
            poller.bind()
        else:
            loop.set_exception_handler(lambda *_: None)  # grpcio's own reader raises when it finds no byte
            loop.add_reader(poller.read_socket, functools.partial(poller._handle_events, loop))
        ready.wait(HANGS_S)
        await asyncio.to_thread(done.wait)
        poller.unbind()

    threads = [threading.Thread(target=asyncio.run, args=(work(number >= theirs),)) for number in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(HANGS_S)
    last = threading.Event()
    for number in range(count):
        poller.post(functools.partial(handled.append, number))
    poller.post(last.set)
    came = last.wait(HANGS_S)
    done.set()
    for thread in threads:
        thread.join(HANGS_S)
    assert came
    assert sorted(handled) == list(range(count))


async def test_it_reads_for_channels(backend: Backend) -> None:
    """A channel of ours is enough; grpcio's own channels in that loop go on working."""
    async with channel_to(backend) as channel, grpc.aio.insecure_channel(backend.address) as theirs:
        assert await asyncio.gather(*(UU.run(channel) for _ in range(20))) == [UU.echo()] * 20
        assert wakeups.take_all()
        assert await asyncio.gather(*(UU.run(theirs) for _ in range(20))) == [UU.echo()] * 20


def test_where_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that no channel is in, or one without a selector of asyncio's, is left as it is."""

    async def taken() -> bool:
        return wakeups.take_all()

    assert not asyncio.run(taken())
    monkeypatch.setattr(asyncio, "get_running_loop", object)
    assert not wakeups.take_all()


def test_it_can_be_turned_off() -> None:
    """By the environment, for the whole process."""
    code = """if True:
        import asyncio, lb
        from lb.aio import wakeups
        async def main():
            async with lb.aio.channel("static:///127.0.0.1:1") as channel:
                channel.get_state(try_to_connect=True)
                print(wakeups.take_all())
        asyncio.run(main())
    """
    for value, expected in (("1", "True"), ("0", "False")):
        environment = os.environ | {"LB_ALL_WAKEUPS": value}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True, env=environment)
        assert done.stdout.split() == [expected], done.stderr
