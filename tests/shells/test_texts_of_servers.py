"""What a server writes: its caller gets it as it came; logs and messages have it on one line, and not all of it."""

from __future__ import annotations

import logging

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import fail
from tests.aio.kit import AT_ONCE
from tests.shells.kit import Shell
from tests.support.wait import until

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
FORGED = "away\n2026-01-01 ERROR lb.channel: all is lost \x1b[31m" + "x" * 1000
SHOWN = r"UNAVAILABLE: away\n2026-01-01 ERROR lb.channel: all is lost \x1b[31mxxx"


@pytest.mark.parametrize("kind", KINDS)
async def test_details(shell: Shell, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The call's own are the server's; the attempts, the snapshot and each line of the log show them."""
    backend.always(fail(grpc.StatusCode.UNAVAILABLE, FORGED))
    retry = lb.Retry(idempotent=["/lb.testing.Echo/*"], wait=AT_ONCE)
    with caplog.at_level(logging.DEBUG, "lb"):
        breaker = lb.Breaker(consecutive_failures=3, failure_ratio=None, open_s=60)
        async with shell.open(backend.address, retry=retry, breaker=breaker) as channel:
            error = await shell.failure(channel, kind=kind)

            async def told() -> bool:
                return "breaker open" in caplog.text

            await until(told, within_s=30, what="the breaker opens", every_s=0.01)
            (endpoint,) = channel.snapshot().endpoints
    assert error.details() == FORGED
    attempts = lb.attempts(error)
    assert len(attempts) > 1
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lb")]
    for text in (*map(repr, attempts), attempts[1].why, endpoint.last_error, *lines):
        assert text.isprintable(), text
    for text in (repr(attempts[0]), attempts[1].why, endpoint.last_error):
        assert SHOWN in text
        assert len(text) < 500
    assert any(SHOWN in line for line in lines)
    assert max(map(len, lines)) < 300 * len(attempts)
