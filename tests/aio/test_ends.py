"""Where streams end better than with grpcio's asyncio channel: it loses headers, and the status of a late write."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

import lb
from lb.aio.outbox import Outbox
from tests.aio.ending import ABORTED, HEADERS, Ending, answers_then_fails, fails
from tests.aio.kit import HANGS_S, IDEMPOTENT, NO_BREAKER, Kind
from tests.aio.worlds import REQUEST_STREAMS, RESPONSE_STREAMS


def channel_to(ending: Ending) -> Any:
    """With retries of everything."""
    return lb.aio.channel(f"static:///{ending.address}", breaker=NO_BREAKER, retry=ALL)


ALL = lb.Retry(idempotent=IDEMPOTENT.idempotent, wait=IDEMPOTENT.wait, retry=lambda state: True)


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for"])
@RESPONSE_STREAMS
async def test_headers_that_come_with_the_status(ending: Ending, kind: Kind, asked: bool) -> None:
    """They are told, and they commit the call: no retry, though the strategy would (gRFC A6)."""
    async with channel_to(ending) as channel, asyncio.timeout(HANGS_S):
        await channel.channel_ready()
        for turns in range(6):
            ending.next(answers_then_fails)
            call = kind.start(channel)
            waiting = asyncio.ensure_future(call.initial_metadata()) if asked else None
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns:
                ending.end()
            else:
                ending.let_end()
            assert await call.code() is ABORTED
            if waiting is not None:
                assert HEADERS[0] in tuple(await waiting)
            assert HEADERS[0] in tuple(await call.initial_metadata())
            assert len(lb.attempts(call)) == 1


@REQUEST_STREAMS
async def test_a_write_that_comes_too_late(ending: Ending, kind: Kind) -> None:
    """The end is on its way here as the write begins: it raises the server's status (grpcio: INTERNAL)."""
    async with lb.aio.channel(f"static:///{ending.address}") as channel, asyncio.timeout(HANGS_S):
        ending.next(fails)
        call = kind.stub(channel)()
        await call.write(b"first")
        ending.end()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.write(b"late")
        assert raised.value.code() is ABORTED


class Attempt:
    """A lower call that takes what is written; ``then`` is called before it says so."""

    def __init__(self, then: Any) -> None:
        self.taken: list[bytes] = []
        self._then = then

    def done(self) -> bool:
        """It goes on."""
        return False

    async def send_serialized_message(self, message: bytes) -> None:
        """Take it."""
        self.taken.append(message)
        self._then()

    async def send_receive_close(self) -> None:
        """Take that."""
        self._then()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_the_end_comes_before_the_word_that_a_message_was_taken(kept: bool) -> None:
    """The write returns: its message was delivered. So does the half-close."""
    async with asyncio.timeout(HANGS_S):
        for half_close in (False, True):
            outbox = Outbox()
            if not kept:
                outbox.forget()
            attempt: Any = Attempt(outbox.settled)
            outbox.attach(attempt)
            outbox.metadata_sent()
            await (outbox.half_close() if half_close else outbox.send(b"1"))
            assert attempt.taken == ([] if half_close else [b"1"])


async def test_a_message_taken_by_an_attempt_that_fails_is_written(ending: Ending) -> None:
    """The write returns though another attempt has to follow, and that one gets the message, too."""
    outbox = Outbox()
    first: Any = Attempt(outbox.detach)
    second: Any = Attempt(lambda: None)
    async with asyncio.timeout(HANGS_S):
        for attempt in (first, second):
            outbox.attach(attempt)
            outbox.metadata_sent()
            if attempt is first:
                await outbox.send(b"1")
        await outbox.send(b"2")
    assert (first.taken, second.taken) == ([b"1"], [b"1", b"2"])
