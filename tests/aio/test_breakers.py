"""The breaker of each endpoint, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Any

import grpc
import pytest

import lb
from lb.aio import Channel
from lb.testing import Backend
from lb.testing.backend import Gate, echo, fail, hang, hold, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    HANGS_S,
    IDEMPOTENT,
    ONCE,
    REQUESTS,
    SS,
    US,
    UU,
    First,
    Kind,
    Told,
    channel_to,
    endpoints,
    eventually,
    failure,
    in_flight,
    ready,
)
from tests.support import doors
from tests.support.calls import breakers

TWO_FAILURES = lb.Breaker(consecutive_failures=2, failure_ratio=None, open_s=0.15, max_open_s=0.15, jitter=0.0)
FOR_LONG = lb.Breaker(consecutive_failures=2, failure_ratio=None, open_s=60)
INTERNAL = grpc.StatusCode.INTERNAL


async def broken(fleet: Fleet, kind: Kind, breaker: lb.Breaker, **settings: Any) -> tuple[Backend, Backend, Channel]:
    """Two backends; the preferred one has failed twice."""
    one, two = await fleet(2)
    channel = channel_to(one, two, policy=First(), retry=ONCE, breaker=breaker, **settings)
    await ready(channel, 2)
    one.always(fail(INTERNAL))
    for _ in range(2):
        assert (await failure(kind.start(channel))).code() is INTERNAL
    return one, two, channel


async def test_an_endpoint_that_keeps_failing_is_avoided(fleet: Fleet, kind: Kind) -> None:
    """After its second failure all calls go to the other one, and the snapshot says why."""
    one, two, channel = await broken(fleet, kind, FOR_LONG)
    async with channel:
        assert breakers(channel) == ["OPEN", "CLOSED"]
        for _ in range(5):
            assert await kind.run(channel) == kind.echo()
        first = channel.snapshot().endpoints[0]
    assert (len(one.received), len(two.received)) == (2, 5)
    assert not first.picked
    assert "INTERNAL: scripted failure" in first.why


async def test_a_probe_that_succeeds_closes_it(fleet: Fleet, kind: Kind) -> None:
    """Its time over, one call is let through; it succeeds, and the endpoint takes all calls again."""
    one, _, channel = await broken(fleet, kind, TWO_FAILURES)
    async with channel:
        one.always(None)
        await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
        for _ in range(3):
            assert await kind.run(channel) == kind.echo()
        assert breakers(channel) == ["CLOSED", "CLOSED"]
    assert len(one.received) == 2 + 3


async def test_its_moves_are_logged(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A line at INFO for each opening, with how long, why and the last failure; another when it closes. No more."""
    with caplog.at_level(logging.INFO, "lb.channel"):
        one, _, channel = await broken(fleet, UU, TWO_FAILURES)
        async with channel:
            await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
            await failure(UU.start(channel))
            one.always(None)
            await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
            for _ in range(5):
                await UU.run(channel)
    where = f"{channel.snapshot().target}: {one.address}: breaker"
    said = [record.getMessage() for record in caplog.records if "breaker" in record.getMessage()]
    assert said == [
        f"{where} open for 0.1 s: 2 failures in a row; INTERNAL: scripted failure",
        f"{where} open for 0.1 s: the probe failed; INTERNAL: scripted failure",
        f"{where} closed: the probe succeeded",
    ]


async def test_a_probe_that_fails_opens_it_again(fleet: Fleet, kind: Kind) -> None:
    """One call pays for it, the next goes elsewhere."""
    breaker = lb.Breaker(consecutive_failures=2, failure_ratio=None, open_s=0.15, jitter=0.0)
    one, two, channel = await broken(fleet, kind, breaker)
    async with channel:
        await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
        doors.opens_for(doors.candidates(channel)[0], 60.0)  # so that it is not over soon
        assert (await failure(kind.start(channel))).code() is INTERNAL
        assert breakers(channel) == ["OPEN", "CLOSED"]
        assert await kind.run(channel) == kind.echo()
    assert (len(one.received), len(two.received)) == (3, 1)


async def test_only_one_probe_is_out(fleet: Fleet, kind: Kind) -> None:
    """While it has no answer, other calls stay away."""
    one, two, channel = await broken(fleet, kind, TWO_FAILURES)
    gate = Gate()
    async with channel:
        one.always(hold(gate))
        await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
        probe = kind.start(channel)
        await one.until(lambda: one.in_flight == 1)
        assert breakers(channel)[0] == "HALF_OPEN"
        for _ in range(3):
            assert await kind.run(channel) == kind.echo()
        assert len(two.received) == 3
        gate.open()
        assert await kind.responses(probe) == kind.echo()
        assert breakers(channel)[0] == "CLOSED"


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_a_streams_first_message_closes_it(fleet: Fleet, kind: Kind) -> None:
    """A service of streams that last for hours would else have one of them at a time on an endpoint that is well."""
    one, two, channel = await broken(fleet, kind, TWO_FAILURES)
    async with channel:
        gate = Gate()
        one.always(hold(gate, after=1))
        await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
        calls = []
        for _ in range(3):
            call = kind.start(channel)
            calls.append(call)
            assert await anext(aiter(call)) == REQUESTS[0]
        assert breakers(channel)[0] == "CLOSED"
        assert (one.in_flight, len(two.received)) == (3, 0)
        gate.open()
        for call in calls:
            assert await kind.responses(call) == kind.echo()[1:]
    assert in_flight(channel) == 0


@pytest.mark.parametrize("policy", ["p2c", "least_request", "round_robin"])
async def test_who_refuses_everything_is_left_out(fleet: Fleet, policy: str) -> None:
    """It answers at once, so it looks idle, and each of its calls costs a retry: no call fails of it all the same."""
    backends = await fleet(3)
    async with channel_to(*backends, policy=policy, breaker=lb.Breaker(refused_s=0.1, open_s=60)) as channel:
        await ready(channel, 3)
        for _ in range(30):
            await UU.run(channel)
        backends[0].always(pushback(0))
        loop = asyncio.get_running_loop()
        until = loop.time() + HANGS_S
        while breakers(channel) != ["OPEN", "CLOSED", "CLOSED"]:
            assert loop.time() < until, channel.snapshot()
            assert await asyncio.gather(*(UU.run(channel) for _ in range(8))) == [UU.echo()] * 8
            await asyncio.sleep(0.02)  # the rate, which the budget is for
        seen = len(backends[0].received)
        for _ in range(20):
            await UU.run(channel)
    assert len(backends[0].received) == seen


@pytest.mark.parametrize("policy", ["weighted_round_robin", "least_request", "p2c"])
async def test_who_answers_badly_is_left_out(
    fleet: Fleet, kind: Kind, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two answers UNAUTHENTICATED at once: it is out, log and snapshot say why, and it is back once well."""
    one, two = await fleet(2)
    breaker = lb.Breaker(open_s=0.15, max_open_s=0.15, jitter=0.0)
    one.always(fail(grpc.StatusCode.UNAUTHENTICATED, "no key store"))
    async with channel_to(one, two, policy=policy, breaker=breaker, retry=ONCE) as channel:
        await ready(channel, 2)

        async def turn() -> None:
            with contextlib.suppress(grpc.RpcError):
                await kind.run(channel)

        async def until(says: str) -> str:
            loop = asyncio.get_running_loop()
            end = loop.time() + HANGS_S
            while says not in (why := channel.snapshot().endpoints[0].why):
                assert loop.time() < end, channel.snapshot()
                await asyncio.gather(*(turn() for _ in range(4)))
            return why

        with caplog.at_level(logging.INFO, "lb.channel"):
            why = await until("elsewhere")
        words = r"0 of \d+ calls were answered well here, \d+ of \d+ elsewhere; UNAUTHENTICATED: no key store"
        assert re.fullmatch(rf"breaker open for 0\.\d s more \({words}\)", why)
        said = [record.getMessage() for record in caplog.records if "breaker open" in record.getMessage()]
        assert re.search(rf"breaker open for 0\.1 s: {words}", said[0])
        one.always(None)
        while breakers(channel)[0] != "CLOSED":
            await turn()
        for _ in range(10):
            assert await kind.run(channel) == kind.echo()
        assert breakers(channel) == ["CLOSED", "CLOSED"]
    assert in_flight(channel) == 0


async def test_when_all_answer_badly_nobody_is_left_out(fleet: Fleet) -> None:
    """Most calls are for what is missing everywhere."""
    backends = await fleet(3)
    for backend in backends:
        backend.always(fail(grpc.StatusCode.NOT_FOUND))
    async with channel_to(*backends, policy="least_request", retry=ONCE) as channel:
        await ready(channel, 3)
        for _ in range(30):
            calls = [UU.start(channel) for _ in range(10)]
            assert {await call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}
        assert breakers(channel) == ["CLOSED"] * 3
        assert not channel.snapshot().panic


async def test_an_error_does_not_improve_a_reported_weight(fleet: Fleet) -> None:
    """A server that fails at once has nothing to do, and says so: `Orca` does not read that."""
    read: list[bytes] = []

    class Reading(First):
        def report(self, candidate: Any, report: bytes, now: float) -> None:
            """Keep it."""
            read.append(report)

    (one,) = await fleet(1)
    trailing = (("lb-endpoint-load-metrics-bin", b"idle"),)
    one.script(fail(grpc.StatusCode.NOT_FOUND, trailing_metadata=trailing), echo(trailing_metadata=trailing))
    async with channel_to(one, policy=Reading(), retry=ONCE) as channel:
        await failure(UU.start(channel))
        assert read == []
        await UU.run(channel)
        assert read == [b"idle"]


async def test_a_cancelled_probe_gives_its_place_back(fleet: Fleet, kind: Kind) -> None:
    """It decides nothing: the next call is the probe."""
    one, _, channel = await broken(fleet, kind, TWO_FAILURES)
    async with channel:
        one.script(hang())
        one.always(None)
        await eventually(lambda: channel.snapshot().endpoints[0].picked, "the breaker admits a probe")
        probe = kind.start(channel)
        await one.until(lambda: one.in_flight == 1)
        probe.cancel()
        assert await kind.run(channel) == kind.echo()
        assert breakers(channel)[0] == "CLOSED"
        assert in_flight(channel) == 0
    assert len(one.received) == 4


async def test_the_last_endpoint_is_never_left_out(backend: Backend, kind: Kind) -> None:
    """Its breaker is open, and it is used: there is no other. The snapshot calls it a panic."""
    backend.always(fail(INTERNAL))
    async with channel_to(backend, retry=ONCE, breaker=FOR_LONG) as channel:
        for _ in range(4):
            assert (await failure(kind.start(channel))).code() is INTERNAL
        assert breakers(channel) == ["OPEN"]
        assert channel.snapshot().panic
        assert "PANIC" in str(channel.snapshot())
    assert len(backend.received) == 4


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(pushback(0), id="a refusal"),
        pytest.param(fail(grpc.StatusCode.RESOURCE_EXHAUSTED), id="a quota"),
        pytest.param(fail(grpc.StatusCode.NOT_FOUND), id="an answer"),
        pytest.param(fail(grpc.StatusCode.UNIMPLEMENTED), id="an unknown method"),
    ],
)
async def test_what_says_nothing_bad_of_an_endpoint_opens_nothing(backend: Backend, kind: Kind, step: Any) -> None:
    """Refusals are ignored, and a server that answers, if only with an error, is well."""
    backend.always(step)
    async with channel_to(backend, retry=ONCE, breaker=lb.Breaker(consecutive_failures=1)) as channel:
        await failure(kind.start(channel))
        assert breakers(channel) == ["CLOSED"]


@pytest.mark.parametrize(
    "mistake",
    [{"metadata": (("X-Upper", "7"),)}, {"metadata": (("x", "\n"),)}, {"metadata": (("", "x"),)}, {"timeout": 1e12}],
    ids=["upper case", "newline", "no key", "300 centuries"],
)
async def test_a_callers_mistake_blames_no_endpoint(fleet: Fleet, kind: Kind, mistake: Any) -> None:
    """What core refuses to send says nothing of an endpoint: no breaker opens, nothing is retried or left in flight."""
    backends = await fleet(2)
    async with channel_to(*backends, breaker=lb.Breaker(consecutive_failures=1), retry=IDEMPOTENT) as channel:
        await ready(channel, 2)
        call = kind.start(channel, **mistake)
        with pytest.raises((grpc.RpcError, doors.grpcio("aio").InternalError)):
            await kind.responses(call)
        assert len(lb.attempts(call)) == 1
        await eventually(lambda: in_flight(channel) == 0)
        assert [(e.breaker, e.last_error) for e in channel.snapshot().endpoints] == [("CLOSED", "")] * 2
        assert [backend.received for backend in backends] == [[], []]
        assert await kind.run(channel) == kind.echo()


async def test_a_breaker_is_kept_when_the_set_changes(fleet: Fleet) -> None:
    """The endpoint stays in the set: it is still avoided."""
    one, two, three = await fleet(3)
    told = Told(*endpoints(one, two))
    async with lb.aio.channel(told, policy=First(), retry=ONCE, breaker=FOR_LONG) as channel:
        await ready(channel, 2)
        one.always(fail(INTERNAL))
        for _ in range(2):
            await failure(UU.start(channel))
        told.say(*endpoints(one, three))
        await eventually(lambda: channel.snapshot().endpoints[1].connectivity == "READY")
        assert breakers(channel) == ["OPEN", "CLOSED"]
        await UU.run(channel)
    assert len(three.received) == 1


async def test_deadlines_that_pass_unanswered_open_it(fleet: Fleet, kind: Kind) -> None:
    """A hung endpoint shows in nothing but its callers' own deadlines."""
    one, two = await fleet(2)
    breaker = lb.Breaker(consecutive_failures=2, failure_ratio=None, unanswered_s=0.05, open_s=60)
    async with channel_to(one, two, policy=First(), retry=ONCE, breaker=breaker) as channel:
        await ready(channel, 2)
        one.always(hang())
        calls = 0
        async with asyncio.timeout(HANGS_S):
            while breakers(channel) != ["OPEN", "CLOSED"]:
                calls += 1
                assert (await failure(kind.start(channel, timeout=0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
                await eventually(lambda: in_flight(channel) == 0, "it was given back")
        assert calls >= 2  # more where one got away so late that its deadline came too soon
        assert await kind.run(channel) == kind.echo()
        assert "no answer in " in channel.snapshot().endpoints[0].why
    assert len(two.received) == 1


async def test_short_deadlines_prove_nothing(fleet: Fleet) -> None:
    """Who gives a server little time says little of it."""
    (one,) = await fleet(1)
    async with channel_to(one, retry=ONCE, breaker=lb.Breaker(consecutive_failures=2, unanswered_s=30)) as channel:
        await ready(channel, 1)
        one.always(hang())
        for _ in range(4):
            await failure(UU.start(channel, timeout=0.05))
        await eventually(lambda: in_flight(channel) == 0, "all have ended")
        assert breakers(channel) == ["CLOSED"]


async def test_slow_calls_open_it(fleet: Fleet) -> None:
    """They are answered, but not in the time that ``slow_call_s`` leaves."""
    one, two = await fleet(2)
    breaker = lb.Breaker(consecutive_failures=2, failure_ratio=None, slow_call_s=0.05, open_s=60)
    async with channel_to(one, two, policy=First(), retry=ONCE, breaker=breaker) as channel:
        await ready(channel, 2)
        for _ in range(2):
            gate = Gate()
            one.script(hold(gate))
            call = UU.start(channel)
            await one.until(lambda: one.in_flight)
            asyncio.get_running_loop().call_later(0.1, gate.open)
            assert await UU.responses(call) == UU.echo()
        assert breakers(channel) == ["OPEN", "CLOSED"]
        assert "slower than 0.05 s" in channel.snapshot().endpoints[0].why
