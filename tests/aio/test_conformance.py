"""One test body, plain ``grpc.aio`` and ours (see `worlds`): what code written for grpcio relies on."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest
from grpc.aio import EOF

from lb.testing.backend import NAME_KEY, Gate, echo, fail, hang, hold
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, SS, UU, Kind, each, failure
from tests.aio.worlds import ONE_RESPONSE, REQUEST_STREAMS, RESPONSE_STREAMS, World

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALL_TEXT = "".join(chr(c) for c in range(0x20, 0x7F))


# ---- a call that goes well ----


async def test_the_answer(world: World, kind: Kind) -> None:
    """All responses, and exactly what was sent arrived."""
    assert await kind.run(world.channel) == kind.echo()
    assert world.received[0].messages == kind.sent()
    assert world.received[0].method == kind.method


async def test_the_final_status(world: World, kind: Kind) -> None:
    """OK with no words; ``done`` and not ``cancelled``; cancelling does nothing any more."""
    call = kind.start(world.channel)
    await kind.responses(call)
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""
    assert not await call.debug_error_string()
    assert call.done()
    assert not call.cancelled()
    assert call.cancel() is False
    assert not call.cancelled()
    assert call.time_remaining() is None


async def test_metadata_goes_both_ways(world: World, kind: Kind) -> None:
    """Text, bytes, repeated keys; headers and trailers as `grpc.aio.Metadata`."""
    world.always(
        echo(
            initial_metadata=(("x-head", "1"), ("x-head", "2"), ("x-bin", b"\x00\xff")),
            trailing_metadata=(("x-tail", ALL_TEXT.strip()), ("y-bin", b"")),
        )
    )
    metadata = grpc.aio.Metadata(("x-user", "7"), ("x-raw-bin", b"\x01\x02"))
    call = kind.start(world.channel, metadata=metadata)
    assert await kind.responses(call) == kind.echo()
    headers, trailers = await call.initial_metadata(), await call.trailing_metadata()
    assert isinstance(headers, grpc.aio.Metadata)
    assert isinstance(trailers, grpc.aio.Metadata)
    assert headers.get_all("x-head") == ["1", "2"]
    assert headers["x-bin"] == b"\x00\xff"
    assert trailers["x-tail"] == ALL_TEXT.strip()
    assert trailers["y-bin"] == b""
    assert str(trailers[NAME_KEY]) in "abc"
    assert world.received[0].metadata["x-user"] == "7"
    assert world.received[0].metadata["x-raw-bin"] == b"\x01\x02"


@pytest.mark.parametrize("metadata", [None, (), (("a", "1"),), [("a", "1")], grpc.aio.Metadata(("a", "1"))], ids=str)
async def test_metadata_in_any_form(world: World, kind: Kind, metadata: Any) -> None:
    """None, tuple, list or `grpc.aio.Metadata`."""
    assert await kind.run(world.channel, metadata=metadata) == kind.echo()
    assert ("a" in world.received[0].metadata) == bool(metadata)


async def test_the_deadline_reaches_the_server(world: World, kind: Kind) -> None:
    """And ``time_remaining`` counts down on this side."""
    call = kind.start(world.channel, timeout=60)
    assert 30 < call.time_remaining() <= 60
    await kind.responses(call)
    assert 0 < call.time_remaining() < 60
    timeout_s = world.received[0].timeout_s
    assert timeout_s is not None
    assert 30 < timeout_s <= 60.5


async def test_compression_of_one_call(world: World, kind: Kind) -> None:
    """It goes through."""
    big = (bytes(50_000),) * 2
    answer = await kind.run(world.channel, big, compression=grpc.Compression.Gzip)
    assert answer == kind.echo(big)


async def test_wait_for_connection(world: World, kind: Kind) -> None:
    """Returns; the call goes on as if nothing had been asked."""
    call = kind.start(world.channel)
    async with asyncio.timeout(HANGS_S):
        await call.wait_for_connection()
    assert await kind.responses(call) == kind.echo()


async def test_an_unused_multicallable_costs_nothing(world: World, kind: Kind) -> None:
    """One stub, many calls at once."""
    stub = kind.stub(world.channel)
    calls = [stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0]) for _ in range(8)]
    assert await asyncio.gather(*(kind.responses(call) for call in calls)) == [kind.echo()] * 8


@ONE_RESPONSE
async def test_awaiting_twice(world: World, kind: Kind) -> None:
    """The same response, also for two who wait at the same time."""
    call = kind.start(world.channel)

    async def wait() -> Any:
        return await call

    first, second = await asyncio.gather(wait(), wait())
    assert first == second == await call == kind.echo()[0]


# ---- serializers ----


async def test_serializers(world: World, kind: Kind) -> None:
    """Both sides, each message."""
    stub = kind.stub(world.channel, request_serializer=str.encode, response_deserializer=bytes.decode)
    words = [request.decode() for request in REQUESTS]
    call = stub(iter(words) if kind.streams_requests else words[0])
    answer: list[Any] = await kind.responses(call)
    assert answer == [message.decode() for message in kind.echo()]


def broken(message: Any) -> Any:
    """A serializer, or a deserializer, that raises."""
    raise LookupError("no such field")


async def test_a_request_that_can_not_be_serialized(world: World, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Grpcio logs it and sends an empty message in its place, so we do."""
    stub = kind.stub(world.channel, request_serializer=broken)
    call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0])
    assert b"".join(await kind.responses(call)) == b""
    assert set(world.received[0].messages) == {b""}
    assert "Exception serializing message" in caplog.text


@REQUEST_STREAMS
async def test_a_written_message_that_can_not_be_serialized(world: World, kind: Kind) -> None:
    """The same, and the call goes on."""
    call = kind.stub(world.channel, request_serializer=lambda m: m if m == b"good" else broken(m))()
    await call.write(b"bad")
    await call.write(b"good")
    await call.done_writing()
    assert b"".join(await kind.responses(call)) == b"good"
    assert world.received[0].messages == [b"", b"good"]


async def test_a_response_that_can_not_be_read(world: World, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """Grpcio logs it and hands out None."""
    stub = kind.stub(world.channel, response_deserializer=broken)
    call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0])
    assert set(await kind.responses(call)) == {None}
    assert await call.code() is grpc.StatusCode.OK
    assert "Exception deserializing message" in caplog.text


# ---- failures ----


async def test_a_failure(world: World, kind: Kind) -> None:
    """Code, words, debug string and both kinds of metadata on the error and on the call."""
    world.always(fail(INVALID, "no such thing", trailing_metadata=(("x-why", "because"),)))
    call = world.start_quietly(kind)
    error = await failure(call)
    assert error.code() is await call.code() is INVALID
    assert error.details() == await call.details() == "no such thing"
    assert "no such thing" in str(error.debug_error_string())
    assert "no such thing" in await call.debug_error_string()
    trailers = error.trailing_metadata()
    assert trailers is not None
    assert trailers["x-why"] == (await call.trailing_metadata())["x-why"] == "because"
    assert call.done()
    assert not call.cancelled()
    assert "INVALID_ARGUMENT" in repr(error)
    assert "no such thing" in repr(call)


async def test_headers_of_a_failure(world: World, kind: Kind) -> None:
    """They are on the error as well. (grpcio loses those of streams when the status comes along, up to half.)"""
    world.always(fail(INVALID, initial_metadata=(("x-head", "1"),)))
    for _ in range(50 if kind.streams_responses and not world.side.ours else 1):
        error = await failure(world.start_quietly(kind))
        headers = error.initial_metadata()
        if headers:
            break
    assert headers is not None
    assert headers["x-head"] == "1"


async def test_an_error_can_be_pickled_and_copied(world: World) -> None:
    """As grpcio's can: some test runners and task queues do it."""
    world.always(fail(INVALID, "no such thing"))
    error = await failure(UU.start(world.channel))
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (other.code(), other.details()) == (INVALID, "no such thing")


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code.value[0] not in (0, 1)], ids=lambda c: c.name
)
async def test_every_code_comes_through(world: World, code: grpc.StatusCode) -> None:
    """As the server sent it."""
    world.always(fail(code, f"this is {code.name}"))
    error = await failure(UU.start(world.channel))
    assert (error.code(), error.details()) == (code, f"this is {code.name}")


async def test_cancelled_by_the_server_is_an_error(world: World, kind: Kind) -> None:
    """CANCELLED from there is an ``AioRpcError``, not a ``CancelledError``."""
    world.always(fail(grpc.StatusCode.CANCELLED, "not me"))
    call = world.start_quietly(kind)
    error = await failure(call)
    assert error.code() is grpc.StatusCode.CANCELLED
    assert call.cancelled()


async def test_the_deadline_passes(world: World, kind: Kind) -> None:
    """DEADLINE_EXCEEDED, the server's side is cancelled."""
    world.always(hang())
    await world.channel.channel_ready()
    call = kind.start(world.channel, timeout=0.15)
    error = await failure(call)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert call.time_remaining() == 0
    assert not call.cancelled()
    await world.until(lambda: all(received.ended for received in world.received))


@RESPONSE_STREAMS
async def test_a_failure_after_some_messages(world: World, kind: Kind) -> None:
    """The messages first, then the error."""
    world.always(fail(INVALID, after=2))
    call = kind.start(world.channel, REQUESTS[:2])
    for _ in range(2):
        assert await call.read() in REQUESTS
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is INVALID


async def test_an_unknown_method(world: World, kind: Kind) -> None:
    """UNIMPLEMENTED."""
    call = getattr(world.channel, kind.name)("/lb.testing.Echo/Nowhere")(
        iter(()) if kind.streams_requests else REQUESTS[0]
    )
    assert (await failure(call)).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("size", [5_000_000])
async def test_a_message_that_is_too_large(world: World, kind: Kind, size: int) -> None:
    """RESOURCE_EXHAUSTED, by the server's limit of 4 MiB; nothing hangs."""
    async with asyncio.timeout(HANGS_S):
        error = await failure(kind.start(world.channel, (bytes(size),)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- done callbacks ----


async def test_done_callbacks(world: World, kind: Kind) -> None:
    """Each is called once with the call, at its end or at once when it has ended."""
    gate = Gate()
    world.always(hold(gate))
    call = kind.start(world.channel)
    seen: list[tuple[str, Any, bool]] = []
    call.add_done_callback(lambda c: seen.append(("early", c, c.done())))
    call.add_done_callback(lambda c: seen.append(("second", c, c.done())))
    await world.arrived()
    assert seen == []
    gate.open()
    await kind.responses(call)
    assert await call.code() is grpc.StatusCode.OK
    call.add_done_callback(lambda c: seen.append(("late", c, c.done())))
    assert seen == [("early", call, True), ("second", call, True), ("late", call, True)]


async def test_done_callbacks_of_a_cancelled_call(world: World, kind: Kind) -> None:
    """During ``cancel()``, once."""
    world.always(hang())
    call = kind.start(world.channel)
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    await world.arrived()
    assert call.cancel() is True
    assert seen == [call]
    assert call.cancel() is False
    await asyncio.gather(call.code(), return_exceptions=True)
    assert seen == [call]


# ---- reading ----


@RESPONSE_STREAMS
async def test_read_by_hand(world: World, kind: Kind) -> None:
    """Message by message, then EOF as often as asked."""
    call = kind.start(world.channel)
    assert [await call.read() for _ in range(3)] == kind.echo()
    assert await call.read() is EOF
    assert await call.read() is EOF
    assert await call.code() is grpc.StatusCode.OK


@RESPONSE_STREAMS
async def test_read_by_iteration(world: World, kind: Kind) -> None:
    """An iterator may be taken up again where another one left off."""
    call = kind.start(world.channel)
    async for message in call:
        assert message == kind.echo()[0]
        break
    assert [message async for message in call] == kind.echo()[1:]


@RESPONSE_STREAMS
async def test_read_and_iteration_do_not_mix(world: World, kind: Kind) -> None:
    """``UsageError``, whichever came first."""
    world.always(hang(after=1))
    call = kind.start(world.channel)
    await call.read()
    with pytest.raises(grpc.aio.UsageError):
        async for _ in call:
            pass
    call.cancel()
    call = kind.start(world.channel)
    async for _ in call:
        break
    with pytest.raises(grpc.aio.UsageError):
        await call.read()
    call.cancel()


@RESPONSE_STREAMS
async def test_a_failure_is_raised_by_every_read(world: World, kind: Kind) -> None:
    """Not only by the first."""
    world.always(fail(INVALID))
    call = world.start_quietly(kind)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is INVALID


@REQUEST_STREAMS
async def test_a_stream_without_requests(world: World, kind: Kind) -> None:
    """From an empty iterator, or closed by hand before anything else: the server answers as always."""
    for _ in range(2):
        assert await kind.run(world.channel, ()) == kind.echo(())
        call = kind.stub(world.channel)()
        await call.done_writing()
        assert await kind.responses(call) == kind.echo(())
        assert await call.code() is grpc.StatusCode.OK
    assert all(received.half_closed for received in world.received)


# ---- writing ----


@REQUEST_STREAMS
async def test_write_by_hand(world: World, kind: Kind) -> None:
    """In order; ``done_writing`` may be repeated; afterwards a write is an error."""
    call = kind.stub(world.channel)()
    for request in REQUESTS:
        await call.write(request)
    await call.done_writing()
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"late")
    assert await kind.responses(call) == kind.echo()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"later")
    await call.done_writing()
    assert world.received[0].messages == list(REQUESTS)
    assert world.received[0].half_closed


@REQUEST_STREAMS
@pytest.mark.parametrize("make", [iter, list, tuple, each], ids=["iterator", "list", "tuple", "asynchronous"])
async def test_requests_from_any_iterable(world: World, kind: Kind, make: Callable[[Iterable[bytes]], Any]) -> None:
    """Synchronous or not."""
    call = kind.stub(world.channel)(make(REQUESTS))
    assert await kind.responses(call) == kind.echo()


@REQUEST_STREAMS
async def test_writing_does_not_mix_with_an_iterator(world: World, kind: Kind) -> None:
    """``UsageError``."""
    world.always(hang())
    call = kind.start(world.channel)
    with pytest.raises(grpc.aio.UsageError):
        await call.write(b"x")
    with pytest.raises(grpc.aio.UsageError):
        await call.done_writing()
    call.cancel()


@REQUEST_STREAMS
async def test_a_request_iterator_that_raises(world: World, kind: Kind) -> None:
    """The call is cancelled, the server too."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"1"
        await world.until(lambda: world.received and world.received[0].messages)
        raise LookupError("no more")

    call = kind.stub(world.channel)(requests())
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(HANGS_S):
            await kind.responses(call)
    assert await call.code() is grpc.StatusCode.CANCELLED
    await world.until(lambda: world.received[0].ended)


async def test_ping_pong(world: World) -> None:
    """A message each way, in turns."""
    call = SS.stub(world.channel)()
    for i in range(20):
        await call.write(str(i).encode())
        assert await call.read() == str(i).encode()
    await call.done_writing()
    assert await call.read() is EOF


async def test_a_writer_and_a_reader_side_by_side(world: World) -> None:
    """More than flow control holds at once, in order."""
    count, size = 60, 30_000
    call = SS.stub(world.channel)()

    async def write() -> None:
        for i in range(count):
            await call.write(bytes([i]) * size)
        await call.done_writing()

    async def read() -> list[int]:
        return [message[0] async for message in call]

    async with asyncio.timeout(HANGS_S):
        _, seen = await asyncio.gather(write(), read())
    assert seen == list(range(count))


async def test_writing_to_a_call_that_has_ended(world: World) -> None:
    """``InvalidStateError``, and the call's own status stays."""
    world.always(fail(INVALID))
    call = SS.stub(world.channel)()
    assert await call.code() is INVALID
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(b"x")
    await call.done_writing()
    assert await call.code() is INVALID


# ---- cancelling ----


async def test_cancel(world: World, kind: Kind) -> None:
    """``CancelledError`` for who waits, CANCELLED as the status, the server is told."""
    world.always(hang())
    call = kind.start(world.channel)
    received = await world.arrived()
    assert call.cancel() is True
    assert call.cancelled()
    assert call.done()
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await call.details() == "Locally cancelled by application!"
    assert tuple(await call.trailing_metadata()) == ()
    assert tuple(await call.initial_metadata()) == ()
    await world.until(lambda: received.ended)


async def test_cancel_at_once(world: World, kind: Kind) -> None:
    """Before anything was sent."""
    call = kind.start(world.channel)
    assert call.cancel() is True
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_cancel_who_waits(world: World, kind: Kind) -> None:
    """Cancelling the task that waits cancels the call."""
    world.always(hang())
    call = kind.start(world.channel)
    task = asyncio.ensure_future(kind.responses(call))
    received = await world.arrived()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled()
    await world.until(lambda: received.ended)


async def test_who_asks_for_the_status_may_be_cancelled(world: World, kind: Kind) -> None:
    """``code()`` and the like only look: the call goes on."""
    gate = Gate()
    world.always(hold(gate))
    call = kind.start(world.channel)
    for ask in (call.code, call.details, call.trailing_metadata, call.initial_metadata):
        asking = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    gate.open()
    assert await kind.responses(call) == kind.echo()


@RESPONSE_STREAMS
async def test_cancel_between_messages(world: World, kind: Kind) -> None:
    """The next read raises."""
    world.always(hang(after=1))
    call = kind.start(world.channel)
    assert await call.read() == b"one"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()


# ---- the channel ----


async def test_closing_the_channel_cancels_its_calls(world: World, kind: Kind) -> None:
    """CANCELLED, and no call can be made any more."""
    world.always(hang())
    call = kind.start(world.channel)
    await world.arrived()
    await world.channel.close()
    assert call.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)
    with pytest.raises(grpc.aio.UsageError):
        kind.start(world.channel)


async def test_the_state_of_the_channel(world: World) -> None:
    """IDLE before its use, then READY."""
    assert world.channel.get_state() is grpc.ChannelConnectivity.IDLE
    async with asyncio.timeout(HANGS_S):
        await world.channel.channel_ready()
    assert world.channel.get_state() is grpc.ChannelConnectivity.READY


async def test_a_channel_is_a_context_manager(world: World) -> None:
    """Entering it gives itself."""
    async with world.channel as channel:
        assert channel is world.channel
        assert await UU.run(channel) == UU.echo()


@pytest.mark.parametrize("registered", [False, True])
async def test_registered_methods(world: World, registered: bool) -> None:
    """As generated stubs make their multicallables."""
    stubs = [getattr(world.channel, kind.name)(kind.method, _registered_method=registered) for kind in KINDS]
    for kind, stub in zip(KINDS, stubs, strict=True):
        for _ in range(2):
            call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0])
            assert await kind.responses(call) == kind.echo()
