"""What a user may do wrong, and what he is told: at construction where possible, in the call's error otherwise."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY, Gate, echo, hang, hold
from tests.aio.kit import (
    HANGS_S,
    IDEMPOTENT,
    NO_BREAKER,
    UU,
    First,
    Kind,
    Told,
    channel_to,
    failure,
    in_flight,
)
from tests.support import doors

AWAY = "static:///127.0.0.1:1"


@pytest.mark.parametrize("options", [[("grpc.x", object())], [("grpc.x",)]], ids=["type", "pair"])
async def test_bad_options_are_what_they_are_in_grpcio(options: Any) -> None:
    """The same type of error."""
    with pytest.raises((TypeError, ValueError)) as theirs:
        grpc.aio.insecure_channel("127.0.0.1:1", options=options)
    with pytest.raises(theirs.type):
        lb.aio.channel(AWAY, options=options)


async def test_an_interceptor_of_no_kind_is_refused_in_grpcios_words() -> None:
    """As far as they go."""
    wrong: Any = [object()]
    with pytest.raises(ValueError, match="must be UnaryUnaryClientInterceptor or") as theirs:
        grpc.aio.insecure_channel("127.0.0.1:1", interceptors=wrong)
    with pytest.raises(ValueError, match="must be UnaryUnaryClientInterceptor or") as ours:
        lb.aio.channel(AWAY, interceptors=wrong)
    assert str(theirs.value).startswith("Interceptor <object") == str(ours.value).startswith("Interceptor <object")


async def test_nothing_resolved_fails_at_the_deadline(kind: Kind) -> None:
    """Then, and not later; the message says what it waited for."""
    async with lb.aio.channel(Told(), breaker=NO_BREAKER) as channel:
        started = time.monotonic()
        error = await failure(kind.start(channel, timeout=0.1))
        took = time.monotonic() - started
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "told is not resolved yet" in str(error.details())
    assert 0.09 <= took < HANGS_S


async def test_no_endpoint_reachable_fails_with_each_ones_reason(kind: Kind, free_port: int) -> None:
    """UNAVAILABLE at once, with who was tried and what the connection said."""
    async with lb.aio.channel(f"static:///127.0.0.1:{free_port}", breaker=NO_BREAKER) as channel:
        error = await failure(kind.start(channel, timeout=HANGS_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert f"127.0.0.1:{free_port}" in str(error.details())
    assert "Connection refused" in str(error.details())


async def test_wait_for_ready_waits_where_others_fail(kind: Kind, free_port: int) -> None:
    """Until the deadline, as in grpcio; and goes through when a server comes."""
    async with lb.aio.channel(f"static:///127.0.0.1:{free_port}", breaker=NO_BREAKER) as channel:
        error = await failure(kind.start(channel, timeout=0.15, wait_for_ready=True))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = kind.start(channel, timeout=10, wait_for_ready=True)
        async with Backend(port=free_port):
            assert await kind.responses(call) == kind.echo()


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
async def test_a_deadline_that_has_passed(backend: Backend, kind: Kind, timeout: float) -> None:
    """DEADLINE_EXCEEDED, connected or not, and nothing is left."""
    backend.always(hang())
    async with channel_to(backend) as channel:
        for _ in range(2):
            error = await failure(kind.start(channel, timeout=timeout))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await channel.channel_ready()
        assert in_flight(channel) == 0


Make = Callable[[str], Any]


def ours(address: str) -> Any:
    """An `lb` channel."""
    return lb.aio.channel(f"static:///{address}")


@pytest.mark.parametrize("make", [grpc.aio.insecure_channel, ours], ids=["grpcio", "lb"])
async def test_use_after_close(backend: Backend, make: Make) -> None:
    """A new call, a wait for a state: ``UsageError``. The state is SHUTDOWN; closing again does nothing."""
    channel = make(backend.address)
    stub = channel.unary_unary(UNARY_UNARY)
    assert await stub(b"x") == b"x"
    await channel.close()
    await channel.close(1)
    for use in (lambda: stub(b"x"), lambda: channel.unary_unary(UNARY_UNARY)(b"x")):
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            use()  # type: ignore[no-untyped-call]  # a lambda
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        await channel.wait_for_state_change(grpc.ChannelConnectivity.SHUTDOWN)


@pytest.mark.parametrize("make", [grpc.aio.insecure_channel, ours], ids=["grpcio", "lb"])
async def test_a_negative_grace_closes_nothing(backend: Backend, make: Make) -> None:
    """``ValueError``, and the channel goes on."""
    if make is not ours and not doors.grpcio("aio").TELLS_OF_CALLS:
        pytest.skip("grpcio checks it from 1.83 on")
    async with make(backend.address) as channel:
        with pytest.raises(ValueError, match="grace"):
            await channel.close(-1)
        assert await channel.unary_unary(UNARY_UNARY)(b"x") == b"x"


@pytest.mark.parametrize("make", [grpc.aio.insecure_channel, ours], ids=["grpcio", "lb"])
async def test_call_credentials_need_a_secure_channel(backend: Backend, make: Make) -> None:
    """``UsageError``, as soon as the call is made."""
    async with make(backend.address) as channel:
        with pytest.raises(grpc.aio.UsageError, match="secure"):
            channel.unary_unary(UNARY_UNARY)(b"x", credentials=grpc.access_token_call_credentials("x"))


def elsewhere(use: Callable[[], Any]) -> Any:
    """What comes of it in a loop of its own, in another thread."""

    async def run() -> Any:
        answer = use()
        return await answer if inspect.isawaitable(answer) else answer

    return asyncio.to_thread(asyncio.run, run())


@pytest.mark.parametrize(
    "use",
    [
        lambda channel: UU.start(channel),
        lambda channel: channel.close(),
        lambda channel: channel.close(1.0),
        lambda channel: channel.__aexit__(None, None, None),
        lambda channel: channel.channel_ready(),
        lambda channel: channel.get_state(try_to_connect=True),
        lambda channel: channel.wait_for_state_change(channel.get_state()),
    ],
    ids=["call", "close", "close with grace", "aexit", "channel_ready", "get_state", "wait_for_state_change"],
)
async def test_another_event_loop_is_told_apart(backend: Backend, use: Callable[[Any], Any]) -> None:
    """A channel belongs to the loop that used it first; another one gets a clear error and harms nothing."""
    backend.script(echo(), hold(gate := Gate()))
    async with channel_to(backend) as channel:
        assert await UU.run(channel) == [b"one"]
        running = UU.start(channel)
        await backend.until(lambda: backend.in_flight)
        with pytest.raises(grpc.aio.UsageError, match="one channel per event loop"):
            await elsewhere(lambda: use(channel))
        gate.open()
        assert await running == b"one"
        assert await UU.run(channel) == [b"one"]


async def test_a_channel_that_is_closed_or_unused_may_be_closed_anywhere(backend: Backend) -> None:
    """There is nothing that another loop could harm; so it is with one whose loop has ended."""
    async with channel_to(backend) as closed:
        assert await UU.run(closed) == [b"one"]
    await elsewhere(closed.close)
    unused = channel_to(backend)
    await elsewhere(unused.close)
    orphan = channel_to(backend)
    assert await elsewhere(lambda: UU.start(orphan)) == b"one"
    await orphan.close()
    for channel in (closed, unused, orphan):
        with pytest.raises(grpc.aio.UsageError, match="closed"):
            UU.start(channel)


async def test_a_call_outside_of_any_loop_is_refused(backend: Backend) -> None:
    """``RuntimeError`` that says so; nothing was started."""
    async with channel_to(backend) as channel:
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(UU.start, channel)
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE


class Keyed(First):
    """A policy that reads what the caller sends."""

    needs_metadata = True


@pytest.mark.parametrize(
    "settings",
    [{}, {"policy": Keyed()}, {"hedging": lb.Hedging(delay_s=0.01), "retry": IDEMPOTENT}],
    ids=["plain", "by key", "hedged"],
)
async def test_metadata_that_cannot_be_sent_wait_for_nothing(kind: Kind, settings: dict[str, Any]) -> None:
    """Neither for a resolver that has said nothing yet nor for a deadline."""
    async with lb.aio.channel(Told(), **settings) as channel:
        call = kind.start(channel, metadata=(("with blank", "x"),))
        with pytest.raises((grpc.aio.AioRpcError, grpc.aio.InternalError)):
            await kind.responses(call)
        assert (await call.code(), lb.attempts(call)) == (grpc.StatusCode.INTERNAL, [])


async def test_metadata_that_cannot_be_sent_wait_for_no_place(backend: Backend, kind: Kind) -> None:
    """Nor in line below the concurrency limit; the place in line is given back."""
    backend.always(hang())
    limit = lb.ConcurrencyLimit(limit=1, queue=1, queue_s=1000)
    async with channel_to(backend, limit=limit) as channel:
        first = UU.start(channel)
        await backend.until(lambda: backend.in_flight)
        for _ in range(3):
            call = kind.start(channel, metadata=(("with blank", "x"),))
            with pytest.raises((grpc.aio.AioRpcError, grpc.aio.InternalError)):
                await kind.responses(call)
            assert await call.code() is grpc.StatusCode.INTERNAL
        first.cancel()
