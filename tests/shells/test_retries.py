"""Which failed attempts are followed by another, where, and how often."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tenacity import stop_after_attempt, stop_never, wait_fixed

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS, fail, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import AT_ONCE, HANGS_S, IDEMPOTENT, First, Kind, target
from tests.shells.kit import Shell

COUNT_KEY = "grpc-previous-rpc-attempts"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@contextlib.asynccontextmanager
async def pair(shell: Shell, fleet: Fleet, **settings: Any) -> AsyncIterator[tuple[Backend, Backend, Any]]:
    """Two backends and a connected channel that prefers the first."""
    one, two = await fleet(2)
    async with shell.open(target(one, two), policy=First(), **settings) as channel:
        await shell.ready(channel, 2)
        yield one, two, channel


# ---- which failures ----


async def test_a_call_that_is_not_idempotent_fails_at_once(
    shell: Shell, fleet: Fleet, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection lost in mid-call is UNAVAILABLE, too: it proves nothing. At DEBUG the log says why it ended so."""
    async with pair(shell, fleet) as (one, two, channel):
        one.always(fail())
        with caplog.at_level(logging.DEBUG, "lb.channel"):
            assert (await shell.failure(channel, kind=kind.name)).code() is UNAVAILABLE
    assert (len(one.received), len(two.received)) == (1, 0)
    (said,) = [record.getMessage() for record in caplog.records if " fails: " in record.getMessage()]
    assert f"{kind.method} fails: the method is not declared idempotent; tried {one.address}: " in said


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "NOT_FOUND"])
async def test_other_codes_are_not_retried(shell: Shell, fleet: Fleet, kind: Kind, code: str) -> None:
    """Whatever the method; the caller gets the code as the server sent it."""
    async with pair(shell, fleet, retry=IDEMPOTENT) as (one, two, channel):
        one.always(fail(grpc.StatusCode[code]))
        assert (await shell.failure(channel, kind=kind.name, timeout=HANGS_S)).code() is grpc.StatusCode[code]
    assert (len(one.received), len(two.received)) == (1, 0)


# ---- push-back ----


async def test_a_refusal_is_retried_at_once_elsewhere(shell: Shell, fleet: Fleet, kind: Kind) -> None:
    """Push-back 0: refused before any work, so idempotence does not matter, nor does our own wait."""
    async with pair(shell, fleet, retry=lb.Retry(wait=wait_fixed(HANGS_S))) as (one, two, channel):
        one.always(pushback(0))
        await shell.call(channel, kind=kind.name)
    assert (len(one.received), len(two.received)) == (1, 1)


async def test_the_servers_wait_replaces_ours(shell: Shell, fleet: Fleet, kind: Kind) -> None:
    """Push-back of 60 ms: the next attempt begins so much later, not after our 30 s."""
    retry = lb.Retry(wait=wait_fixed(HANGS_S), stop=stop_after_attempt(2))
    async with pair(shell, fleet, retry=retry) as (one, two, channel):
        one.always(pushback(60))
        two.always(fail())
        error = await shell.failure(channel, kind=kind.name)
        first, second = lb.attempts(error)
    assert first.ended_at is not None
    assert 0.055 <= second.started_at - first.ended_at < 20


@pytest.mark.parametrize("value", [-1, "soon", ""])
async def test_a_push_back_below_0_or_unreadable_says_never(
    shell: Shell, fleet: Fleet, kind: Kind, value: int | str
) -> None:
    """Although the method is idempotent (gRFC A6)."""
    async with pair(shell, fleet, retry=IDEMPOTENT) as (one, two, channel):
        one.always(pushback(value))
        assert (await shell.failure(channel, kind=kind.name)).code() is UNAVAILABLE
    assert (len(one.received), len(two.received)) == (1, 0)


# ---- how often ----


async def test_the_last_failure_is_the_calls(shell: Shell, fleet: Fleet, kind: Kind) -> None:
    """After ``stop`` says so: its code, words and trailing metadata are the last attempt's."""
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_after_attempt(2))
    async with pair(shell, fleet, retry=retry) as (one, two, channel):
        one.always(fail(details="the first"))
        two.always(fail(details="the second", trailing_metadata=(("x-last", "yes"),)))
        error = await shell.failure(channel, kind=kind.name)
    assert error.details() == "the second"
    assert dict(tuple(error.trailing_metadata() or ())).get("x-last") == "yes"


async def test_a_retry_tells_how_many_came_before_it(shell: Shell, backend: Backend, kind: Kind) -> None:
    """``grpc-previous-rpc-attempts``, absent in the first (gRFC A6); the call's own metadata each time."""
    backend.script(fail(), fail())
    async with shell.open(target(backend), retry=IDEMPOTENT) as channel:
        await shell.call(channel, kind=kind.name, metadata=(("x-user", "7"),))
    assert [received.metadata.get(COUNT_KEY) for received in backend.received] == [None, "1", "2"]
    assert [received.metadata["x-user"] for received in backend.received] == ["7"] * 3


async def test_retries_stop_when_the_budget_is_used_up(
    shell: Shell, backend: Backend, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Two retries in all, whatever each call might do; then calls fail after their first attempt and say so."""
    backend.always(fail())
    budget = lb.Budget(ratio=0.0, min_per_s=0.1, ttl_s=20)
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_never, budget=budget)
    async with shell.open(target(backend), retry=retry) as channel:
        with caplog.at_level(logging.DEBUG, "lb.channel"):
            for expected in (3, 1, 1):
                assert len(lb.attempts(await shell.failure(channel, kind=kind.name))) == expected
        assert channel.snapshot().retry_budget == 0
    said = [record.getMessage() for record in caplog.records if " fails: " in record.getMessage()]
    assert [" fails: the retry budget is used up; " in words for words in said] == [True] * 3


async def test_retries_can_be_off(shell: Shell, fleet: Fleet, kind: Kind) -> None:
    """Push-back or not."""
    async with pair(shell, fleet, retry=lb.Retry(enabled=False, idempotent=METHODS)) as (one, two, channel):
        one.script(fail(), pushback(0))
        for _ in range(2):
            await shell.failure(channel, kind=kind.name)
    assert len(two.received) == 0


@pytest.mark.parametrize("policy", ["round_robin", "random", "weighted_round_robin", "weighted_random"])
async def test_a_retry_goes_elsewhere_under_every_policy(shell: Shell, fleet: Fleet, policy: str) -> None:
    """Three attempts of a call are on three endpoints."""
    backends = await fleet(3)
    for backend in backends:
        backend.always(fail())
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_after_attempt(3))
    async with shell.open(target(*backends), policy=policy, retry=retry) as channel:
        await shell.ready(channel, 3)
        for _ in range(20):
            error = await shell.failure(channel, kind="unary_stream")
            assert len({attempt.address for attempt in lb.attempts(error)}) == 3
