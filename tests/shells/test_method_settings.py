"""What is set of single methods, of a channel's calls and of a block of code: time-outs, retries, hedging."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from tenacity import stop_after_attempt

import lb
from lb.aio import methods
from lb.testing import Backend
from lb.testing.backend import METHODS, SERVICE, UNARY_UNARY, Gate, fail, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import AT_ONCE, HANGS_S, UU
from tests.shells.kit import Shell
from tests.support.wait import until

Code = grpc.StatusCode
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
ALL = f"/{SERVICE}/*"


def left(backend: Backend) -> float | None:
    """The time that the last call had left when it arrived."""
    return backend.received[-1].timeout_s


# ---- off ----


async def test_off(shell: Shell, backend: Backend) -> None:
    """No retries, no breaker, no hedges, no limit: each call is sent once, and its error is its own."""
    backend.always(fail())
    config = {"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "0s"}}]}
    async with shell.open(
        backend.address, retry=False, breaker=False, hedging=False, limit=False, service_config=config
    ) as channel:
        for _ in range(20):
            assert (await shell.failure(channel)).code() is Code.UNAVAILABLE
        assert len(backend.received) == 20
        assert channel.snapshot().endpoints[0].breaker == "CLOSED"


async def test_a_service_is_declared_idempotent(shell: Shell, backend: Backend) -> None:
    """Each of its methods is retried."""
    async with shell.open(backend.address, retry=lb.Retry(idempotent=[ALL], wait=AT_ONCE)) as channel:
        for kind in KINDS:
            backend.script(fail())
            await shell.call(channel, kind=kind)
    assert len(backend.received) == 2 * len(KINDS)


# ---- time-outs ----


@pytest.mark.parametrize("kind", KINDS)
async def test_a_default_timeout_ends_a_call_that_gives_none(shell: Shell, backend: Backend, kind: str) -> None:
    """And the server is told."""
    gate = Gate()
    backend.always(hold(gate))
    async with shell.open(backend.address, timeout_s=0.3) as channel:
        error = await shell.failure(channel, kind=kind)
        assert error.code() is Code.DEADLINE_EXCEEDED
    gate.open()
    for received in backend.received:
        assert received.timeout_s is not None
        assert received.timeout_s <= 0.3


@pytest.mark.parametrize("kind", KINDS)
async def test_which_timeout_holds(shell: Shell, backend: Backend, kind: str) -> None:
    """The call's own, else its method's, else its service's, else the channel's; never above a document's."""
    method = METHODS[KINDS.index(kind)]
    config = {"methodConfig": [{"name": [{"service": SERVICE}], "timeout": "400s"}]}
    cases: list[tuple[dict[str, Any], dict[str, Any], float | None]] = [
        ({}, {}, None),
        ({"timeout_s": 100}, {}, 100),
        ({"timeout_s": 100}, {"timeout": 300}, 300),
        ({"timeout_s": 100, "methods": {ALL: lb.MethodSettings(timeout_s=200)}}, {}, 200),
        ({"methods": {ALL: lb.MethodSettings(timeout_s=200), method: lb.MethodSettings(timeout_s=50)}}, {}, 50),
        ({"timeout_s": 100, "methods": {ALL: lb.MethodSettings(timeout_s=200), method: lb.MethodSettings()}}, {}, 100),
        ({"timeout_s": 100, "methods": {method: lb.MethodSettings(timeout_s=False)}}, {}, None),
        ({"methods": {method: lb.MethodSettings(timeout_s=50)}}, {"timeout": 300}, 300),
        ({"timeout_s": 100, "service_config": config}, {}, 100),
        ({"timeout_s": 900, "service_config": config}, {}, 400),
        ({"service_config": config}, {"timeout": 900}, 400),
    ]
    for settings, options, expected in cases:
        async with shell.open(backend.address, **settings) as channel:
            await shell.start(channel, kind=kind, **options)
        found = left(backend)
        if expected is None:
            assert found is None, (settings, options)
        else:
            assert found is not None, (settings, options)
            assert expected - HANGS_S < found <= expected + 1, (settings, options)  # it is sent in whole seconds


async def test_a_block_with_a_deadline(shell: Shell, backend: Backend) -> None:
    """It bounds calls of whichever timeout, also in blocks inside and in tasks that begin in it; nothing after it."""
    async with (
        shell.open(backend.address, timeout_s=900) as channel,
        shell.open(backend.address, propagate=False) as apart,
    ):

        async def told(most: float, where: Any = channel, **options: Any) -> bool:
            await shell.start(where, **options)
            found = left(backend)
            assert found is not None
            return most - HANGS_S < found <= most + 1

        with lb.deadline(400):
            assert await told(400)
            assert await told(400, timeout=600)
            assert await told(200, timeout=200)
            with lb.deadline(800):
                assert await told(400)
            with lb.deadline(100):
                assert await told(100)
            with lb.detached():
                assert await told(900)
            assert await told(700, apart, timeout=700)
            task = asyncio.ensure_future(told(400))
        assert await task
        assert await told(900)


async def test_a_deadline_that_has_passed(shell: Shell, backend: Backend) -> None:
    """Ends a call before it is sent."""
    async with shell.open(backend.address) as channel:
        with lb.deadline(0):
            assert (await shell.failure(channel)).code() is Code.DEADLINE_EXCEEDED
    assert backend.received == []


@pytest.mark.parametrize("value", [-1, "2", None, True, float("nan")])
def test_what_is_no_deadline(value: Any) -> None:
    """The error says what is accepted."""
    with pytest.raises((TypeError, ValueError), match=r"timeout_s is .*; expected seconds >= 0"):
        lb.deadline(value).__enter__()


# ---- retries and hedging ----


async def test_retries_of_one_method(shell: Shell, backend: Backend) -> None:
    """What its entry says; the others have the channel's."""
    backend.always(fail())
    twice = lb.MethodSettings(retry=lb.Retry(stop=stop_after_attempt(2), wait=AT_ONCE), idempotent=True)
    async with shell.open(backend.address, retry=False, methods={UNARY_UNARY: twice}) as channel:
        await shell.failure(channel)
        assert len(backend.received) == 2
        await shell.failure(channel, kind="unary_stream")
        assert len(backend.received) == 3


async def test_hedging_of_one_method(shell: Shell, fleet: Fleet) -> None:
    """One endpoint hangs, and another answers."""
    first, second = await fleet(2)
    gate = Gate()
    for backend in (first, second):
        backend.script(hold(gate))
    hedged = lb.MethodSettings(hedging=lb.Hedging(delay_s=0.01), idempotent=True)
    async with shell.open(f"static:///{first.address},{second.address}", methods={UNARY_UNARY: hedged}) as channel:

        async def connected() -> bool:
            return all(endpoint.connectivity == "READY" for endpoint in channel.snapshot().endpoints)

        calling = asyncio.ensure_future(shell.call(channel))
        await first.until(lambda: first.received)
        await second.until(lambda: second.received)
        gate.open()
        await calling
        assert await connected()


# ---- names that nothing goes by ----


@pytest.mark.parametrize("where", ["idempotent", "methods"])
async def test_a_name_that_no_called_method_goes_by_is_told_once(
    shell: Shell, backend: Backend, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """When the channel closes, once in a process however many channels have it."""
    name = f"/lb.testing.Other/{shell}{where}"
    settings: dict[str, Any] = {"methods": {name: lb.MethodSettings()}}
    if where == "idempotent":
        settings = {"retry": lb.Retry(idempotent=[name])}
    with caplog.at_level(logging.WARNING, "lb.channel"):
        async with shell.open(backend.address, **settings):
            """Not used: nothing can be said."""
        for _ in range(2):
            async with shell.open(backend.address, **settings) as channel:
                await shell.call(channel)
        await logged(caplog)
    assert [record.getMessage() for record in caplog.records] == [
        f"{backend.address}: Retry.idempotent or methods= names {name}, which was never called (called: {UNARY_UNARY})"
    ]


@pytest.mark.parametrize(
    ("wrong", "right"), [("/{}/UnaryUnari", "/{}/UnaryUnary"), ("/{}s/*", "/{}/*"), ("/{}/unary_unary", "")]
)
async def test_a_name_that_is_nearly_right(
    shell: Shell, backend: Backend, caplog: pytest.LogCaptureFixture, wrong: str, right: str
) -> None:
    """The line says what was meant, and is a warning; else, where other names were of use, it is none."""
    service = f"lb.testing.{shell}.Near"
    wrong, right = wrong.format(service), right.format(service)
    with caplog.at_level(logging.INFO, "lb.channel"):
        async with shell.open(backend.address, retry=lb.Retry(idempotent=[wrong, UNARY_UNARY])) as channel:
            await shell.call(channel)
            if right:
                stub = channel.unary_unary(f"/{service}/UnaryUnary")  # which the server does not have
                with pytest.raises(grpc.RpcError):
                    await (stub(b"", timeout=HANGS_S) if shell.name == "aio" else asyncio.to_thread(stub, b""))
        await logged(caplog)
    (record,) = [record for record in caplog.records if "which was never called" in record.getMessage()]
    assert wrong in record.getMessage()
    assert record.levelno == (logging.WARNING if right else logging.INFO)
    assert record.getMessage().endswith(f". Did you mean {right}?") == bool(right)


async def logged(caplog: pytest.LogCaptureFixture) -> None:
    """Wait for such a line: a channel of `lb.sync` closes in its own thread."""

    async def told() -> bool:
        return any("which was never called" in record.getMessage() for record in caplog.records)

    await until(told, within_s=HANGS_S, what="a line in the log")


async def test_a_channel_that_stays_open_is_told_too(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute after its first call: of those services that were called."""
    wrong, later = f"/{SERVICE}/UnaryUnaru", "/lb.testing.Later/*"
    monkeypatch.setattr(methods, "UNMATCHED_S", 0.1)
    with caplog.at_level(logging.WARNING, "lb.channel"):
        async with lb.aio.channel(backend.address, retry=lb.Retry(idempotent=[wrong, later])) as channel:
            await UU.run(channel)
            await logged(caplog)
            assert later not in caplog.text
            assert caplog.text.endswith(f"Did you mean {UNARY_UNARY}?\n")


async def test_hedging_that_is_not_used_is_told(
    shell: Shell, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a method that is not declared idempotent, at its first call."""
    with caplog.at_level(logging.WARNING, "lb.channel"):
        async with shell.open(
            backend.address, methods={UNARY_UNARY: lb.MethodSettings(hedging=lb.Hedging())}
        ) as channel:
            await shell.call(channel, 3)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{backend.address}: methods[{UNARY_UNARY!r}] has hedging, which is not used: ")
