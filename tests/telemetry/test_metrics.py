"""Metrics of calls, attempts and retries, as an OpenTelemetry SDK reads them."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc
import pytest

import lb
from lb.telemetry.instruments import LATENCY_BOUNDS_S, Histogram
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY, fail, hang
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, IDEMPOTENT, SS, UU, First, Kind, channel_to, failure, ready
from tests.support import doors
from tests.telemetry.kit import Measured, registered

METHOD = UNARY_UNARY[1:]


async def test_a_call_and_its_attempt(backend: Backend) -> None:
    """One point in each of the three instruments, with A66's attributes and buckets."""
    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        await registered(channel)(b"x", timeout=HANGS_S)
        target = f"static:///{backend.address}"
        for name in ("grpc.client.call.duration", "grpc.client.attempt.duration"):
            point = measured.point(name)
            assert point.attributes == {"grpc.method": METHOD, "grpc.target": target, "grpc.status": "OK"}
            assert (point.count, tuple(point.explicit_bounds)) == (1, LATENCY_BOUNDS_S)
            assert 0 < point.sum < HANGS_S
        started = measured.point("grpc.client.attempt.started")
        assert (started.attributes, started.value) == ({"grpc.method": METHOD, "grpc.target": target}, 1)
        assert measured.points("grpc.client.call.retries") == []


async def test_every_kind_is_measured_once(backend: Backend, kind: Kind) -> None:
    """Also with more calls than are queued at once."""
    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        registered(channel, kind)
        for _ in range(70):
            await kind.run(channel, timeout=HANGS_S)
        for name in ("grpc.client.call.duration", "grpc.client.attempt.duration"):
            assert measured.point(name).count == 70
        assert measured.point("grpc.client.attempt.started").value == 70


async def test_an_attempt_that_runs_has_started(backend: Backend) -> None:
    """It counts before it has ended; cancelled, it has a duration, too."""
    measured = Measured()
    backend.script(hang())
    async with channel_to(backend) as channel:
        measured.of(channel)
        await ready(channel, 1)
        call = UU.start(channel, timeout=HANGS_S)
        assert measured.point("grpc.client.attempt.started").value == 1
        assert measured.points("grpc.client.attempt.duration") == []
        call.cancel()
        assert measured.point("grpc.client.attempt.duration").attributes["grpc.status"] == "CANCELLED"
        assert measured.point("grpc.client.call.duration").attributes["grpc.status"] == "CANCELLED"


async def test_a_method_no_stub_has_registered_is_called_other(backend: Backend) -> None:
    """So a proxy does not make a series of each method that it is asked for (A66)."""
    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        await SS.run(channel, timeout=HANGS_S)
        await UU.run(channel, timeout=HANGS_S)
        assert measured.point("grpc.client.call.duration").attributes["grpc.method"] == "other"
        assert measured.point("grpc.client.attempt.started").value == 2


async def test_retries(fleet: Fleet) -> None:
    """A failed attempt and the one that followed have a status each; the call has its own, and one retry."""
    measured = Measured()
    bad, good = await fleet(2)
    bad.script(fail(grpc.StatusCode.UNAVAILABLE))
    async with channel_to(bad, good, policy=First(), retry=IDEMPOTENT) as channel:
        measured.of(channel)
        await ready(channel, 2)
        await registered(channel)(b"x", timeout=HANGS_S)
        statuses = {p.attributes["grpc.status"]: p.count for p in measured.points("grpc.client.attempt.duration")}
        assert statuses == {"UNAVAILABLE": 1, "OK": 1}
        assert measured.point("grpc.client.call.duration").attributes["grpc.status"] == "OK"
        assert measured.point("grpc.client.attempt.started").value == 2
        retries = measured.point("grpc.client.call.retries")
        assert (retries.count, retries.sum) == (1, 1)
        assert set(retries.attributes) == {"grpc.method", "grpc.target"}
        assert measured.points("grpc.client.call.hedges") == []


async def test_hedges(fleet: Fleet) -> None:
    """A hedge is no retry."""
    measured = Measured()
    slow, quick = await fleet(2)
    slow.script(hang())
    hedging = lb.Hedging(delay_s=0.01)
    async with channel_to(slow, quick, policy=First(), retry=IDEMPOTENT, hedging=hedging) as channel:
        measured.of(channel)
        await ready(channel, 2)
        await registered(channel)(b"x", timeout=HANGS_S)
        assert measured.point("grpc.client.call.hedges").sum == 1
        assert measured.points("grpc.client.call.retries") == []
        assert sum(p.count for p in measured.points("grpc.client.attempt.duration")) == 2


async def test_a_call_that_was_never_sent_has_a_duration() -> None:
    """Without an endpoint there is no attempt, but a call."""
    measured = Measured()
    async with lb.aio.channel("static:///127.0.0.1:1") as channel:
        measured.of(channel)
        error = await failure(UU.start(channel, timeout=HANGS_S))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert measured.point("grpc.client.call.duration").attributes["grpc.status"] == "UNAVAILABLE"


async def test_endpoints_and_budget(fleet: Fleet) -> None:
    """How many endpoints are in which state, and how many retries are left."""
    measured = Measured()
    up, down = await fleet(2)
    await down.stop()
    async with channel_to(up, down) as channel:
        measured.of(channel)
        await ready(channel, 1)
        states = {p.attributes["lb.state"]: p.value for p in measured.points("lb.client.endpoints")}
        assert states["ready"] == 1
        assert sum(states.values()) == 2
        assert measured.point("lb.client.retry_budget").value == pytest.approx(100)


async def test_what_a_channel_counted_outlives_it(backend: Backend) -> None:
    """A counter never goes back; two channels to one target are one series."""
    measured = Measured()
    for _ in range(2):
        async with channel_to(backend) as channel:
            measured.of(channel)
            await UU.run(channel, timeout=HANGS_S)
        del channel
        await asyncio.sleep(0)
        gc.collect()
    assert measured.point("grpc.client.attempt.started").value == 2
    assert measured.points("lb.client.endpoints") == []


async def test_an_sdk_that_fails_fails_no_call(backend: Backend) -> None:
    """What it raises is told in the log, and the next durations are recorded."""

    class Broken:
        def record(self, *_: Any) -> None:
            raise RuntimeError("no room")

    measured = Measured()
    async with channel_to(backend) as channel:
        measured.of(channel)
        instruments = doors.instruments(channel)
        kept, instruments.call_duration = instruments.call_duration, Histogram(Broken())
        for _ in range(64):
            await UU.run(channel, timeout=HANGS_S)
        instruments.call_duration = kept
        await UU.run(channel, timeout=HANGS_S)
        instruments.pending.clear()


async def test_nothing_is_measured_without_a_provider(backend: Backend) -> None:
    """The API's stand-in for a provider is none."""
    async with channel_to(backend) as channel:
        await UU.run(channel, timeout=HANGS_S)
        assert not doors.engine(channel).metrics.on
