"""How to test code that calls through lb: with scripted servers, and a clock that the test moves.

::

    pip install pytest pytest-asyncio
    pytest examples/test_with_lb_testing.py

Nothing is patched, no test sleeps, and no port is fixed.
"""

from __future__ import annotations

from typing import Any

import grpc
import pytest

import lb
from lb.parts import TokenBucket
from lb.testing import Backend, FakeClock
from lb.testing.backend import UNARY_UNARY, Backends, answered_by, fail, hang
from mesh.runtime.v1 import DescribeRequest, DescribeResponse, RuntimeServicer, RuntimeStub
from mesh.runtime.v1 import add_RuntimeServicer_to_server as add_runtime

pytest_plugins = ["lb.testing.fixtures"]  # lb_backend, lb_backends, lb_agent, lb_clock

# ---- the code under test ----


async def greeting(channel: Any, name: str, timeout_s: float = 1.0) -> str:
    """A greeting from the server, or a plain one if there is no answer."""
    try:
        answer: bytes = await channel.unary_unary(UNARY_UNARY)(name.encode(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        return f"hello, {name}"
    return f"welcome back, {answer.decode()}"


# ---- its tests ----


@pytest.mark.asyncio
async def test_a_failure_is_tried_on_another_server() -> None:
    """`Backend` answers with the request. A script replaces the next answers, one step per call."""
    async with Backend("a") as a, Backend("b") as b:
        a.script(fail(grpc.StatusCode.UNAVAILABLE))
        b.script(fail(grpc.StatusCode.UNAVAILABLE))
        target = f"static:///{a.address},{b.address}"
        async with lb.aio.channel(target, retry=lb.Retry(idempotent=[UNARY_UNARY])) as channel:
            assert await greeting(channel, "Ada", timeout_s=10) == "welcome back, Ada"
        calls = a.received + b.received
        assert len(calls) in (2, 3)  # 2 where only one of them was connected in time
        assert all(call.timeout_s and call.timeout_s < 10 for call in calls)  # the deadline travels


@pytest.mark.asyncio
async def test_no_answer_is_a_plain_greeting() -> None:
    """`hang()` never answers: the caller's timeout ends the call, and the server sees it cancelled."""
    async with Backend("a") as a:
        a.always(hang())
        async with lb.aio.channel(f"static:///{a.address}") as channel:
            assert await greeting(channel, "Ada", timeout_s=1) == "hello, Ada"
        await a.until(lambda: a.received and a.received[0].cancelled)


@pytest.mark.asyncio
async def test_another_server_takes_over() -> None:
    """A backend may be stopped and started again; it keeps its address."""
    async with Backend("a") as a, Backend("b") as b:
        retry = lb.Retry(idempotent=[UNARY_UNARY])
        async with lb.aio.channel(f"static:///{a.address},{b.address}", policy="pick_first", retry=retry) as channel:
            call = channel.unary_unary(UNARY_UNARY)(b"Ada", timeout=10)
            await call
            served, other = (a, b) if answered_by(await call.trailing_metadata()) == "a" else (b, a)
            await served.stop()
            assert await greeting(channel, "Ada", timeout_s=10) == "welcome back, Ada"
            assert len(other.received) == 1


class Runtime(RuntimeServicer):
    """A servicer of your own: what the code under test really calls."""

    async def Describe(self, request: DescribeRequest, context: Any) -> DescribeResponse:
        """Always the same answer."""
        return DescribeResponse(service="catalog", weight=7)


@pytest.mark.asyncio
async def test_your_own_servicers_follow_the_script(lb_backends: Backends) -> None:
    """After the script the servicer answers. Its proto declares `Describe` idempotent, so it is retried."""
    one, two = await lb_backends(2, add=lambda server: add_runtime(Runtime(), server))
    one.script(fail(grpc.StatusCode.UNAVAILABLE))
    two.script(fail(grpc.StatusCode.UNAVAILABLE))
    async with lb.aio.channel(f"static:///{one.address},{two.address}") as channel:
        answer = await RuntimeStub(channel).Describe(DescribeRequest(), timeout=10)
    assert answer.weight == 7
    assert set(one.methods + two.methods) == {"/mesh.runtime.v1.Runtime/Describe"}


def test_a_limit_by_time(lb_clock: FakeClock) -> None:
    """Code that takes the time as an argument is tested with a clock that the test moves, so an hour takes no time."""
    bucket = TokenBucket(rate=1 / 3600, burst=2)  # one an hour, two at once
    assert bucket.take(lb_clock()) == bucket.take(lb_clock()) == 0.0
    assert bucket.take(lb_clock()) == pytest.approx(3600)  # the wait in seconds; nothing was taken
    lb_clock.advance(3600)
    assert bucket.take(lb_clock()) == 0.0
