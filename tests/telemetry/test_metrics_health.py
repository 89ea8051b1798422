"""Metrics of what goes on beside the calls: breakers, limits, the resolver; and where series end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import grpc
import pytest

import lb
from lb.telemetry import instruments
from lb.testing import Backend
from lb.testing.backend import fail, hang
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, UU, First, Told, channel_to, eventually, failure, ready
from tests.telemetry.kit import Measured, registered


async def test_moves_of_breakers(fleet: Fleet) -> None:
    """Each opening and each closing counts, under the state that it led to."""
    measured = Measured()
    bad, good = await fleet(2)
    breaker = lb.Breaker(consecutive_failures=2, open_s=0.01, max_open_s=0.01, jitter=0)
    async with channel_to(bad, good, policy=First(), breaker=breaker) as channel:
        measured.of(channel)
        await ready(channel, 2)
        bad.script(*[fail()] * 2)
        for _ in range(2):
            await failure(UU.start(channel, timeout=HANGS_S))
        opened = measured.point("lb.client.breaker.transitions")
        target = f"static:///{bad.address},{good.address}"
        assert (opened.attributes, opened.value) == ({"grpc.target": target, "lb.state": "open"}, 1)

        async def closed() -> bool:
            await UU.run(channel, timeout=HANGS_S)
            return all(e.breaker == "CLOSED" for e in channel.snapshot().endpoints)

        async with asyncio.timeout(HANGS_S):
            while not await closed():
                pass
        moves = {p.attributes["lb.state"]: p.value for p in measured.points("lb.client.breaker.transitions")}
        assert moves == {"open": 1, "closed": 1}


async def test_refusals_by_a_limit(backend: Backend) -> None:
    """A call that finds no place in the line counts once; a channel without limits has no such series."""
    measured = Measured()
    backend.always(hang())
    limit = lb.ConcurrencyLimit(limit=1, queue=0)
    async with channel_to(backend, limit=limit) as channel, channel_to(backend, policy="random") as unlimited:
        measured.of(channel)
        measured.of(unlimited)
        await ready(channel, 1)
        held = UU.start(channel, timeout=HANGS_S)
        assert (await failure(UU.start(channel, timeout=HANGS_S))).code() is grpc.StatusCode.UNAVAILABLE
        assert measured.point("lb.client.limit.refused").value == 1
        held.cancel()


async def test_the_resolver(backend: Backend) -> None:
    """Its errors count; the age of its answer begins again with each good look at its source, news or not."""
    measured = Measured()
    resolver = Told()
    async with lb.aio.channel(resolver) as channel:
        measured.of(channel)
        first = asyncio.ensure_future(registered(channel)(b"x", timeout=HANGS_S))
        await eventually(lambda: resolver.started)
        assert measured.points("lb.client.resolver.age") == []
        resolver.say(lb.Endpoint(backend.address))
        await first
        before = measured.point("lb.client.resolver.age").value
        assert 0 <= before < HANGS_S
        resolver.fail("away")
        resolver.fail("away")
        assert measured.point("lb.client.resolver.errors").value == 2
        assert measured.point("lb.client.resolver.age").value > before
        older = measured.point("lb.client.resolver.age").value
        resolver.confirm()
        assert measured.point("lb.client.resolver.age").value < older


@pytest.mark.parametrize("small", [0, 5])
async def test_panic(fleet: Fleet, small: int) -> None:
    """While too few endpoints have a closed breaker: in a pool that counts as small, none; else less than half."""
    measured = Measured()
    backends = await fleet(3)
    resolver = Told(*(lb.Endpoint(backend.address) for backend in backends))
    breaker = lb.Breaker(consecutive_failures=1, open_s=60)
    ejection = lb.Ejection(small=small, max_share=1.0)
    async with lb.aio.channel(resolver, policy="round_robin", breaker=breaker, ejection=ejection) as channel:
        measured.of(channel)
        await ready(channel, 3)
        found = [measured.point("lb.client.panic").value]
        for number, backend in enumerate(backends, 1):
            backend.always(fail(grpc.StatusCode.INTERNAL))
            while sum(endpoint.breaker == "OPEN" for endpoint in channel.snapshot().endpoints) < number:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await UU.run(channel, timeout=HANGS_S)
            found.append(measured.point("lb.client.panic").value)
        assert found == [0, 0, small == 0, 1]
        resolver.say(*(lb.Endpoint(backend.address, id="new") for backend in backends[:1]))
        await eventually(lambda: measured.point("lb.client.panic").value == 0)


async def test_gauges_are_sums_over_the_channels_to_a_target(fleet: Fleet) -> None:
    """Each channel has breakers and a budget of its own."""
    measured = Measured()
    backends = await fleet(2)
    breaker = lb.Breaker(consecutive_failures=1, open_s=60)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            channel = await stack.enter_async_context(channel_to(*backends, policy="round_robin", breaker=breaker))
            measured.of(channel)
            await ready(channel, 2)
        for backend in backends:
            backend.always(fail(grpc.StatusCode.INTERNAL))
        for _ in backends:
            await failure(UU.start(channel, timeout=HANGS_S))
        states = {p.attributes["lb.state"]: p.value for p in measured.points("lb.client.endpoints")}
        assert (states["ready"], states["breaker open"]) == (6, 2)
        assert measured.point("lb.client.panic").value == 1
        assert measured.point("lb.client.retry_budget").value == pytest.approx(300, abs=1)


async def test_a_static_set_does_not_age(backend: Backend) -> None:
    """What never changes is not old."""
    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        await UU.run(channel, timeout=HANGS_S)
        assert measured.points("lb.client.resolver.age") == []


async def test_attempts_by_endpoint(fleet: Fleet) -> None:
    """With ``measure_endpoints`` an attempt's metrics say where it went; those of calls do not."""
    measured = Measured()
    one, two = await fleet(2)
    async with channel_to(one, two, policy="round_robin", measure_endpoints=True, measure_sizes=True) as channel:
        measured.of(channel)
        await ready(channel, 2)
        for _ in range(4):
            await registered(channel)(b"x", timeout=HANGS_S)
        for name in ("grpc.client.attempt.duration", "lb.client.attempt.sent_total_message_size"):
            assert {p.attributes["lb.endpoint.id"]: p.count for p in measured.points(name)} == {
                one.address: 2,
                two.address: 2,
            }
        assert measured.point("grpc.client.call.duration").count == 4
    with pytest.raises(TypeError, match="measure_endpoints is 'yes'"):
        channel_to(one, measure_endpoints="yes")


async def test_the_series_of_a_closed_channel_end(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gauges end at once, though the channel is still referenced; counts a while after the target's last channel."""
    measured = Measured()
    channel = channel_to(backend)
    measured.of(channel)
    await UU.run(channel, timeout=HANGS_S)
    await channel.close()
    assert measured.points("lb.client.endpoints") == []
    assert measured.points("lb.client.panic") == []
    assert measured.points("lb.client.retry_budget") == []
    assert measured.point("grpc.client.attempt.started").value == 1
    monkeypatch.setattr(instruments, "FORGET_S", -1.0)
    assert measured.points("grpc.client.attempt.started") == []
    async with channel_to(backend) as again:
        measured.of(again)
        await UU.run(again, timeout=HANGS_S)
        assert measured.point("grpc.client.attempt.started").value == 1


async def test_a_measured_channel_that_nobody_closed_is_freed(backend: Backend) -> None:
    """What is kept of its counts does not keep the channel."""
    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        await UU.run(channel, timeout=HANGS_S)
    gone = weakref.ref(channel)
    del channel
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
    assert measured.point("grpc.client.attempt.started").value == 1
