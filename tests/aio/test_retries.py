"""Which failed attempts are followed by another, where, and when no more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from tenacity import stop_after_attempt, stop_never, wait_chain, wait_fixed

import lb
from lb.aio.calls import logical_call
from lb.core.candidate import Connectivity
from lb.core.outcome import Origin
from lb.testing import Backend
from lb.testing.backend import METHODS, Gate, answered_by, fail, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import (
    AT_ONCE,
    HANGS_S,
    IDEMPOTENT,
    SS,
    SU,
    US,
    UU,
    First,
    Kind,
    channel_to,
    eventually,
    failure,
    ready,
)
from tests.support import doors
from tests.support.wait import longer

WIRE_S = 0.02
"""grpc-timeout has three digits or so, and is rounded up."""
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def pair(fleet: Fleet, **settings: Any) -> tuple[Backend, Backend, Any]:
    """Two backends and a connected channel that prefers the first."""
    one, two = await fleet(2)
    channel = channel_to(one, two, policy=First(), **settings)
    await ready(channel, 2)
    return one, two, channel


# ---- which failures ----


def gave_up(call: Any) -> str:
    """Why no other attempt followed."""
    logical = logical_call(call)
    assert logical is not None
    return logical.record.gave_up


async def test_an_idempotent_call_goes_to_another_endpoint(fleet: Fleet, kind: Kind) -> None:
    """UNAVAILABLE, once: the other one answers, and both attempts are told with their outcomes."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail())
        call = kind.start(channel)
        assert await kind.responses(call) == kind.echo()
        assert answered_by(await call.trailing_metadata()) == "b"
        attempts = lb.attempts(call)
    assert [a.address for a in attempts] == [one.address, two.address]
    assert [a.outcome.code.name for a in attempts if a.outcome] == ["UNAVAILABLE", "OK"]
    assert [a.why for a in attempts] == ["", "retry: UNAVAILABLE: scripted failure"]
    assert (len(one.received), len(two.received)) == (1, 1)
    assert two.received[0].messages == kind.sent()


async def test_a_call_that_is_awaited_just_as_its_retry_has_ended_has_the_response(fleet: Fleet) -> None:
    """In the very turn of the loop in which the call is done, its response is there."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail())
        for _ in range(20):
            call = UU.start(channel)
            while not call.done():  # noqa: ASYNC110  # the turn in which that changes is what counts here
                await asyncio.sleep(0)
            assert await call == UU.echo()[0]
    assert len(two.received) == 20


async def test_a_connection_cut_in_mid_call_is_retried_elsewhere(fleet: Fleet, kind: Kind) -> None:
    """The server dies with the call in its hands."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(hang())
        call = kind.start(channel)
        await one.until(lambda: one.in_flight == 1)
        await one.stop()
        assert await kind.responses(call) == kind.echo()
    assert len(two.received) == 1


async def test_a_servers_own_words_do_not_say_that_nothing_was_sent(fleet: Fleet, kind: Kind) -> None:
    """A service may pass on its own dependency's "failed to connect": the method has run, and is not idempotent."""
    one, two = await fleet(2)
    words = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: Connection refused"
    one.always(fail(details=words))
    two.always(fail(details=words))
    async with channel_to(one, two) as channel:
        await ready(channel, 2)
        error = await failure(kind.start(channel))
    assert error.details() == words
    assert len(one.received) + len(two.received) == 1


async def test_an_attempt_that_never_found_a_connection_is_retried(fleet: Fleet, kind: Kind) -> None:
    """Also of a method that is not idempotent: no server has seen it."""
    one, two, channel = await pair(fleet)
    async with channel:
        await one.stop()
        dead = doors.candidates(channel)[0]
        await eventually(lambda: dead.connectivity is not Connectivity.READY)

        async def unsent() -> list[lb.Attempt]:
            # As in the moment before the loss is noticed.
            doors.engine(channel).balancer.set_connectivity(dead, Connectivity.READY, time.monotonic())
            call = kind.start(channel, timeout=HANGS_S)
            assert await kind.responses(call) == kind.echo()
            return lb.attempts(call)

        attempts = await unsent()
        while len(attempts) == 1:  # the connection's watcher was quicker than the call
            attempts = await unsent()
        assert [a.address for a in attempts] == [one.address, two.address]
        assert attempts[0].outcome is not None
        assert attempts[0].outcome.origin is Origin.UNSENT


# ---- idempotent by its proto ----

DECLARED = "/lb.tests.aio.Declared/{}"


def declare() -> None:
    """Put a service into protobuf's default pool, as importing a generated module does."""
    file = descriptor_pb2.FileDescriptorProto(name="lb/tests/aio.proto", package="lb.tests.aio")
    file.message_type.add(name="Nothing")
    service = file.service.add(name="Declared")
    levels = descriptor_pb2.MethodOptions.IdempotencyLevel
    for name, level in [("Plain", None), ("Pure", levels.NO_SIDE_EFFECTS), ("Twice", levels.IDEMPOTENT)]:
        method = service.method.add(name=name, input_type=".lb.tests.aio.Nothing", output_type=".lb.tests.aio.Nothing")
        if level is not None:
            method.options.idempotency_level = level
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())  # type: ignore[no-untyped-call,unused-ignore]


@pytest.mark.parametrize(("name", "expected"), [("Plain", 1), ("Pure", 2), ("Twice", 2), ("Unknown", 1)])
async def test_the_proto_says_what_is_idempotent(name: str, expected: int) -> None:
    """``idempotency_level`` of the method, found in protobuf's default pool, is enough."""
    declare()
    seen = 0

    async def refuse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        nonlocal seen
        seen += 1
        await context.abort(UNAVAILABLE, "away")
        raise AssertionError

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lb.tests.aio.Declared", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        retry = lb.Retry(stop=stop_after_attempt(2), wait=AT_ONCE)
        async with lb.aio.channel(f"static:///127.0.0.1:{port}", retry=retry) as channel:
            stub: Any = channel.unary_unary(DECLARED.format(name))
            assert (await failure(stub(b"", timeout=HANGS_S))).code() is UNAVAILABLE
    finally:
        await server.stop(None)
    assert seen == expected


# ---- push-back ----


# ---- committed ----


async def test_headers_commit_a_call(fleet: Fleet, kind: Kind) -> None:
    """The server has begun to answer: its failure is the call's."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail(initial_metadata=(("x-begun", "1"),)))
        call = kind.start(channel)
        assert (await failure(call)).code() is UNAVAILABLE
        assert ("x-begun", "1") in tuple(await call.initial_metadata())
    assert len(two.received) == 0


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_a_first_message_commits_a_call(fleet: Fleet, kind: Kind) -> None:
    """What the reader has got is not taken back."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail(after=1))
        call = kind.start(channel)
        assert await call.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is UNAVAILABLE
    assert len(two.received) == 0


# ---- time ----


async def test_an_attempts_own_timeout_leaves_time_for_another(fleet: Fleet, kind: Kind) -> None:
    """The first hangs: it is given up after ``attempt_timeout_s``, and the server is told that (it is cancelled)."""
    for attempt_timeout_s in longer(0.1):
        retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, stop=stop_never, attempt_timeout_s=attempt_timeout_s)
        one, two, channel = await pair(fleet, retry=retry)
        async with channel:
            one.always(hang())
            call = kind.start(channel, timeout=HANGS_S)
            assert await kind.responses(call) == kind.echo()
            attempts = lb.attempts(call)
        if one.received and len(attempts) == 2:
            break
    first, _ = attempts
    assert first.outcome is not None
    assert first.outcome.origin is Origin.ATTEMPT_TIMEOUT
    await one.until(lambda: one.received[0].ended)
    assert len(two.received) == 1


async def test_a_time_longer_than_the_calls_own_is_never_met(fleet: Fleet, kind: Kind) -> None:
    """Then the caller's deadline ends the call, on its first attempt, and blames nobody."""
    one, _, channel = await pair(fleet, retry=lb.Retry(idempotent=METHODS, attempt_timeout_s=HANGS_S))
    async with channel:
        one.always(hang())
        for timeout in longer(0.2):
            call = kind.start(channel, timeout=timeout)
            error = await failure(call)
            if lb.attempts(call):
                break  # else it was over before it began
        (attempt,) = lb.attempts(call)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert attempt.outcome is not None
    assert attempt.outcome.origin is Origin.CALLER


async def test_all_attempts_share_one_deadline(backend: Backend, kind: Kind) -> None:
    """Each is told what is left; the call ends within its timeout, with the last failure and why no more follow."""
    backend.always(fail())
    pauses = wait_chain(wait_fixed(0.5), wait_fixed(9))
    retry = lb.Retry(idempotent=METHODS, wait=pauses, stop=stop_never, jitter=0.0)
    async with channel_to(backend, retry=retry) as channel:
        await ready(channel, 1)
        started = time.monotonic()
        call = kind.start(channel, timeout=3)
        error = await failure(call)
        took = time.monotonic() - started
        assert gave_up(call) == "the deadline is nearer than the next attempt"
    assert error.code() is UNAVAILABLE
    assert took < 3
    left = [received.timeout_s or 0 for received in backend.received]
    assert len(left) == 2
    assert left[0] <= 3 + WIRE_S
    assert left[1] <= 3 - 0.5 + WIRE_S


async def test_the_callers_deadline_is_not_the_endpoints_fault(backend: Backend, kind: Kind) -> None:
    """It passes during an attempt: DEADLINE_EXCEEDED, one attempt, and nothing is held against the endpoint."""
    backend.always(hang())
    async with channel_to(backend, retry=IDEMPOTENT, breaker=lb.Breaker(consecutive_failures=1)) as channel:
        await ready(channel, 1)
        error = await failure(kind.start(channel, timeout=0.05))
        (endpoint,) = channel.snapshot().endpoints
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (endpoint.breaker, endpoint.last_error) == ("CLOSED", "")
    assert len(backend.received) <= 1  # it may arrive too late to be seen at all


# ---- how often ----


# ---- request streams ----


@pytest.mark.parametrize("kind", [SU, SS], ids=str)
async def test_what_was_written_is_sent_again(fleet: Fleet, kind: Kind) -> None:
    """All messages of the first attempt, then those written later, in order, and the half-close."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail() if kind is SS else fail(after=2))
        call = kind.stub(channel)()
        await call.write(b"one")
        await call.write(b"two")
        await two.until(lambda: two.in_flight == 1)
        await call.write(b"three")
        await call.done_writing()
        assert await kind.responses(call) == kind.echo()
    assert two.received[0].messages == [b"one", b"two", b"three"]
    assert two.received[0].half_closed


async def test_the_half_close_is_sent_again(fleet: Fleet) -> None:
    """The first attempt fails after it got everything, the end included."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    async with channel:
        one.always(fail(after=4))
        assert await SU.run(channel) == SU.echo()
    assert one.received[0].half_closed
    assert two.received[0].half_closed


@pytest.mark.parametrize("kind", [SU, SS], ids=str)
async def test_a_stream_longer_than_the_buffer_is_not_sent_again(fleet: Fleet, kind: Kind) -> None:
    """Beyond 1 MiB the beginning is no longer kept: the failure stands, and says why."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    gate = Gate()
    async with channel:
        one.always(hold(gate, fail()))
        call = kind.stub(channel)()
        for _ in range(3):
            await call.write(bytes(400_000))
        gate.open()
        error = await failure(call)
        assert error.code() is UNAVAILABLE
        assert gave_up(call) == "the request stream cannot be resent"
    assert len(two.received) == 0


@pytest.mark.parametrize("kind", [SU, SS], ids=str)
async def test_a_stream_just_within_the_buffer_is_sent_again(fleet: Fleet, kind: Kind) -> None:
    """Every byte of it."""
    one, two, channel = await pair(fleet, retry=IDEMPOTENT)
    requests = [bytes([i]) * 250_000 for i in range(4)]
    async with channel:
        one.always(fail())
        assert b"".join(await kind.run(channel, requests)) == b"".join(requests)
    assert two.received[0].messages == requests


@pytest.mark.parametrize("what", ["message", "headers"])
async def test_what_came_when_an_attempts_time_ran_out_counts(what: str) -> None:
    """It was on its way to its reader when the attempt's time ran out: it is shown, and no other attempt is made.

    The server runs in threads, so that the loop can be held up while it answers: then both are due at once.
    """
    begun, answer = threading.Event(), threading.Event()

    def serve(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        first = not begun.is_set()
        if first:
            if what == "message":
                context.send_initial_metadata(())  # empty ones commit nothing, and let the client read
            begun.set()
            answer.wait(HANGS_S)
            if what == "headers":
                context.send_initial_metadata((("late", "yes"),))
        yield b"first" if first else b"second"

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_registered_method_handlers(
        "lb.testing.Echo", {"UnaryStream": grpc.unary_stream_rpc_method_handler(serve)}
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    retry = lb.Retry(idempotent=METHODS, wait=AT_ONCE, attempt_timeout_s=0.2)
    try:
        async with lb.aio.channel(f"static:///{address}", retry=retry) as channel:
            await ready(channel, 1)
            call = US.start(channel)
            reading = asyncio.ensure_future(US.responses(call))
            await eventually(begun.is_set)
            await asyncio.sleep(0.05)  # it reads; were it late, the first message would be dropped by grpcio
            answer.set()
            time.sleep(0.4)  # noqa: ASYNC251  # holds the loop up, which is the point
            assert await reading == [b"first"]
            assert dict(tuple(await call.initial_metadata())) == ({"late": "yes"} if what == "headers" else {})
            assert [a.outcome and a.outcome.code.name for a in lb.attempts(call)] == ["OK"]
    finally:
        server.stop(None).wait()
