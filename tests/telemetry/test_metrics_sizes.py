"""Sizes of messages as metrics: counted by hand, for all four kinds, asyncio and threads alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import lb
from lb.aio.calls import logical_call
from lb.core.outcome import Origin, classify
from lb.telemetry.instruments import SIZE_BOUNDS
from lb.testing import Backend
from lb.testing.backend import fail, hang
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, IDEMPOTENT, NO_BREAKER, SS, SU, US, UU, First, Kind, channel_to, ready, target
from tests.support import doors
from tests.sync import kit as sync_kit
from tests.telemetry.kit import Measured, registered

SENT = "lb.client.attempt.sent_total_message_size"
RECEIVED = "lb.client.attempt.rcvd_total_message_size"
REQUESTS = (b"abc", b"", b"defgh")


def sums(measured: Measured, name: str) -> dict[str, tuple[int, int]]:
    """How many attempts, and how many bytes in all, by status."""
    return {p.attributes["grpc.status"]: (p.count, p.sum) for p in measured.points(name)}


def blocking(kind: Kind, channel: Any, requests: tuple[bytes, ...], **options: Any) -> list[bytes]:
    """The call through a channel for threads."""
    multicallable = kind.stub(channel)
    argument: Any = iter(requests) if kind.streams_requests else requests[0]
    answer = multicallable(argument, timeout=HANGS_S, **options)
    return list(answer) if kind.streams_responses else [answer]


Run = Callable[..., Any]


@pytest.fixture(params=["asyncio", "threads"])
def run(request: pytest.FixtureRequest) -> Run:
    """A call of one kind through a new channel that is measured; returns what it answered."""

    async def in_asyncio(kind: Kind, measured: Measured, *backends: Backend, **settings: Any) -> list[bytes]:
        async with channel_to(*backends, **settings) as channel:
            measured.of(channel)
            await ready(channel, len(backends))
            registered(channel, kind)
            return await kind.run(channel, REQUESTS, timeout=HANGS_S)

    async def in_threads(kind: Kind, measured: Measured, *backends: Backend, **settings: Any) -> list[bytes]:
        def body() -> list[bytes]:
            with lb.sync.channel(target(*backends), breaker=NO_BREAKER, **settings) as channel:
                measured.of(channel)
                sync_kit.ready(channel, len(backends))
                return blocking(kind, channel, REQUESTS)

        return await asyncio.to_thread(body)

    return {"asyncio": in_asyncio, "threads": in_threads}[request.param]


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_every_kind(run: Run, backend: Backend, kind: Kind, compression: grpc.Compression | None) -> None:
    """Both sums are those of the serialized messages; with compression, too."""
    measured = Measured()
    answers = await run(kind, measured, backend, measure_sizes=True, compression=compression)
    assert answers == kind.echo(REQUESTS)
    assert sums(measured, SENT) == {"OK": (1, len(b"".join(kind.sent(REQUESTS))))}
    assert sums(measured, RECEIVED) == {"OK": (1, len(b"".join(answers)))}
    assert tuple(measured.point(SENT).explicit_bounds) == SIZE_BOUNDS


async def test_the_last_message_of_a_stream_counts(run: Run, backend: Backend) -> None:
    """Though the status may be here before it: that was so in one call of fifty or so."""
    for _ in range(100):
        measured = Measured()
        answers = await run(SS, measured, backend, measure_sizes=True)
        assert sums(measured, RECEIVED) == {"OK": (1, len(b"".join(answers)))}


async def test_they_are_not_measured_unless_asked_for(run: Run, backend: Backend, kind: Kind) -> None:
    """The other metrics are there, these are not."""
    measured = Measured()
    await run(kind, measured, backend)
    assert measured.points(SENT) == measured.points(RECEIVED) == []
    assert measured.point("grpc.client.attempt.duration").count == 1


@pytest.mark.parametrize("kind", [UU, US, SU], ids=str)
async def test_what_is_sent_again_counts_again(run: Run, fleet: Fleet, kind: Kind) -> None:
    """Each attempt has its own sizes: the failed one has received nothing."""
    measured = Measured()
    bad, good = await fleet(2)
    bad.script(fail(grpc.StatusCode.UNAVAILABLE))
    settings = {"policy": First(), "retry": IDEMPOTENT, "measure_sizes": True}
    async with asyncio.timeout(HANGS_S):
        answers = await run(kind, measured, bad, good, **settings)
    size = len(b"".join(kind.sent(REQUESTS)))
    sent, received = sums(measured, SENT), sums(measured, RECEIVED)
    assert sent["OK"] == (1, size)
    if kind is not SU:  # of a stream more or less went out before the failure was known
        assert sent["UNAVAILABLE"] == (1, size)
    assert received == {"OK": (1, len(b"".join(answers))), "UNAVAILABLE": (1, 0)}


async def test_hedges(fleet: Fleet) -> None:
    """The loser has sent as much as the winner, and received nothing."""
    measured = Measured()
    slow, quick = await fleet(2)
    slow.script(hang())
    settings: dict[str, Any] = {"retry": IDEMPOTENT, "hedging": lb.Hedging(delay_s=0.01), "measure_sizes": True}
    async with channel_to(slow, quick, policy=First(), **settings) as channel:
        measured.of(channel)
        await ready(channel, 2)
        await registered(channel)(b"abc", timeout=HANGS_S)
        assert sums(measured, SENT) == {"OK": (1, 3), "CANCELLED": (1, 3)}
        assert sums(measured, RECEIVED) == {"OK": (1, 3), "CANCELLED": (1, 0)}


async def test_a_stream_that_is_left_early_has_what_was_read(backend: Backend) -> None:
    """Messages nobody took from core do not count."""
    measured = Measured()
    async with channel_to(backend, measure_sizes=True) as channel:
        measured.of(channel)
        call = registered(channel, US)(b"abc", timeout=HANGS_S)
        assert await call.read() == b"abc"
        call.cancel()
        assert sums(measured, SENT) == {"CANCELLED": (1, 3)}
        assert sums(measured, RECEIVED) == {"CANCELLED": (1, 3)}


async def test_what_found_no_connection_was_not_sent(backend: Backend) -> None:
    """Core had the message in its hands, and kept it."""
    measured = Measured()
    async with channel_to(backend, measure_sizes=True) as channel:
        measured.of(channel)
        call = registered(channel)(b"abc", timeout=HANGS_S)
        await call
        logical = logical_call(call)
        assert logical is not None
        (attempt,) = logical.record.attempts
        attempt.outcome = classify(grpc.StatusCode.UNAVAILABLE, origin=Origin.UNSENT)
        doors.engine(channel).metrics.attempt_sizes(logical.record, attempt, 3, 0)
        assert sums(measured, SENT) == {"OK": (1, 3), "UNAVAILABLE": (1, 0)}


@pytest.mark.parametrize("kind", [UU, US], ids=str)
async def test_a_request_that_is_none_is_for_core(backend: Backend, kind: Kind) -> None:
    """A serializer that raises, and a request that is no bytes, end as they do without sizes."""

    def broken(request: bytes) -> bytes:
        raise ValueError(request)

    async def ends(serializer: Any, request: Any, measure_sizes: bool) -> object:
        async with channel_to(backend, measure_sizes=measure_sizes) as channel:
            try:
                return await kind.responses(kind.stub(channel, request_serializer=serializer)(request))
            except Exception as error:  # noqa: BLE001  # whatever it is, it must be the same
                return type(error)

    for serializer, request in ((broken, b"x"), (None, None)):
        assert await ends(serializer, request, True) == await ends(serializer, request, False)


async def test_a_user_may_give_them_a66s_names(backend: Backend) -> None:
    """As docs/metrics.md says: by a view of the SDK."""
    view = pytest.importorskip("opentelemetry.sdk.metrics.view").View
    a66 = "grpc.client.attempt.sent_total_compressed_message_size"
    measured = Measured(views=[view(instrument_name=SENT, name=a66)])
    async with channel_to(backend, measure_sizes=True) as channel:
        measured.of(channel)
        await registered(channel)(b"abc", timeout=HANGS_S)
        assert measured.point(a66).sum == 3
        assert measured.points(SENT) == []


@pytest.mark.parametrize("make", [lb.aio.channel, lb.sync.channel])
def test_it_is_true_or_false(make: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(TypeError, match="measure_sizes is 1; expected True or False"):
        make("static:///127.0.0.1:1", measure_sizes=1)
