"""What a closing connection gives back is sent again, also where a method may not run twice.

A server of raw HTTP/2 frames does exactly what each test says, so grpcio's own words for it are under test, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import lb
from lb.core.outcome import Origin
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY
from tests.aio.kit import HANGS_S, NO_BREAKER, UU, First, failure, ready
from tests.support.http2 import Answer, Connection, raw
from tests.support.releases import worded

_WORDS = "Stream removed (GOAWAY received; Error code: 0; Debug Text: bye)"
NOTHING = lb.Retry(budget=lb.Budget(ratio=0, min_per_s=0))
"""No method is idempotent, and there is no budget."""


def refuse(connection: Connection, stream: int) -> None:
    """Say that this request was not looked at, and end the connection in good order."""
    connection.goaway(stream - 2 if stream > 1 else 0)


def pretend(connection: Connection, stream: int) -> None:
    """Answer in the words that core has for a GOAWAY, over a connection that goes on."""
    connection.trailers(stream, grpc.StatusCode.UNAVAILABLE.value[0], _WORDS)


def cut(connection: Connection, stream: int) -> None:
    """End the connection in good order, but not before this request was taken."""
    connection.goaway(stream)
    connection.close()


@asynccontextmanager
async def pair(answer: Answer, backend: Backend, **settings: Any) -> AsyncIterator[Any]:
    """A channel that begins at a raw server and has the backend for what follows.

    Not by ``pick_first``, which would stay with the backend when that is connected first.
    """
    async with (
        raw(answer) as peer,
        lb.aio.channel(
            f"static:///{peer.address},{backend.address}", policy=First(), breaker=NO_BREAKER, **settings
        ) as channel,
    ):
        await ready(channel, 2)
        yield channel


async def test_what_a_goaway_gives_back_is_sent_again(backend: Backend) -> None:
    """At once, elsewhere, without budget, though the method may not run twice."""
    async with pair(refuse, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        assert await UU.responses(call) == UU.echo()
        first, second = lb.attempts(call)
        assert first.outcome is not None
        assert first.outcome.origin in (Origin.UNPROCESSED, Origin.CLOSING)
        assert second.why.startswith("transparent: ")
    assert "grpc-previous-rpc-attempts" not in backend.received[0].metadata


async def test_not_with_retries_off(backend: Backend) -> None:
    """Off is off."""
    async with pair(refuse, backend, retry=lb.Retry(enabled=False)) as channel:
        error = await failure(UU.start(channel, timeout=HANGS_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert backend.received == []


async def test_words_alone_are_not_believed(backend: Backend) -> None:
    """A server may pass on what its own client said: the method has run, and its connection stands."""
    async with pair(pretend, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "GOAWAY received" in (error.details() or "")
        assert len(lb.attempts(call)) == 1
    assert backend.received == []


async def test_what_was_taken_is_not_sent_again(backend: Backend) -> None:
    """The connection is lost after a GOAWAY that counts the call in: it may have run."""
    async with pair(cut, backend, retry=NOTHING) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert len(lb.attempts(call)) == 1
    async with pair(cut, backend, retry=lb.Retry(idempotent=[UNARY_UNARY])) as channel:
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()


@pytest.mark.parametrize("answer", [refuse, pretend], ids=["goaway", "words"])
async def test_how_core_words_it(answer: Answer) -> None:
    """The installed grpcio, with its own retries off: what the channel reads. A new wording must be known here."""
    async with (
        raw(answer) as peer,
        grpc.aio.insecure_channel(peer.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        call: Any = channel.unary_unary(UNARY_UNARY)
        error = await failure(call(b"x", timeout=HANGS_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == (worded(_WORDS) if answer is refuse else _WORDS)
        assert not error.trailing_metadata()
