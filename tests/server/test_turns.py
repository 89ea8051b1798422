"""Handlers that compute hold up the event loop: they begin one at a time, and calls that come meanwhile are seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from lb.server import Admission, Concurrency, Limits
from lb.server.turns import Turns
from tests.support.stalls import hold_loop
from tests.support.wait import until

COMPUTES_S = 0.005
TWO = Limits(concurrency=Concurrency(limit=2, adaptive=False, queue=0))


def compute() -> None:
    """Use the processor for a while."""
    until = time.thread_time() + COMPUTES_S
    while time.thread_time() < until:
        pass


async def made_slow(turns: Turns) -> None:
    """Let handlers compute, until the next ones take turns."""

    async def takes_turns() -> bool:
        turn = asyncio.ensure_future(turns.turn())
        await asyncio.sleep(0)
        begun = turn.done()
        await turn
        compute()
        return not begun

    await until(takes_turns, every_s=0, within_s=30, what="handlers that compute take turns")


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


async def test_handlers_that_compute_begin_one_at_a_time() -> None:
    """Between two of them the loop goes round a few times, in which calls are taken in."""
    turns, rounds = Turns(), Rounds()
    await made_slow(turns)
    began: list[int] = []

    async def handler() -> None:
        await turns.turn()
        began.append(rounds.count)
        compute()

    rounds.go()
    await asyncio.gather(*(handler() for _ in range(5)))
    rounds.stop()
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(began)), began


async def test_no_handler_begins_while_calls_come() -> None:
    """As many as one more turn waits for; it does not wait for ever."""
    turns = Turns()
    await made_slow(turns)
    rounds = Rounds(lambda count: turns.came() if count <= 10 or count > 100 else None)
    rounds.go()
    await turns.turn()
    assert 10 < rounds.count <= 100
    compute()
    await until(lambda: asyncio.sleep(0, rounds.count > 100), every_s=0, within_s=30, what="calls come all the time")
    await turns.turn()
    rounds.stop()


async def test_handlers_that_compute_nothing_begin_at_once() -> None:
    """Else turns would cost them more than they need themselves. So do others again, once they compute no more."""
    turns, rounds = Turns(), Rounds()
    await made_slow(turns)

    async def at_once() -> bool:
        before = rounds.count
        await asyncio.gather(*(turns.turn() for _ in range(10)))
        return rounds.count < before + 5

    rounds.go()
    await until(at_once, every_s=0, within_s=30, what="handlers begin at once")
    rounds.stop()


async def test_a_handler_that_is_cancelled_takes_no_turn() -> None:
    """The others begin."""
    turns = Turns()
    await made_slow(turns)
    tasks = [asyncio.ensure_future(turns.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()
    await turns.turn()


@contextlib.asynccontextmanager
async def serving(limits: Limits) -> AsyncIterator[str]:
    """A server whose handlers compute; its address."""

    async def unary(request: bytes, context: Any) -> bytes:
        compute()
        return request

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        compute()
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
