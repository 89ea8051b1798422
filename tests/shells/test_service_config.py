"""A channel that is given gRPC's service config does what it says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import SERVICE, UNARY_STREAM, UNARY_UNARY, fail, hang, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import ONCE, US, First, target
from tests.shells.kit import Shell
from tests.support.calls import RETRY_POLICY

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def method(name: str = UNARY_UNARY, **fields: Any) -> dict[str, Any]:
    """A document about one method."""
    return {"methodConfig": [{"name": [{"service": SERVICE, "method": name.rpartition("/")[2]}], **fields}]}


@pytest.mark.parametrize("as_option", [False, True], ids=["argument", "option"])
async def test_the_listed_codes_are_retried_for_that_method(shell: Shell, backend: Backend, as_option: bool) -> None:
    """Though it is not idempotent; other codes and other methods are not. As an argument, or as grpcio's option."""
    document = json.dumps(method(retryPolicy=RETRY_POLICY))
    given: dict[str, Any] = {"service_config": document}
    if as_option:
        given = {"options": [("grpc.service_config", document)]}
    async with shell.open(target(backend), **given) as channel:
        backend.script(fail(UNAVAILABLE), fail(grpc.StatusCode.ABORTED))
        await shell.call(channel)
        assert len(backend.received) == 3
        backend.script(*[fail(UNAVAILABLE)] * 3)
        assert (await shell.failure(channel)).code() is UNAVAILABLE
        assert len(backend.received) == 6
        backend.script(fail(grpc.StatusCode.INTERNAL))
        assert (await shell.failure(channel)).code() is grpc.StatusCode.INTERNAL
        backend.script(fail(UNAVAILABLE))
        assert (await shell.failure(channel, kind=US.name)).code() is UNAVAILABLE
        assert [call.method for call in backend.received[6:]] == [UNARY_UNARY, UNARY_STREAM]


@pytest.mark.parametrize(("own", "most"), [(None, 50), (90, 50), (20, 20)])
async def test_the_documents_timeout_is_an_upper_bound(
    shell: Shell, backend: Backend, own: float | None, most: float
) -> None:
    """The earlier one holds; a call without any has the document's."""
    async with shell.open(target(backend), service_config=method(timeout="50s")) as channel:
        await shell.start(channel, timeout=own)
        timeout = backend.received[0].timeout_s
        assert timeout is not None
        assert most - 15 < timeout < most + 0.5


async def test_a_method_that_waits_for_ready(shell: Shell, fleet: Fleet) -> None:
    """It waits for the endpoint's return; a call that says otherwise is refused, and so is another method."""
    (backend,) = await fleet(1)
    await backend.stop()
    async with shell.open(target(backend), retry=ONCE, service_config=method(waitForReady=True)) as channel:
        assert (await shell.failure(channel, wait_for_ready=False)).code() is UNAVAILABLE
        assert (await shell.failure(channel, kind=US.name)).code() is UNAVAILABLE
        call = asyncio.ensure_future(shell.call(channel))
        await backend.start()
        await call


async def test_messages_may_be_too_large(shell: Shell, backend: Backend) -> None:
    """A request above its size is never sent; a response above its size is refused; others pass."""
    document = method(maxRequestMessageBytes=4, maxResponseMessageBytes=3)
    async with shell.open(target(backend), service_config=document) as channel:
        await shell.call(channel, requests=[b"abc"])
        error = await shell.failure(channel, requests=[b"abcde"])
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not any(call.messages == [b"abcde"] for call in backend.received)
        error = await shell.failure(channel, requests=[b"abcd"])
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await shell.call(channel, kind=US.name, requests=[b"abcde"])


@pytest.mark.parametrize(("option", "document"), [(3, 9), (9, 3)])
async def test_the_smaller_size_counts(shell: Shell, backend: Backend, option: int, document: int) -> None:
    """Of the channel's option and the document's."""
    options = (("grpc.max_receive_message_length", option),)
    async with shell.open(
        target(backend), options=options, service_config=method(maxResponseMessageBytes=document)
    ) as channel:
        await shell.call(channel, requests=[b"abc"])
        assert (await shell.failure(channel, requests=[b"abcd"])).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_retries_itself(shell: Shell, backend: Backend) -> None:
    """The option that turns grpcio's retries off does so here, document or not."""
    options = (("grpc.enable_retries", 0),)
    for given in ({}, {"service_config": method(retryPolicy=RETRY_POLICY)}):
        async with shell.open(target(backend), options=options, **given) as channel:
            backend.received.clear()
            backend.script(pushback(0))
            assert (await shell.failure(channel)).code() is UNAVAILABLE
            assert len(backend.received) == 1


async def test_odd_names_of_services_do_no_harm(shell: Shell, backend: Backend) -> None:
    """What grpcio takes for a name is taken, also where core is told of sizes."""
    names = [{"service": "a/b"}, {"service": "a/b", "method": "c"}, {"service": SERVICE}]
    document: dict[str, Any] = {
        "methodConfig": [{"name": names, "maxResponseMessageBytes": 3}, {"name": [{}], "timeout": "9s"}]
    }
    async with shell.open(target(backend), service_config=document) as channel:
        await shell.call(channel, requests=[b"abc"])
        assert (await shell.failure(channel, requests=[b"abcd"])).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_throttling_stops_retries(shell: Shell, backend: Backend) -> None:
    """Of 4 tokens two failures leave half: nothing is retried any more, until enough calls have succeeded."""
    document = {**method(retryPolicy=RETRY_POLICY), "retryThrottling": {"maxTokens": 4, "tokenRatio": 0.5}}
    async with shell.open(target(backend), service_config=document) as channel:
        backend.script(fail(UNAVAILABLE), fail(UNAVAILABLE))
        assert (await shell.failure(channel)).code() is UNAVAILABLE
        assert len(backend.received) == 2
        await shell.call(channel)
        backend.script(fail(UNAVAILABLE))
        assert (await shell.failure(channel)).code() is UNAVAILABLE  # 2.5 - 1
        backend.script(*[fail(grpc.StatusCode.NOT_FOUND)] * 6)  # neither success nor failure
        for _ in range(6):
            assert (await shell.failure(channel)).code() is grpc.StatusCode.NOT_FOUND
        for _ in range(4):
            await shell.call(channel)
        assert len(backend.received) == 14
        backend.script(*[fail(UNAVAILABLE)] * 2)
        assert (await shell.failure(channel)).code() is UNAVAILABLE  # 3.5 - 1 is above 2, one less is not
        assert len(backend.received) == 16


async def test_hedging(shell: Shell, fleet: Fleet) -> None:
    """A call that hangs is sent to another endpoint after the delay; the document declares that it may be."""
    a, b = await fleet(2)
    document = method(hedgingPolicy={"maxAttempts": 2, "hedgingDelay": "0.02s"})
    async with shell.open(target(a, b), policy=First(), service_config=document) as channel:
        await shell.ready(channel, 2)
        a.always(hang())
        await shell.call(channel)
        assert (len(a.received), len(b.received)) == (1, 1)


async def test_the_policy(shell: Shell, fleet: Fleet) -> None:
    """The document's policy chooses, unless another is given beside it."""
    backends = await fleet(3)
    document: dict[str, Any] = {"loadBalancingConfig": [{"no_such": {}}, {"pick_first": {}}]}
    async with shell.open(target(*backends), service_config=document) as channel:
        await shell.ready(channel, 3)
        assert channel.snapshot().policy == "pick_first"
        for _ in range(9):
            await shell.call(channel)
        assert sorted(len(backend.received) for backend in backends) == [0, 0, 9]
    async with shell.open(target(*backends), service_config=document, policy=lb.RoundRobin()) as channel:
        assert channel.snapshot().policy == "round_robin"


async def test_ring_hash_by_a_header(shell: Shell, fleet: Fleet) -> None:
    """Calls with one value of the header go to one endpoint, those of many values to all."""
    backends = await fleet(3)
    document = {"loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": "user-id"}}]}
    async with shell.open(target(*backends), service_config=document) as channel:
        await shell.ready(channel, 3)
        for user in range(30):
            for _ in range(2):
                await shell.call(channel, metadata=(("user-id", str(user)),))
    seen = Counter((call.metadata["user-id"], backend.name) for backend in backends for call in backend.received)
    assert set(seen.values()) == {2}
    assert all(backend.received for backend in backends)
