"""Admission on both kinds of server: what is refused, how its client learns it, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

import lb.aio
from lb.server import Admission, Concurrency, Limits, Rate
from lb.testing import Backend
from lb.testing.clock import FakeClock
from tests.server.conftest import failed
from tests.server.conftest import health as healthy
from tests.server.worlds import KINDS, ThreadedWorld, World, no_request
from tests.support.wait import eventually, longer

ONE = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))
ONE_WAITS = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=1, queue_s=60.0))


@pytest.fixture(params=[World, ThreadedWorld], ids=["asyncio", "threads"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Ends with the test."""
    async with AsyncExitStack() as stack:
        yield request.param(stack)


FOR_ASYNCIO = pytest.mark.parametrize("world", [World], indirect=True, ids=["asyncio"])
"""What holds there alone, or looks inside. `test_threads.py` and `test_threads_queue.py`: what holds with threads."""


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The trailing metadata of an error."""
    return {str(key): value for key, value in error.trailing_metadata()}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_server_refuses_before_any_work(world: World, kind: str) -> None:
    """A call of each kind, also one whose request never comes: UNAVAILABLE, push-back; nothing was read of it."""
    await world.open(ONE)
    first = await world.hold()
    read = world.read
    silent: Any = world.channel.stream_unary(f"/a.B/{kind}")
    for error in (await world.refused(kind), await failed(silent(no_request(world.go), timeout=60))):
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "the server is at its concurrency limit"
        assert trailing(error)["grpc-retry-pushback-ms"] == "0"
    assert (world.begun, world.read) == (1, read)
    world.go.set()
    assert await first == [b"done"]
    await world.still_serves()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_call_may_be_tried_elsewhere(world: World, kind: str) -> None:
    """A refusal has no headers before its status: a client that had seen some would be committed to this server."""
    await world.open(ONE)
    first = await world.hold()
    async with lb.aio.channel(f"static:///{world.address}") as world.channel:
        call = world.start(kind)
        await failed(call.read() if kind.endswith("stream") else call)
        assert len(lb.attempts(call)) > 1
    world.go.set()
    assert await first == [b"done"]


@pytest.mark.parametrize("kind", KINDS)
async def test_over_its_rate_it_says_when_to_come_back(world: World, kind: str) -> None:
    """RESOURCE_EXHAUSTED with ``google.rpc.RetryInfo``, and without push-back."""
    await world.open(Limits(concurrency=None, rate=Rate(0.001, 1.0)))
    world.go.set()
    assert await world.run() == [b"done"]
    read = world.read
    error = await world.refused(kind)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "too many calls a second, the server takes 0.001; try again in" in (error.details() or "")
    found = trailing(error)
    assert "grpc-retry-pushback-ms" not in found
    status = Status.FromString(found["grpc-status-details-bin"])
    info = RetryInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], error.details())
    assert 900 < info.retry_delay.ToMilliseconds() / 1000 <= 1000
    assert (world.begun, world.read) == (1, read)


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_of_each_kind_are_answered(world: World, kind: str) -> None:
    """And each gives its place back."""
    await world.open(ONE)
    world.go.set()
    for _ in range(3):
        assert await world.run(kind) == ([b"first", b"last"] if kind.endswith("stream") else [b"done"])
        await world.load_is(0.0)


async def test_a_stream_of_responses_has_a_place_until_its_first(world: World) -> None:
    """It may last for hours."""
    await world.open(ONE)
    stream = world.start("unary_stream")
    assert await stream.read() == b"first"
    await world.load_is(0.0)
    other = asyncio.create_task(world.run())
    await eventually(lambda: world.begun == 2, "both run")
    world.go.set()
    assert await stream.read() == b"last"
    assert await other == [b"done"]
    await world.still_serves()


@FOR_ASYNCIO
async def test_a_client_that_leaves_the_queue_leaves_room(world: World) -> None:
    """It never ran, and its room in the queue is another one's."""
    await world.open(ONE_WAITS)
    first = await world.hold()
    waits = world.start()
    await world.load_is(2.0)
    waits.cancel()
    await world.load_is(1.0)
    second = asyncio.create_task(world.run())
    await world.load_is(2.0)
    world.go.set()
    assert tuple(await asyncio.gather(first, second)) == ([b"done"], [b"done"])
    assert world.begun == 2
    await world.still_serves()


@FOR_ASYNCIO
@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary"])
async def test_a_client_that_leaves_while_its_call_runs_gives_the_place_back(world: World, kind: str) -> None:
    """The handler is cancelled."""
    await world.open(ONE)
    call = world.start(kind)
    await eventually(lambda: world.begun, "it runs")
    call.cancel()
    await eventually(lambda: world.cancelled, "the handler is cancelled")
    await world.still_serves()


async def test_a_client_that_leaves_before_it_has_sent_its_request_gives_the_place_back(world: World) -> None:
    """No handler ever runs: grpcio waits for the request of a call that has its place."""
    await world.open(ONE)
    opening: Any = world.channel.stream_unary("/a.B/unary_unary")
    call = opening(no_request(asyncio.Event()))
    await world.load_is(1.0)
    call.cancel()
    await world.still_serves()
    assert world.begun == 1


async def test_the_newest_drives_out_the_oldest_that_waits(world: World) -> None:
    """Which learns it at once, with push-back."""
    await world.open(ONE_WAITS)
    first = await world.hold()
    oldest = asyncio.create_task(world.refused())
    await world.load_is(2.0)
    newest = asyncio.create_task(world.run())
    error = await oldest
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-retry-pushback-ms" in trailing(error)
    world.go.set()
    assert tuple(await asyncio.gather(first, newest)) == ([b"done"], [b"done"])
    await world.still_serves()


async def test_the_sheddable_are_driven_out_and_the_critical_are_not(world: World) -> None:
    """The metadata ``lb-priority`` say which is which."""
    await world.open(ONE_WAITS)
    first = await world.hold()
    sheddable = asyncio.create_task(world.refused(metadata=(("lb-priority", "sheddable"),)))
    await world.load_is(2.0)
    critical = asyncio.create_task(world.run(metadata=(("lb-priority", "critical"),)))
    assert (await sheddable).code() is grpc.StatusCode.UNAVAILABLE
    assert (await world.refused()).code() is grpc.StatusCode.UNAVAILABLE
    world.go.set()
    assert tuple(await asyncio.gather(first, critical)) == ([b"done"], [b"done"])
    await world.still_serves()


async def test_a_call_that_waits_too_long_is_refused(world: World) -> None:
    """After ``queue_s``."""
    await world.open(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue_s=0.001)))
    first = await world.hold()
    assert (await world.refused()).code() is grpc.StatusCode.UNAVAILABLE
    world.go.set()
    await first
    await world.still_serves()


async def raises(context: Any) -> None:
    """A handler's mistake."""
    raise ValueError("broken")


async def aborts(context: Any) -> None:
    """A handler that aborts."""
    await context.abort(grpc.StatusCode.NOT_FOUND, "not here")


async def sets_a_code(context: Any) -> None:
    """A handler that fails by its context."""
    context.set_code(grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("work", "code"),
    [
        (raises, grpc.StatusCode.UNKNOWN),
        (aborts, grpc.StatusCode.NOT_FOUND),
        (sets_a_code, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_handler_that_fails_gives_its_place_back(
    world: World, kind: str, work: Callable[[Any], Any], code: grpc.StatusCode
) -> None:
    """However it fails; its status reaches the client."""
    await world.open(ONE)
    world.work = work
    assert (await world.refused(kind)).code() is code
    await world.still_serves()


async def test_a_server_stops_while_calls_wait(world: World) -> None:
    """Nothing hangs, and no place is held afterwards."""
    await world.open(ONE_WAITS)
    first = await world.hold()
    second = asyncio.create_task(world.run())
    await world.load_is(2.0)
    await asyncio.wait_for(world.stop(), 30)
    for result in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(result, grpc.aio.AioRpcError)
    world.end()
    await world.load_is(0.0)


async def test_grpcs_own_services_are_never_refused(world: World) -> None:
    """Health is asked of a server that is full, too."""
    await world.open(Limits(concurrency=ONE.concurrency, rate=Rate(0.001, 1.0)))
    first = await world.hold()
    for _ in range(3):
        assert await healthy(world.channel) == 1
    world.go.set()
    await first


async def test_an_unknown_method_takes_no_place(world: World) -> None:
    """It is UNIMPLEMENTED, as ever."""
    await world.open(ONE)
    first = await world.hold()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.channel.unary_unary("/a.B/unknown")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    world.go.set()
    await first


@FOR_ASYNCIO
async def test_a_call_that_cannot_be_answered_in_time_is_refused(world: World) -> None:
    """Its method's median is known, and it has less time left: DEADLINE_EXCEEDED, and no handler runs."""
    await world.open(Limits())
    times = world.admission.rules.times("/a.B/unary_unary")
    for _ in range(200):
        times.typical.observe(3600.0)
    error = await world.refused(timeout=60)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "are left, and the method takes about" in (error.details() or "")
    assert world.begun == 0
    await world.load_is(0.0)


@FOR_ASYNCIO
async def test_calls_that_fail_say_nothing_about_how_long_a_method_takes(world: World) -> None:
    """Those that are answered do, from the moment on in which their request is there."""
    clock = FakeClock()
    await world.open(Limits(concurrency=Concurrency(limit=120, adaptive=False)))
    world.admission.places.clock = clock
    times = world.admission.rules.times("/a.B/unary_unary")
    world.work = sets_a_code
    for error in await asyncio.gather(*(failed(world.start()) for _ in range(120))):
        assert error.code() is grpc.StatusCode.NOT_FOUND
    assert times.typical.median_s is None
    await world.load_is(0.0)
    world.work = None
    world.go.set()

    async def late(sent: asyncio.Event) -> AsyncIterator[bytes]:
        await sent.wait()
        yield b"x"

    sent = asyncio.Event()
    opening: Any = world.channel.stream_unary("/a.B/unary_unary")
    calls = [opening(late(sent), timeout=60) for _ in range(120)]
    await world.load_is(1.0)
    clock.advance(3600.0)
    sent.set()
    assert await asyncio.gather(*calls) == [b"done"] * 120
    assert times.typical.median_s is not None
    assert times.typical.median_s < 1.0


async def test_each_client_has_its_own_rate(world: World) -> None:
    """By the metadata of ``client_key``; who does not say who it is has no rate of its own."""
    await world.open(Limits(client_rate=Rate(0.001, 1.0), client_key="who"))
    world.go.set()
    assert await world.run(metadata=(("who", "a"),)) == [b"done"]
    assert (await world.refused(metadata=(("who", "a"),))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await world.run(metadata=(("who", "b"),)) == [b"done"]
    for _ in range(3):
        assert await world.run() == [b"done"]


# ---- the longest time


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_handler_has_a_deadline_without_its_client(world: World, kind: str, timeout: float | None) -> None:
    """Where the client has none, or a later one: the handler is cancelled, and the status says why."""
    for timeout_s in longer(0.01):
        await world.open(Limits(timeout_s=timeout_s), world.incoming())
        error = await world.refused(kind, timeout=timeout)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == f"the handler took longer than the {timeout_s:g} s it may take here"
        if world.begun:  # else it was over before the first response was sent
            break
    world.end()
    await eventually(lambda: world.cancelled, "the handler has seen it")
    assert (world.begun, world.cancelled) == (1, 1)
    await world.load_is(0.0)


@FOR_ASYNCIO
async def test_a_stream_that_waits_for_its_client_ends_with_the_status(world: World) -> None:
    """Its time is over while its client does not take a response: once it has, it is told, and the handler ends."""
    await world.open(Limits(timeout_s=0.001))
    world.first = bytes(3 << 20)  # far more than a connection takes from a stream that nobody reads
    stream = world.start("unary_stream", timeout=30)
    await eventually(lambda: world.opened and world.times_over, "its time is over")
    assert await stream.read() == world.first
    assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await stream.details() == "the handler took longer than the 0.001 s it may take here"
    assert world.begun == 0
    await world.load_is(0.0)


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(
    ("given", "longest", "most"), [(None, 30.0, 30), (90, 30.0, 30), (30, 90.0, 30), (30, None, 30)]
)
async def test_a_handlers_calls_inherit_the_earlier_deadline(
    given: float | None, longest: float | None, most: float, outside: bool
) -> None:
    """The client's or the server's own, whichever interceptor is outside; and without any interceptor but admission."""
    limits = Limits(timeout_s=longest)
    admission, incoming = Admission(limits), lb.aio.incoming()
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(Backend())
        channel = await stack.enter_async_context(lb.aio.channel(f"static:///{backend.address}"))

        async def forward(request: bytes, context: Any) -> bytes:
            call: Any = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
            answer: bytes = await call(request)
            return answer

        server = grpc.aio.server(interceptors=[admission, incoming] if outside else [incoming, admission])
        handlers: dict[str, Any] = {"C": grpc.unary_unary_rpc_method_handler(forward)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        client = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        call: Any = client.unary_unary("/a.B/C")
        await call(b"", timeout=given)
        (received,) = backend.received
    assert received.timeout_s is not None
    assert most - 15 < received.timeout_s < most + 0.5
