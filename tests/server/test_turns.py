"""Handlers that compute hold up the event loop: they begin one at a time, and calls that come meanwhile are seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from lb.server import Admission, Concurrency, Limits
from lb.server.turns import Turns
from tests.support.stalls import hold_loop
from tests.support.wait import until

HOLDS_S = 0.005
TWO = Limits(concurrency=Concurrency(limit=2, adaptive=False, queue=0))


async def made_late(turns: Turns) -> None:
    """Hold the loop up, as handlers do, until that is seen."""

    async def late() -> bool:
        turns.came()
        hold_loop(0.05)
        return turns.late

    await until(late, every_s=0.001, within_s=30, what="the loop is late")


class Rounds:
    """Counts how often the loop has gone round."""

    def __init__(self, each: Callable[[int], None] = lambda _: None) -> None:
        self.count = 0
        self._each = each
        self._handle: asyncio.Handle | None = None

    def go(self) -> None:
        """One more."""
        self.count += 1
        self._each(self.count)
        self._handle = asyncio.get_running_loop().call_soon(self.go)

    def stop(self) -> None:
        """Count no more."""
        assert self._handle is not None
        self._handle.cancel()


async def test_a_loop_in_time_is_not_late() -> None:
    """Calls that hold nothing up need no turn."""
    turns = Turns()
    for _ in range(100):
        turns.came()
        await asyncio.sleep(0)
    assert not turns.late


async def test_a_loop_that_was_late_recovers() -> None:
    """Once nothing holds it up, no turn is needed, although no more calls come."""
    turns = Turns()
    await made_late(turns)

    async def in_time() -> bool:
        return not turns.late

    await until(in_time, within_s=30, what="the loop is in time")


async def test_handlers_that_hold_the_loop_begin_one_at_a_time() -> None:
    """Between two of them the loop goes round a few times, in which calls are taken in."""
    turns, rounds = Turns(), Rounds()
    began: list[int] = []

    async def handler() -> None:
        await turns.turn()
        began.append(rounds.count)
        hold_loop(HOLDS_S)

    rounds.go()
    await asyncio.gather(*(handler() for _ in range(5)))
    rounds.stop()
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(began)), began


async def test_no_handler_begins_while_calls_come() -> None:
    """As many as one more turn waits for; it does not wait for ever."""
    turns = Turns()
    rounds = Rounds(lambda count: turns.came() if count <= 20 or count > 100 else None)
    rounds.go()
    await turns.turn()
    first = rounds.count
    assert 20 < first <= 100
    await until(lambda: asyncio.sleep(0, rounds.count > 100), every_s=0, within_s=30, what="calls come all the time")
    await turns.turn()
    rounds.stop()


async def test_handlers_that_hold_nothing_begin_together() -> None:
    """Else turns would cost them more than they need themselves."""
    turns, rounds = Turns(), Rounds()
    rounds.go()
    await asyncio.gather(*(turns.turn() for _ in range(1000)))
    rounds.stop()
    assert rounds.count < 1000


async def test_a_handler_that_is_cancelled_takes_no_turn() -> None:
    """The others begin."""
    turns = Turns()
    tasks = [asyncio.ensure_future(turns.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()
    await turns.turn()


@contextlib.asynccontextmanager
async def serving(limits: Limits) -> AsyncIterator[str]:
    """A server whose handlers hold its loop up; its address."""

    async def unary(request: bytes, context: Any) -> bytes:
        hold_loop(HOLDS_S)
        return request

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        hold_loop(HOLDS_S)
        yield request

    server = grpc.aio.server(interceptors=[Admission(limits)], options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def refused(address: str, calls: int) -> int:
    """So many calls at once, from another thread; how many of them were refused."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/a.B/Unary")
        running = [call.future(b"x", timeout=60) for _ in range(calls)]
        return sum(each.code() is grpc.StatusCode.UNAVAILABLE for each in running)


async def test_calls_that_come_meanwhile_are_refused() -> None:
    """They do not wait in grpcio until all before them are done."""
    async with serving(TWO) as address:

        async def most() -> bool:
            return await asyncio.to_thread(refused, address, 60) > 40

        await until(most, every_s=0.001, within_s=30, what="most of the calls at once are refused")
