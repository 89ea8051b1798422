"""Policies on real connections: they see the call's metadata, its end, its server's report, and a connection's age."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

import lb
from lb.aio.calls import logical_call
from lb.core.orca import STANDARD_KEY
from lb.core.outcome import REPORT_KEY
from lb.testing.backend import Backend, Step, echo
from tests.aio.kit import HANGS_S, KINDS, UU, Kind, Told, channel_to, endpoints, eventually
from tests.support.doors import candidates


@pytest.fixture
async def three() -> AsyncIterator[tuple[Backend, Backend, Backend]]:
    """Three backends."""
    async with Backend("a") as a, Backend("b") as b, Backend("c") as c:
        yield a, b, c


def counts(*backends: Backend) -> Counter[str]:
    """How many calls each received."""
    return Counter({backend.name: len(backend.received) for backend in backends})


async def settled(channel: Any, *backends: Backend) -> None:
    """Call until all are connected, and forget these calls."""
    await channel.channel_ready()
    while not all(candidate.ready_since is not None for candidate in candidates(channel)):
        await UU.run(channel)
    for backend in backends:
        backend.received.clear()


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_calls_of_one_key_go_to_one_backend(three: tuple[Backend, Backend, Backend], kind: Kind) -> None:
    """The key is in the call's metadata; other keys go elsewhere, too."""
    async with channel_to(*three, policy=lb.RingHash(key="user")) as channel:
        await settled(channel, *three)
        for _ in range(10):
            assert await kind.run(channel, metadata=(("user", "7"),))
        assert sorted(counts(*three).values()) == [0, 0, 10]
        for user in range(40):
            await kind.run(channel, metadata=(("user", f"user-{user}"),))
        assert min(counts(*three).values()) > 0
        assert all(candidate.stats.total.in_flight == 0 for candidate in candidates(channel))


async def test_a_key_that_an_interceptor_adds_counts(three: tuple[Backend, Backend, Backend]) -> None:
    """The pick waits for what interceptors make of the metadata."""

    class Adds(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg,misc,unused-ignore]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            metadata = grpc.aio.Metadata(*(details.metadata or ()), ("user", "7"))
            return await continuation(details._replace(metadata=metadata), request)

    async with channel_to(*three, policy=lb.RingHash(key="user"), interceptors=[Adds()]) as channel:
        await settled(channel, *three)
        for _ in range(10):
            await UU.run(channel)
        assert sorted(counts(*three).values()) == [0, 0, 10]


async def test_p2c_measures_and_hangs_back(three: tuple[Backend, Backend, Backend]) -> None:
    """Each answer is measured; one that is known to be slow gets nothing while others are free."""
    async with channel_to(*three, policy="p2c") as channel:
        await settled(channel, *three)
        while any(candidate.stats is None for candidate in candidates(channel)):
            await UU.run(channel)
        slow = next(candidate for candidate in candidates(channel) if candidate.endpoint.address == three[0].address)
        slow.stats.latency_s, slow.stats.stamp = 5.0, time.monotonic()
        before = counts(*three)
        for _ in range(30):
            await UU.run(channel)
        assert counts(*three)["a"] == before["a"]


async def test_orca_reads_what_servers_report(three: tuple[Backend, Backend, Backend]) -> None:
    """Reports under both keys: a has four times the capacity of b and c, and gets two thirds."""
    async with channel_to(*three, policy=lb.Orca(blackout_s=0, update_s=0.1)) as channel:
        await settled(channel, *three)
        for backend, used in zip(three, (0.2, 0.8, 0.8), strict=True):
            data = lb.LoadReport(qps=100, cpu_utilization=used).encode()
            backend.script(*[echo(trailing_metadata=((STANDARD_KEY, data), (REPORT_KEY, data)))] * 1000)
        while any(candidate.stats is None for candidate in candidates(channel)):
            await UU.run(channel)
        updated_at = time.monotonic() + 0.1
        while time.monotonic() < updated_at:
            await UU.run(channel)
        await UU.run(channel)
        before = counts(*three)
        for _ in range(60):
            await UU.run(channel)
        got = counts(*three) - before
        assert abs(got["a"] - 40) <= 3


async def test_a_report_that_is_rubbish_harms_nothing(three: tuple[Backend, Backend, Backend]) -> None:
    """The call is as it was."""
    async with channel_to(*three, policy="orca") as channel:
        await settled(channel, *three)
        for backend in three:
            backend.script(*[Step(trailing_metadata=((REPORT_KEY, b"\xff"),))] * 3)
        for _ in range(9):
            assert await UU.run(channel) == [b"one"]


@pytest.mark.parametrize(
    "policy",
    [
        lb.LeastRequest(),
        lb.ZoneAware(zone="x", policy="p2c"),
        lb.Subset(size=2, client=1),
        lb.SlowStart(policy="least_request"),
        lb.SlowStart(policy=lb.RingHash(key="user")),
    ],
    ids=lambda policy: policy.name,
)
async def test_every_policy_serves_every_kind(three: tuple[Backend, Backend, Backend], policy: lb.Policy) -> None:
    """With a backend that dies in between, no call fails; nothing is left in flight."""
    retry = lb.Retry(idempotent=[kind.method for kind in KINDS])
    async with channel_to(*three, policy=policy, retry=retry) as channel:
        await settled(channel, *three)
        for round_ in range(6):
            for kind in KINDS:
                assert await kind.run(channel, metadata=(("user", str(round_)),))
            if round_ == 2:
                await three[2].stop()
        assert all(candidate.in_flight == 0 for candidate in candidates(channel))
        assert channel.snapshot().policy == policy.name


async def test_a_change_to_a_policy_of_keys_holds_for_calls_that_wait(
    three: tuple[Backend, Backend, Backend], kind: Kind
) -> None:
    """They began under a policy that reads no metadata, and pick under one that does: by their key."""
    told = Told()
    async with lb.aio.channel(told) as channel:
        calls = [kind.start(channel, metadata=(("user", "7"),), timeout=HANGS_S) for _ in range(6)]
        await eventually(lambda: told.started)
        channel.change_policy(lb.RingHash(key="user"))
        told.say(*endpoints(*three))
        for call in calls:
            await kind.responses(call)
    read = [call.record.metadata for call in map(logical_call, calls) if call is not None]
    assert read == [(("user", "7"),)] * 6
