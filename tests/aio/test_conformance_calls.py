"""A call from its making to its end, in all worlds: what can be asked of it when, and who ends it how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc.aio import EOF

from lb.testing import Backend
from lb.testing.backend import Gate, echo, fail, hang, hold
from tests.aio.kit import HANGS_S, SS, UU, Kind, eventually, failure
from tests.aio.worlds import ONE_RESPONSE, REQUEST_STREAMS, RESPONSE_STREAMS, Side, World
from tests.support.tls import Certificate, self_signed

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OK = grpc.StatusCode.OK
CANCELLED = grpc.StatusCode.CANCELLED


# ---- what can be asked of it ----


async def test_before_during_and_after(world: World, kind: Kind) -> None:
    """``done``, ``cancelled`` and ``time_remaining`` at each stage."""
    gate = Gate()
    world.always(hold(gate))
    call = kind.start(world.channel, timeout=60)
    assert (call.done(), call.cancelled()) == (False, False)
    assert 30 < call.time_remaining() <= 60
    await world.arrived()
    assert (call.done(), call.cancelled()) == (False, False)
    gate.open()
    await kind.responses(call)
    assert await call.code() is OK
    assert (call.done(), call.cancelled(), call.cancel()) == (True, False, False)
    assert 0 < call.time_remaining() < 60


async def test_who_asks_early_waits(world: World, kind: Kind) -> None:
    """Everything that needs the answer may be asked at once, many times, in any order, and all are told."""
    gate = Gate()
    world.always(hold(gate, echo(initial_metadata=(("x-h", "1"),), trailing_metadata=(("x-t", "2"),))))
    call = kind.start(world.channel)
    asked = [
        asyncio.ensure_future(ask())
        for ask in (call.trailing_metadata, call.code, call.details, call.debug_error_string, call.initial_metadata) * 2
    ]
    await world.arrived()
    await asyncio.sleep(0)
    assert not any(task.done() for task in asked if "initial" not in repr(task))
    gate.open()
    assert await kind.responses(call) == kind.echo()
    trailers, code, details, debug, headers = (await asyncio.gather(*asked))[5:]
    assert (code, details, debug) == (OK, "", "")
    assert (headers["x-h"], trailers["x-t"]) == ("1", "2")


@ONE_RESPONSE
async def test_the_status_without_the_response(world: World, kind: Kind) -> None:
    """It comes though nobody awaits the call. (Where responses stream, they have to be read first.)"""
    call = kind.start(world.channel)
    async with asyncio.timeout(HANGS_S):
        assert await call.code() is OK
    assert call.done()


async def test_headers_before_anything_else(world: World, kind: Kind) -> None:
    """They are there as soon as the server sent them; the call is not done."""
    if kind is UU:
        return  # its headers come with its answer
    gate = Gate()
    world.always(hold(gate, echo(initial_metadata=(("x-h", "1"),))))
    call = kind.start(world.channel)
    async with asyncio.timeout(HANGS_S):
        assert (await call.initial_metadata())["x-h"] == "1"
    assert not call.done()
    gate.open()
    assert await kind.responses(call) == kind.echo()


async def test_wait_for_connection_of_a_call_that_fails(side: Side, kind: Kind) -> None:
    """Raises the call's error when there is no server."""
    async with side.make("127.0.0.1:1") as channel:
        call = kind.stub(channel)() if kind.streams_requests else kind.start(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.wait_for_connection()
        assert raised.value.code() is await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_awaiting_a_failed_call_again(world: World, kind: Kind) -> None:
    """Raises again, the same code and words."""
    world.always(fail(INVALID, "no such thing"))
    call = world.start_quietly(kind)
    first = await failure(call)
    assert await call.code() is INVALID
    if not kind.streams_responses:
        second = await failure(call)
        assert (second.code(), second.details()) == (first.code(), first.details())


async def test_a_done_callback_that_raises(world: World, kind: Kind) -> None:
    """Harms neither the call nor the channel."""
    call = kind.start(world.channel)

    def broken(done: Any) -> None:
        raise LookupError("a user's mistake")

    loop = asyncio.get_running_loop()
    before, said = loop.get_exception_handler(), []
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        call.add_done_callback(broken)
        async with asyncio.timeout(HANGS_S):
            await asyncio.gather(kind.responses(call), return_exceptions=True)
        assert await kind.run(world.channel) == kind.echo()
    finally:
        loop.set_exception_handler(before)


# ---- reading and writing ----


@RESPONSE_STREAMS
async def test_reading_after_the_end(world: World, kind: Kind) -> None:
    """EOF when it ended well; the error when it did not; ``CancelledError`` when it was cancelled."""
    call = kind.start(world.channel)
    while await call.read() is not EOF:
        pass
    assert await call.code() is OK
    assert await call.read() is EOF
    world.always(fail(INVALID))
    call = world.start_quietly(kind)
    assert await call.code() is INVALID
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    world.always(hang())
    call = kind.start(world.channel)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()


@RESPONSE_STREAMS
async def test_iterating_twice(world: World, kind: Kind) -> None:
    """It is one stream: the second gets nothing."""
    call = kind.start(world.channel)
    assert [message async for message in call] == kind.echo()
    assert [message async for message in call] == []
    assert aiter(call) is aiter(call)


@REQUEST_STREAMS
async def test_writing_to_a_cancelled_call(world: World, kind: Kind) -> None:
    """``InvalidStateError``; ``done_writing`` does nothing."""
    world.always(hang())
    call = kind.stub(world.channel)()
    await call.write(b"one")
    assert call.cancel()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"two")
    await call.done_writing()
    assert await call.code() is CANCELLED


@REQUEST_STREAMS
async def test_a_server_that_ends_first(world: World, kind: Kind) -> None:
    """The rest of the iterator is not asked for, and it is closed."""
    world.always(fail(INVALID, after=1))
    closed = asyncio.Event()
    given = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal given
        try:
            while True:
                given += 1
                yield b"x"
                if given == 2:
                    await world.until(lambda: world.received and world.received[0].ended)
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    call = kind.stub(world.channel)(requests())
    async with asyncio.timeout(HANGS_S):
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await kind.responses(call)
        await closed.wait()
    assert given < 1000  # of endless ones; how soon the end arrives is the machine's affair


@REQUEST_STREAMS
@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous", "plain"])
async def test_an_iterator_that_raises_at_once(world: World, kind: Kind, asynchronous: bool) -> None:
    """The call is cancelled, whatever kind of iterator it was."""

    async def requests() -> AsyncIterator[bytes]:
        raise LookupError("nothing")
        yield b""

    def plain() -> Iterator[bytes]:
        raise LookupError("nothing")
        yield b""

    call = kind.stub(world.channel)(requests() if asynchronous else plain())
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(HANGS_S):
            await kind.responses(call)
    assert await call.code() is CANCELLED


@REQUEST_STREAMS
async def test_requests_are_read_as_they_are_sent(world: World, kind: Kind) -> None:
    """An iterator is not drained ahead of flow control."""
    world.always(hang())
    given = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal given
        while given < 1000:
            given += 1
            yield bytes(100_000)

    call = kind.stub(world.channel)(requests())
    await world.arrived()
    before = -1
    while before != given:  # until nobody takes any more
        before = given
        await asyncio.sleep(0.05)
    assert given < 200
    call.cancel()


async def test_a_dialogue_is_not_held_back(world: World) -> None:
    """Each answer arrives before the next request is written, through an iterator too."""
    answered = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for i in range(5):
            answered.clear()
            yield str(i).encode()
            await answered.wait()

    seen = []
    async with asyncio.timeout(HANGS_S):
        async for message in SS.stub(world.channel)(requests()):
            seen.append(message)
            answered.set()
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


# ---- cancelling ----


async def test_cancel_then_ask(world: World, kind: Kind) -> None:
    """Code, words and metadata of a call that was cancelled before it was sent."""
    call = kind.start(world.channel)
    assert [call.cancel(), call.cancel(), call.cancelled(), call.done()] == [True, False, True, True]
    async with asyncio.timeout(HANGS_S):
        assert await call.code() is CANCELLED
        assert await call.details() == "Locally cancelled by application!"
        assert tuple(await call.initial_metadata()) == tuple(await call.trailing_metadata()) == ()
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)


async def test_wait_for_around_a_call(world: World, kind: Kind) -> None:
    """Its ``TimeoutError`` comes out, and the call is cancelled."""
    world.always(hang())
    call = kind.start(world.channel)
    await world.arrived()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kind.responses(call), 0.05)
    assert call.cancelled()
    await world.until(lambda: world.received[0].ended)


@ONE_RESPONSE
async def test_shielded(world: World, kind: Kind) -> None:
    """Who shields a call may be cancelled; the call goes on."""
    gate = Gate()
    world.always(hold(gate))
    call = kind.start(world.channel)

    async def wait() -> Any:
        return await call

    inner = asyncio.ensure_future(wait())
    outer = asyncio.shield(inner)
    await world.arrived()
    outer.cancel()
    await asyncio.sleep(0)
    gate.open()
    assert await inner == kind.echo()[0]
    assert await call.code() is OK


async def test_a_task_group(world: World, kind: Kind) -> None:
    """One failure cancels the others' calls, as with any coroutine."""
    world.always(hang())
    calls = [kind.start(world.channel) for _ in range(3)]

    async def fails() -> None:
        await world.until(lambda: len(world.received) == 3)
        raise LookupError

    with pytest.raises(ExceptionGroup):  # noqa: PT012  # the group is what raises
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(kind.responses(call))
            group.create_task(fails())
    assert all(call.cancelled() for call in calls)
    await world.until(lambda: all(received.ended for received in world.received))


async def test_many_at_once(world: World) -> None:
    """Some answered, some cancelled, some timed out: each gets its own end."""
    gate = Gate()
    world.always(hold(gate))
    await world.channel.channel_ready()
    answered, cancelled = ([UU.start(world.channel) for _ in range(20)] for _ in range(2))
    late = [UU.start(world.channel, timeout=0.1) for _ in range(20)]
    await world.until(lambda: len(world.received) >= 40)
    for call in cancelled:
        call.cancel()
    assert {await call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    gate.open()
    assert await asyncio.gather(*answered) == [b"one"] * 20
    assert {await call.code() for call in cancelled} == {CANCELLED}


# ---- credentials ----


class Plugin(grpc.AuthMetadataPlugin):
    """Adds the method's URL and name; its errors are the test's."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, context: Any, callback: Any) -> None:
        """For core."""
        callback((("x-method", context.method_name), ("x-url", context.service_url)), self.error)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    """For the name ``catalog``."""
    return self_signed("catalog")


@pytest.fixture
async def secure(side: Side, certificate: Certificate) -> AsyncIterator[tuple[Any, list[Backend]]]:
    """A channel over TLS, and its backends."""
    server = grpc.ssl_server_credentials([(certificate.key, certificate.certificate)])
    backends = [Backend(name, credentials=server) for name in "abc"[: side.backends]]
    for backend in backends:
        await backend.start()
    options = [("grpc.ssl_target_name_override", "catalog")]
    trust = grpc.ssl_channel_credentials(certificate.certificate)
    async with side.to(backends, credentials=trust, options=options) as channel:
        yield channel, backends
    for backend in backends:
        await backend.stop()


async def test_calls_over_tls(secure: tuple[Any, list[Backend]], kind: Kind) -> None:
    """All kinds, on all backends."""
    channel, backends = secure
    for _ in range(len(backends)):
        assert await kind.run(channel, timeout=HANGS_S) == kind.echo()


async def test_call_credentials(secure: tuple[Any, list[Backend]], kind: Kind) -> None:
    """A token, a plugin, and both composed; of that call alone."""
    channel, backends = secure
    both = grpc.composite_call_credentials(
        grpc.access_token_call_credentials("secret"), grpc.metadata_call_credentials(Plugin())
    )
    await kind.run(channel, credentials=both, timeout=HANGS_S)
    await kind.run(channel, timeout=HANGS_S)
    first, second = sorted(
        (received for backend in backends for received in backend.received),
        key=lambda received: "authorization" not in received.metadata,
    )
    assert first.metadata["authorization"] == "Bearer secret"
    assert kind.method.endswith(str(first.metadata["x-method"]))
    assert first.metadata["x-url"] == "https://catalog/lb.testing.Echo"
    assert "authorization" not in second.metadata


async def test_call_credentials_that_fail(secure: tuple[Any, list[Backend]], kind: Kind) -> None:
    """UNAVAILABLE with the plugin's words; nothing reaches a server."""
    channel, backends = secure
    broken = grpc.metadata_call_credentials(Plugin(LookupError("no token today")))
    call = kind.stub(channel)(*(() if kind.streams_requests else (b"x",)), credentials=broken, timeout=HANGS_S)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert "no token today" in await call.details()
    assert not any(backend.received for backend in backends)
    await eventually(lambda: not any(backend.in_flight for backend in backends))


@pytest.mark.parametrize("credentials", ["secret", 7, object()], ids=["text", "number", "object"])
async def test_call_credentials_of_no_kind(secure: tuple[Any, list[Backend]], kind: Kind, credentials: Any) -> None:
    """``AttributeError`` from the call itself; the channel goes on."""
    channel, _ = secure
    with pytest.raises(AttributeError, match="_credentials"):
        kind.start(channel, credentials=credentials)
    assert await kind.run(channel, timeout=HANGS_S) == kind.echo()
