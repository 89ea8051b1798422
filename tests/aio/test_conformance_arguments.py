"""What a call and a channel may be given, in all worlds: it arrives, or the same error comes at the same step."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from lb.testing.backend import UNARY_UNARY, Backend, Gate, echo, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, SS, UU, Kind, failure
from tests.aio.worlds import ONE_RESPONSE, REQUEST_STREAMS, Side, World
from tests.support.releases import since

DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED


async def outcome(call: Any, kind: Kind) -> str:
    """In a word: the type of what is raised, the code of the error, or ``OK``."""
    try:
        await kind.responses(call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # it is what is looked at
        return type(error).__name__
    finally:
        call.cancel()
    return "OK"


# ---- timeout ----


@pytest.mark.parametrize("timeout", [0, -1, -math.inf], ids=str)
async def test_a_timeout_that_has_passed(world: World, kind: Kind, timeout: float) -> None:
    """DEADLINE_EXCEEDED, never an exception of another kind."""
    world.always(hang())
    await world.channel.channel_ready()
    # Without an iterator: grpcio's own task for it may turn the end to CANCELLED.
    call = kind.stub(world.channel)(*(() if kind.streams_requests else (b"x",)), timeout=timeout)
    async with asyncio.timeout(HANGS_S):
        assert await call.code() is DEADLINE
        assert "Deadline Exceeded" in await call.details()


@pytest.mark.parametrize("timeout", [None, 3600, 1e9], ids=str)
async def test_a_timeout_that_is_far(world: World, kind: Kind, timeout: Any) -> None:
    """The call goes through."""
    assert await kind.run(world.channel, timeout=timeout) == kind.echo()


async def test_true_is_a_second(world: World) -> None:
    """As any other number; a busy machine may take longer than that."""
    assert await outcome(UU.start(world.channel, timeout=True), UU) in ("OK", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("timeout", ["1", b"1", [], object()], ids=["text", "bytes", "list", "object"])
async def test_a_timeout_that_is_no_number(world: World, kind: Kind, timeout: Any) -> None:
    """``TypeError`` from the call itself; nothing is sent."""
    with pytest.raises(TypeError):
        kind.start(world.channel, timeout=timeout)
    assert await kind.run(world.channel) == kind.echo()
    assert len(world.received) == 1


@pytest.mark.parametrize("timeout", [math.nan, math.inf], ids=str)
async def test_numbers_that_are_no_instants(world: World, timeout: float) -> None:
    """What core makes of them is its own affair; the call ends."""
    assert await outcome(UU.start(world.channel, timeout=timeout), UU) in ("OK", "DEADLINE_EXCEEDED")


# ---- metadata ----

BAD_METADATA: list[Any] = [
    pytest.param((("count", 1),), "TypeError", id="number"),
    pytest.param((("blob-bin", "text"),), "TypeError", id="text in a binary key"),
    pytest.param(((42, "x"),), "TypeError", id="number as a key"),
    pytest.param((("key", None),), "OK", id="None"),
    pytest.param((("key", object()),), "TypeError", id="object"),
]


@pytest.mark.parametrize(("metadata", "error"), BAD_METADATA)
async def test_metadata_of_a_wrong_type(world: World, kind: Kind, metadata: Any, error: str) -> None:
    """Raised by awaiting or reading the call, not by making it; None as a value passes. The channel goes on."""
    call = kind.start(world.channel, metadata=metadata)
    assert await outcome(call, kind) == error
    assert await kind.run(world.channel) == kind.echo()


@pytest.mark.parametrize("kind", [UU, SS], ids=str)
@pytest.mark.parametrize("metadata", [7, "ab", (("lonely",),), (("a", "b", "c"),), (None,), ((None, "x"),)], ids=str)
async def test_metadata_that_are_no_pairs(world: World, kind: Kind, metadata: Any) -> None:
    """The same type of error at the same step as grpcio's own channel."""
    if kind is SS and metadata == ((None, "x"),):
        since(False, 1, 81)
    async with grpc.aio.insecure_channel(world.backends[0].address) as theirs:
        seen = []
        for channel in (theirs, world.channel):
            try:
                # Nothing is written: grpcio's writer may run into the failure, and turn it into INTERNAL.
                call = kind.stub(channel)(*(() if kind.streams_requests else (b"x",)), metadata=metadata)
            except Exception as error:  # noqa: BLE001  # it is what is looked at
                seen.append(f"made: {type(error).__name__}")
            else:
                seen.append(f"awaited: {await outcome(call, kind)}")
    assert seen[0] == seen[1]
    assert await kind.run(world.channel) == kind.echo()


@pytest.mark.parametrize("key", ["Upper", "with blank", ":path", "", "é"])
async def test_metadata_keys_that_core_refuses(world: World, key: str) -> None:
    """Its own error, from awaiting the call."""
    call = UU.start(world.channel, metadata=((key, "x"),))
    assert await outcome(call, UU) == "ExecuteBatchError"


@pytest.mark.parametrize("wait", [None, True], ids=["fail fast", "wait for ready"])
@pytest.mark.parametrize(
    ("metadata", "error"),
    [((("with blank", "x"),), "INTERNAL"), ((("x", "\n"),), "INTERNAL"), ((("count", 1),), "TypeError")],
    ids=["key", "value", "type"],
)
async def test_metadata_that_cannot_be_sent_wait_for_no_connection(
    side: Side, kind: Kind, free_port: int, metadata: Any, error: str, wait: bool | None
) -> None:
    """Nothing is connected: the same error as with a connection, at once."""
    if kind is UU and error == "INTERNAL":
        error = "ExecuteBatchError"
    elif error == "INTERNAL":
        since(side.ours, 1, 81)
    async with side.make(f"127.0.0.1:{free_port}") as channel:
        # Nothing is written: grpcio's writer may run into the failure first.
        arguments = () if kind.streams_requests else (b"x",)
        call = kind.stub(channel)(*arguments, metadata=metadata, timeout=1000, wait_for_ready=wait)
        assert await outcome(call, kind) == error


@pytest.mark.parametrize("metadata", [(("with blank", "x"),), (("x", "\n"),), ((None, "x"),)], ids=str)
async def test_illegal_metadata_on_a_connection(world: World, kind: Kind, metadata: Any) -> None:
    """The call ends with the error that it has without a connection, and the channel goes on."""
    if kind is not UU:
        since(world.side.ours, 1, 81)
    assert await kind.run(world.channel) == kind.echo()
    call = kind.stub(world.channel)(*(() if kind.streams_requests else (b"x",)), metadata=metadata, timeout=1000)
    assert await outcome(call, kind) == ("ExecuteBatchError" if kind is UU else "INTERNAL")
    assert await kind.run(world.channel) == kind.echo()


async def test_metadata_in_many_forms(world: World, kind: Kind) -> None:
    """Repeated keys, binary and empty values; text keeps its blanks and signs."""
    metadata = grpc.aio.Metadata(
        ("x-a", "1"), ("x-raw-bin", bytes(range(256))), ("x-empty", ""), ("x-text", "a b,c=d;e")
    )
    assert await kind.run(world.channel, metadata=metadata) == kind.echo()
    seen = world.received[0].metadata
    assert seen["x-raw-bin"] == bytes(range(256))
    assert (seen["x-empty"], seen["x-text"]) == ("", "a b,c=d;e")


async def test_the_callers_metadata_object_is_left_alone(world: World, kind: Kind) -> None:
    """Nothing is added to it, so that it can be used for the next call."""
    metadata = grpc.aio.Metadata(("x-a", "1"))
    pairs = [("x-a", "1")]
    for given in (metadata, pairs):
        await kind.run(world.channel, metadata=given, compression=grpc.Compression.Gzip)
    assert list(metadata) == pairs == [("x-a", "1")]


async def test_what_grpc_itself_sends(world: World, kind: Kind) -> None:
    """The user agent is grpcio's, and nothing of ours reaches the server."""
    await kind.run(world.channel)
    metadata = world.received[0].metadata
    assert str(metadata["user-agent"]).startswith("grpc-python-asyncio/")
    assert not [key for key in metadata if key.startswith(("grpc-previous", "lb", "x-"))]


# ---- credentials ----


async def test_call_credentials_on_a_plain_channel(world: World, kind: Kind) -> None:
    """``UsageError``, as soon as the call is made."""
    with pytest.raises(grpc.aio.UsageError, match="Call credentials are only valid on secure channels"):
        kind.start(world.channel, credentials=grpc.access_token_call_credentials("x"))
    assert await kind.run(world.channel) == kind.echo()


# ---- wait_for_ready ----


@pytest.mark.parametrize("wait", [True, False, None, 1, 0], ids=str)
async def test_wait_for_ready_with_a_server(world: World, kind: Kind, wait: Any) -> None:
    """Changes nothing."""
    assert await kind.run(world.channel, wait_for_ready=wait) == kind.echo()


async def test_without_a_server_a_call_fails_fast_or_waits(side: Side, kind: Kind, free_port: int) -> None:
    """UNAVAILABLE at once by default and with False; with True it waits, and goes through when a server comes."""
    async with side.make(f"127.0.0.1:{free_port}") as channel:
        for wait in (None, False):
            error = await failure(kind.start(channel, timeout=30, wait_for_ready=wait))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        error = await failure(kind.start(channel, timeout=0.2, wait_for_ready=True))
        assert error.code() is DEADLINE
        call = kind.start(channel, timeout=30, wait_for_ready=True)
        async with Backend(port=free_port):
            assert await kind.responses(call) == kind.echo()


# ---- compression ----

NO_GZIP = (("grpc.compression_enabled_algorithms_bitset", 3),)


@pytest.mark.parametrize("algorithm", list(grpc.Compression), ids=lambda c: c.name)
async def test_compression_of_calls_and_channels(side: Side, fleet: Fleet, kind: Kind, algorithm: Any) -> None:
    """Messages come through whole, whoever asked for it."""
    big = (bytes(20_000), b"x" * 20_000)
    backends = await fleet(side.backends)
    async with side.to(backends) as plain, side.to(backends, compression=algorithm) as compressed:
        assert await kind.run(plain, big, compression=algorithm) == kind.echo(big)
        assert await kind.run(compressed, big) == kind.echo(big)


async def test_a_compression_that_the_server_refuses(side: Side, fleet: Fleet, kind: Kind) -> None:
    """UNIMPLEMENTED, for the call's and for the channel's: both really reach the server."""
    backends = await fleet(side.backends, options=NO_GZIP)
    async with side.to(backends) as plain, side.to(backends, compression=grpc.Compression.Gzip) as compressed:
        # Without messages: grpcio's writer would turn a failure it runs into to INTERNAL.
        requests = () if kind.streams_requests else REQUESTS
        gzip = grpc.Compression.Gzip
        assert await outcome(kind.start(plain, requests, compression=gzip), kind) == "UNIMPLEMENTED"
        assert await outcome(kind.start(compressed, requests), kind) == "UNIMPLEMENTED"
        assert await kind.run(plain, compression=grpc.Compression.Deflate) == kind.echo()


@pytest.mark.parametrize("algorithm", ["gzip", 99, object()], ids=["text", "number", "object"])
async def test_a_compression_of_no_kind(world: World, kind: Kind, algorithm: Any) -> None:
    """``KeyError`` from the call itself."""
    with pytest.raises((KeyError, TypeError)) as raised:
        kind.start(world.channel, compression=algorithm)
    async with grpc.aio.insecure_channel(world.backends[0].address) as theirs:
        with pytest.raises(raised.type):
            kind.start(theirs, compression=algorithm)


# ---- serializers and requests ----


@ONE_RESPONSE
async def test_a_serializer_that_gives_no_bytes(world: World, kind: Kind) -> None:
    """The same end as in grpcio, at once."""
    seen = []
    async with grpc.aio.insecure_channel(world.backends[0].address) as theirs:
        for channel in (theirs, world.channel):
            stub = kind.stub(channel, request_serializer=lambda message: "text")
            call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0], timeout=HANGS_S)
            seen.append(await outcome(call, kind))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("request_", [b"", bytes(3_000_000)], ids=["empty", "large"])
async def test_messages_of_any_size(world: World, kind: Kind, request_: bytes) -> None:
    """Empty ones are messages, too."""
    assert await kind.run(world.channel, (request_,)) == kind.echo((request_,))


@pytest.mark.parametrize("request_", [None, "text", 7, object()], ids=["None", "text", "number", "object"])
async def test_a_request_that_is_no_bytes(world: World, request_: Any) -> None:
    """Without a serializer: the same outcome as in grpcio."""
    seen = []
    async with grpc.aio.insecure_channel(world.backends[0].address) as theirs:
        for channel in (theirs, world.channel):
            try:
                call = UU.stub(channel)(request_, timeout=HANGS_S)
            except Exception as error:  # noqa: BLE001  # it is what is looked at
                seen.append(f"made: {type(error).__name__}")
            else:
                seen.append(await outcome(call, UU))
    assert seen[0] == seen[1]


@REQUEST_STREAMS
@pytest.mark.parametrize("requests", [7, object(), len], ids=["number", "object", "function"])
async def test_requests_that_are_no_iterable(world: World, kind: Kind, requests: Any) -> None:
    """The call ends as in grpcio, and is not left hanging."""
    seen = []
    async with grpc.aio.insecure_channel(world.backends[0].address) as theirs:
        for channel in (theirs, world.channel):
            call = kind.stub(channel)(requests, timeout=HANGS_S)
            seen.append(await outcome(call, kind))
    assert seen[0] == seen[1]


# ---- methods ----


@pytest.mark.parametrize("registered", [False, True], ids=["plain", "registered"])
@pytest.mark.parametrize("method", ["", "x", "/x", "/x/", "//", "/é/ü", "/a b/c", "/lb.testing.Echo/UnaryUnary "])
async def test_a_method_that_nobody_has(world: World, method: str, registered: bool) -> None:
    """UNIMPLEMENTED from the server, whatever the name looks like."""
    call = world.channel.unary_unary(method, _registered_method=registered)(b"x", timeout=HANGS_S)
    assert await outcome(call, UU) == "UNIMPLEMENTED"


@pytest.mark.parametrize("method", [None, 7, object()], ids=["None", "number", "object"])
async def test_a_method_that_is_no_text(world: World, kind: Kind, method: Any) -> None:
    """``AttributeError``, when the multicallable is made."""
    with pytest.raises(AttributeError, match="encode"):
        getattr(world.channel, kind.name)(method)


async def test_a_method_as_bytes(world: World) -> None:
    """Is taken."""
    assert await world.channel.unary_unary(UNARY_UNARY.encode())(b"x") == b"x"


async def test_unknown_arguments(world: World, kind: Kind) -> None:
    """``TypeError``, for the call, the multicallable and the request's place."""
    stub = kind.stub(world.channel)
    with pytest.raises(TypeError, match="unexpected keyword argument 'deadline'"):
        stub(REQUESTS[0], deadline=1)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        kind.stub(world.channel, serializer=bytes)
    if not kind.streams_requests:
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            stub()
        with pytest.raises(TypeError, match="positional argument"):
            stub(REQUESTS[0], 1)


@REQUEST_STREAMS
async def test_positional_arguments_of_a_stream_of_requests(world: World, kind: Kind) -> None:
    """Timeout, metadata, credentials, wait_for_ready and compression may follow the iterator in this order."""
    call = kind.stub(world.channel)(iter(REQUESTS), 20, (("x-a", "1"),), None, True, grpc.Compression.Gzip)
    assert await kind.responses(call) == kind.echo()
    assert world.received[0].metadata["x-a"] == "1"
    assert call.time_remaining() is not None


# ---- the channel's own ----


@pytest.mark.parametrize(
    "options",
    [{"foo": "bar"}, (("key",),), "str", [("key", object())], [("a", 1, 2)], 7, [None]],
    ids=["mapping", "no value", "text", "object", "three", "number", "None"],
)
async def test_bad_options(side: Side, options: Any) -> None:
    """``TypeError`` or ``ValueError`` at construction, of the type that grpcio raises."""
    with pytest.raises((TypeError, ValueError)) as theirs:
        grpc.aio.insecure_channel("127.0.0.1:1", options=options)
    with pytest.raises(theirs.type):
        side.make("127.0.0.1:1", options=options)


@pytest.mark.parametrize("algorithm", ["gzip", object(), [1]], ids=["text", "object", "list"])
async def test_a_bad_compression_of_a_channel(side: Side, algorithm: Any) -> None:
    """Raised at construction, as grpcio does."""
    with pytest.raises((TypeError, ValueError)) as theirs:
        grpc.aio.insecure_channel("127.0.0.1:1", compression=algorithm)
    with pytest.raises(theirs.type):
        side.make("127.0.0.1:1", compression=algorithm)


@pytest.mark.parametrize(
    "interceptors",
    [[object()], ["x"], [grpc.UnaryUnaryClientInterceptor], [None]],
    ids=["object", "text", "class", "none"],
)
async def test_a_bad_interceptor(side: Side, interceptors: Any) -> None:
    """``ValueError`` at construction that names it and the four kinds."""
    with pytest.raises(ValueError, match="must be UnaryUnaryClientInterceptor or UnaryStreamClientInterceptor or"):
        side.make("127.0.0.1:1", interceptors=interceptors)


@pytest.mark.parametrize("empty", [None, (), []], ids=str)
async def test_empty_arguments_of_a_channel(side: Side, fleet: Fleet, empty: Any) -> None:
    """None, or nothing in them."""
    async with side.to(await fleet(side.backends), options=empty, interceptors=empty, compression=None) as channel:
        assert await UU.run(channel) == UU.echo()


async def test_channel_options_reach_each_connection(side: Side, fleet: Fleet, kind: Kind) -> None:
    """A limit of received bytes holds whichever backend answers."""
    backends = await fleet(side.backends)
    async with side.to(backends, options=[("grpc.max_receive_message_length", 1000)]) as channel:
        for _ in range(2 * len(backends)):
            assert await outcome(kind.start(channel, (bytes(2000),)), kind) == "RESOURCE_EXHAUSTED"
            assert await kind.run(channel, (bytes(500),)) == kind.echo((bytes(500),))
    assert all(backend.received for backend in backends)


async def test_the_user_agent_option(side: Side, fleet: Fleet) -> None:
    """Stands before grpcio's own, on each connection."""
    backends = await fleet(side.backends)
    async with side.to(backends, options=[("grpc.primary_user_agent", "shop/1")]) as channel:
        for _ in range(len(backends)):
            await UU.run(channel)
    agents = [str(call.metadata["user-agent"]) for backend in backends for call in backend.received]
    assert all(agent.startswith("shop/1 grpc-python-asyncio/") for agent in agents)


@pytest.mark.parametrize(
    "text", ["", " ", "foo/bar", "unix:", "ipv4:foo", "x:///y", "localhost:abc", "a b", "dns:", "dns:///", "[::]:0"]
)
@pytest.mark.parametrize("ours", [False, True], ids=["grpcio", "lb"])
async def test_an_odd_target(text: str, ours: bool) -> None:
    """To grpcio it is one, whose calls all fail; ours is not made."""
    make: Callable[..., Any] = Side("", ours, 1).channel_for
    if ours:
        with pytest.raises(ValueError, match="target"):
            make(text)
        return
    async with make(text) as channel:
        error = await failure(UU.start(channel, timeout=30))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


@pytest.mark.parametrize("ours", [False, True], ids=["grpcio", "lb"])
async def test_a_target_as_bytes(backend: Backend, ours: bool) -> None:
    """Is taken."""
    async with Side("", ours, 1).channel_for(backend.address.encode()) as channel:
        assert await UU.run(channel) == UU.echo()


@pytest.mark.parametrize("target", [None, 7, object()], ids=["None", "number", "object"])
@pytest.mark.parametrize("ours", [False, True], ids=["grpcio", "lb"])
async def test_a_target_that_is_no_text(target: Any, ours: bool) -> None:
    """Raises at construction."""
    with pytest.raises((AttributeError, TypeError)):
        Side("", ours, 1).channel_for(target)


async def test_running_calls_do_not_mix(world: World) -> None:
    """Calls of all kinds at once, each with its own timeout and metadata."""
    gate = Gate()
    world.always(hold(gate))
    calls = [
        (kind, kind.start(world.channel, timeout=60 * i + 60, metadata=(("x-call", str(i)),)))
        for i, kind in enumerate(KINDS * 3)
    ]
    await world.until(lambda: len(world.received) == len(calls))
    gate.open()
    for kind, call in calls:
        assert await kind.responses(call) == kind.echo()
    for received in world.received:
        assert received.timeout_s is not None
        # Core sends minutes in whole seconds, rounded up: a call that is there at once has up to one more.
        assert 0 <= 60 * int(str(received.metadata["x-call"])) + 61 - received.timeout_s < 30
    assert {str(call.metadata["x-call"]) for call in world.received} == {str(i) for i in range(len(calls))}
    world.always(echo())
