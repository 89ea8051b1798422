"""One body of tests for grpcio's own channel and for ours (over one endpoint and over three): calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.support.releases import since
from tests.sync.kit import (
    HANGS_S,
    KINDS,
    NAME_KEY,
    SS,
    SU,
    US,
    UU,
    Kind,
    eventually,
    fail,
    failure,
    headers,
    wait_for,
)
from tests.sync.worlds import FUTURES, REQUEST_STREAMS, STREAMS, Where, gated

Code = grpc.StatusCode


def ended(call: Any) -> None:
    """Wait for a call's end."""
    done = threading.Event()
    call.add_done_callback(lambda _: done.set())
    assert done.wait(HANGS_S)


# ---- answers ----


def test_the_answer(where: Where, channel: Any, kind: Kind) -> None:
    """A call of each kind brings what the server answers, and the server gets what was sent."""
    assert kind.run(channel) == kind.echo()
    assert where.received[0].requests == kind.sent()


def test_each_kind_as_a_call_object(channel: Any, kind: Kind) -> None:
    """Futures and iterators bring the same."""
    assert kind.finish(kind.start(channel)) == kind.echo()


@pytest.mark.parametrize("kind", FUTURES, ids=str)
def test_with_call(channel: Any, kind: Kind) -> None:
    """``with_call`` brings the response and a call that has ended."""
    response, call = kind.stub(channel).with_call(kind.argument())
    assert [response] == kind.echo()
    assert isinstance(call, grpc.Call)
    assert call.code() is Code.OK
    assert call.details() == ""
    assert call.initial_metadata() is not None
    assert dict(call.trailing_metadata())[NAME_KEY]
    assert not call.is_active()
    assert call.time_remaining() is None
    assert call.cancel() is False
    assert call.add_callback(lambda: None) is False


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["empty", "beyond a flow-control window"])
def test_messages_of_any_size(channel: Any, kind: Kind, size: int) -> None:
    """Empty ones are messages, too."""
    messages = [bytes(size)] * 3
    assert kind.run(channel, messages) == kind.echo(messages)


@pytest.mark.parametrize("kind", REQUEST_STREAMS, ids=str)
def test_a_stream_without_requests(channel: Any, kind: Kind) -> None:
    """A stream without requests is a call."""
    assert kind.run(channel, []) == kind.echo([])


def test_serializers(channel: Any, kind: Kind) -> None:
    """Requests and responses pass through the (de)serializers."""
    stub = kind.stub(
        channel, request_serializer=lambda text: text.encode(), response_deserializer=lambda data: data.decode()
    )
    answer = stub(kind.argument(["x", "y"]))
    texts = list(answer) if kind.streams_responses else [answer]
    assert texts == [message.decode() for message in kind.echo([b"x", b"y"])]


def test_registered_methods(channel: Any, kind: Kind) -> None:
    """What generated stubs do: methods that are registered with core."""
    stub = kind.stub(channel, _registered_method=True)
    for _ in range(4):
        answer = stub(kind.argument())
        assert (list(answer) if kind.streams_responses else [answer]) == kind.echo()


def test_running_calls_do_not_mix(channel: Any, kind: Kind) -> None:
    """Calls that run at once do not disturb each other."""
    calls = [kind.start(channel, [b"%d" % i, b"."]) for i in range(20)]
    for i, call in enumerate(calls):
        assert kind.finish(call) == kind.echo([b"%d" % i, b"."])


def test_many_threads(channel: Any, kind: Kind) -> None:
    """So do calls from several threads on one stub."""
    stub = kind.stub(channel)
    answers: dict[int, list[bytes]] = {}

    def work(i: int) -> None:
        answer = stub(kind.argument([b"%d" % i, b"."]))
        answers[i] = list(answer) if kind.streams_responses else [answer]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS_S)
    assert answers == {i: kind.echo([b"%d" % i, b"."]) for i in range(12)}


def test_an_unknown_method(channel: Any, kind: Kind) -> None:
    """A method that the server does not have ends UNIMPLEMENTED."""
    stub = getattr(channel, kind.name)("/lb.testing.Echo/Nothing")
    answer = failure(lambda: list(stub(kind.argument())) if kind.streams_responses else stub(kind.argument()))
    assert answer.code() is Code.UNIMPLEMENTED
    assert answer.details() == "Method not found!"


# ---- arguments ----


def test_metadata_goes_both_ways(where: Where, channel: Any, kind: Kind) -> None:
    """The server sees the caller's, text and binary, and grpcio's user agent; the caller sees headers and trailers."""
    where.script(headers(("x-head", "1")))
    call = kind.start(channel, metadata=(("x-user", "7"), ("x-bin", b"\x00\xff")))
    kind.finish(call)
    assert dict(call.initial_metadata())["x-head"] == "1"
    assert dict(call.trailing_metadata())[NAME_KEY]
    metadata = where.received[0].metadata
    assert metadata["x-user"] == "7"
    assert metadata["x-bin"] == b"\x00\xff"
    assert str(metadata["user-agent"]).startswith("grpc-python/")


def test_metadata_in_any_form(where: Where, channel: Any, kind: Kind) -> None:
    """Any sequence of pairs will do, for futures and streams, too."""
    kind.finish(kind.start(channel, metadata=[("x-user", "7")]))
    assert where.received[0].metadata["x-user"] == "7"


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ((("x-bin", "text"),), TypeError),
        ((("x", 5),), TypeError),
        (((5, "x"),), TypeError),
        ((("x",),), ValueError),
        ((("x", "a", "b"),), ValueError),
        ((None,), TypeError),
        (5, TypeError),
        ((("x", "\ud800"),), UnicodeEncodeError),
    ],
)
def test_metadata_of_a_wrong_type(channel: Any, kind: Kind, metadata: Any, error: type[Exception]) -> None:
    """It raises where the call is made."""
    with pytest.raises(error):
        kind.start(channel, metadata=metadata)
    with pytest.raises(error):
        kind.run(channel, metadata=metadata)


def test_metadata_without_a_value(where: Where, channel: Any, kind: Kind) -> None:
    """None is an empty value."""
    assert kind.run(channel, metadata=(("x-none", None),)) == kind.echo()
    assert where.received[-1].metadata["x-none"] == ""


@pytest.mark.parametrize("metadata", [(("X-User", "7"),), (("x", "\n"),), (("", "x"),), ((None, "x"),)])
def test_illegal_metadata_on_a_connection(where: Where, channel: Any, kind: Kind, metadata: Any) -> None:
    """What can not be a header ends the call INTERNAL."""
    since(where.ours, 1, 81)
    error = failure(lambda: kind.finish(kind.start(channel, metadata=metadata)))
    assert error.code() is Code.INTERNAL
    assert error.details() == "Invalid metadata"
    error = failure(lambda: kind.run(channel, metadata=metadata))
    assert (error.code(), error.details()) == (Code.INTERNAL, "Invalid metadata")


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan"), 1e12])
def test_numbers_that_are_no_instants(channel: Any, kind: Kind, timeout: float) -> None:
    """What has passed, or is further away than core can count, ends the call at once."""
    for call in (lambda: kind.finish(kind.start(channel, timeout=timeout)), lambda: kind.run(channel, timeout=timeout)):
        error = failure(call)
        assert error.code() is Code.DEADLINE_EXCEEDED
        assert error.details().startswith("Deadline Exceeded")


def test_the_deadline_passes(where: Where, channel: Any, kind: Kind) -> None:
    """A call whose time is up ends DEADLINE_EXCEEDED."""
    gate = gated(where)
    error = failure(lambda: kind.run(channel, timeout=0.2))
    assert error.code() is Code.DEADLINE_EXCEEDED
    gate.set()


def test_the_deadline_reaches_the_server(where: Where, channel: Any, kind: Kind) -> None:
    """The server knows how much time is left."""
    kind.run(channel, timeout=30)
    assert 20 < where.received[0].time_remaining < 31


@pytest.mark.parametrize("timeout", [-1, -1e9])
def test_a_timeout_that_has_passed(channel: Any, kind: Kind, timeout: float) -> None:
    """A time-out in the past ends the call at once."""
    assert failure(lambda: kind.run(channel, timeout=timeout)).code() is Code.DEADLINE_EXCEEDED


def test_time_remaining(where: Where, channel: Any, kind: Kind) -> None:
    """A running call knows its time; without a time-out it is None."""
    gate = gated(where)
    call, endless = kind.start(channel, timeout=30), kind.start(channel)
    assert 20 < call.time_remaining() <= 30.5
    assert endless.time_remaining() is None
    gate.set()
    kind.finish(call)
    kind.finish(endless)


def test_wait_for_ready_with_a_server(where: Where, channel: Any, kind: Kind) -> None:
    """It is an argument of every call."""
    assert kind.run(channel, wait_for_ready=True) == kind.echo()
    assert kind.run(channel, wait_for_ready=False) == kind.echo()
    assert kind.finish(kind.start(channel, wait_for_ready=True)) == kind.echo()


@pytest.mark.parametrize(
    "compression", [grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression]
)
def test_compression_of_one_call(channel: Any, kind: Kind, compression: grpc.Compression) -> None:
    """A compressed call brings the same."""
    large = [b"x" * 10_000] * 3
    answer = kind.stub(channel)(kind.argument(large), compression=compression)
    assert (list(answer) if kind.streams_responses else [answer]) == kind.echo(large)


def test_compression_of_calls_and_channels(where: Where, kind: Kind) -> None:
    """So does a compressed channel."""
    channel = where.open(compression=grpc.Compression.Gzip)
    large = [b"x" * 10_000] * 3
    assert kind.run(channel, large) == kind.echo(large)


def test_channel_options_reach_each_connection(where: Where, kind: Kind) -> None:
    """A limit among the channel's options holds for each call."""
    channel = where.open(options=(("grpc.max_receive_message_length", 100),))
    error = failure(lambda: kind.run(channel, [bytes(200)] * 2))
    assert error.code() is Code.RESOURCE_EXHAUSTED


def test_the_user_agent_option(where: Where, kind: Kind) -> None:
    """It stands before grpcio's."""
    kind.run(where.open(options=(("grpc.primary_user_agent", "mine/1"),)))
    assert str(where.received[0].metadata["user-agent"]).startswith("mine/1 grpc-python/")


def test_call_credentials_on_a_plain_channel(channel: Any, kind: Kind) -> None:
    """Call credentials are never sent in clear."""
    token = grpc.access_token_call_credentials("secret")
    words = "Established channel does not have a sufficient security level to transfer call credential."
    for run in (kind.run, lambda channel, **options: kind.finish(kind.start(channel, **options))):
        error = failure(lambda run=run: run(channel, credentials=token))  # type: ignore[misc]
        assert error.code() is Code.UNAUTHENTICATED
        assert error.details() == words


def test_call_credentials_of_no_kind(channel: Any, kind: Kind) -> None:
    """``AttributeError`` where the call is made."""
    with pytest.raises(AttributeError):
        kind.start(channel, credentials=5)


def test_a_timeout_that_is_no_number(channel: Any, kind: Kind) -> None:
    """``TypeError`` where the call is made."""
    with pytest.raises(TypeError):
        kind.start(channel, timeout="soon")


def test_unknown_arguments(channel: Any, kind: Kind) -> None:
    """``TypeError`` where the call is made."""
    with pytest.raises(TypeError):
        kind.start(channel, nothing=1)


def test_a_compression_of_no_kind(channel: Any, kind: Kind) -> None:
    """``KeyError`` where the call is made."""
    with pytest.raises(KeyError):
        kind.start(channel, compression=5)


def test_a_method_that_is_no_text(channel: Any, kind: Kind) -> None:
    """A method is a text."""
    with pytest.raises(AttributeError):
        getattr(channel, kind.name)(5)


@pytest.mark.parametrize("kind", [UU, US], ids=str)
def test_a_request_that_is_no_bytes(channel: Any, kind: Kind) -> None:
    """Without a serializer the request must be bytes."""
    with pytest.raises(TypeError):
        kind.start(channel, ["text"])
    with pytest.raises(TypeError):
        kind.run(channel, ["text"])


# ---- the metadata that comes back ----


def test_trailing_metadata(channel: Any, kind: Kind) -> None:
    """It is there at the end; asking waits for it."""
    call = kind.start(channel)
    kind.finish(call)
    assert dict(call.trailing_metadata())[NAME_KEY]


def test_initial_metadata(where: Where, channel: Any, kind: Kind) -> None:
    """Headers that the server sends."""
    where.script(headers(("x-head", "1")))
    call = kind.start(channel)
    assert kind.finish(call) == kind.echo()
    assert dict(call.initial_metadata())["x-head"] == "1"


@pytest.mark.parametrize("kind", [US, SU, SS], ids=str)
@pytest.mark.parametrize("pairs", [(("x-head", "1"),), ()], ids=["filled", "empty"])
def test_headers_before_anything_else(where: Where, channel: Any, kind: Kind, pairs: Any) -> None:
    """Headers come before the first message; asking for them waits for them alone."""
    gate = threading.Event()

    def step(context: Any) -> None:
        context.send_initial_metadata(pairs)
        wait_for(gate)(context)

    where.script(step)
    call = kind.start(channel)
    assert dict(call.initial_metadata()) == dict(pairs)
    assert call.is_active()
    gate.set()
    assert kind.finish(call) == kind.echo()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_headers_that_come_with_the_status(where: Where, channel: Any, kind: Kind) -> None:
    """Headers and the end in one go: the headers are told, whichever of the two is seen first."""

    def begin_and_fail(context: Any) -> None:
        context.send_initial_metadata((("x-head", "1"),))
        context.abort(Code.UNAVAILABLE, "gone")

    where.script(begin_and_fail)
    for _ in range(40):
        call = kind.start(channel)
        assert dict(call.initial_metadata()) == {"x-head": "1"}
        assert call.code() is Code.UNAVAILABLE


def test_headers_of_a_failure(where: Where, channel: Any, kind: Kind) -> None:
    """They are empty where the server sent none."""
    where.script(fail(Code.NOT_FOUND))
    call = kind.start(channel)
    failure(lambda: kind.finish(call))
    assert tuple(call.initial_metadata()) == ()


# ---- failures ----


def test_a_failure(where: Where, channel: Any, kind: Kind) -> None:
    """What is raised tells all that the server said."""
    where.script(fail(Code.NOT_FOUND, "no such thing", x_why="gone"))
    error = failure(lambda: kind.run(channel))
    assert isinstance(error, grpc.RpcError)
    assert isinstance(error, grpc.Call)
    assert error.code() is Code.NOT_FOUND
    assert error.details() == "no such thing"
    assert dict(error.trailing_metadata())["x-why"] == "gone"
    assert error.initial_metadata() == ()
    assert "no such thing" in error.debug_error_string()
    assert "StatusCode.NOT_FOUND" in repr(error)
    assert 'details = "no such thing"' in str(error)
    assert error.cancel() is False
    assert error.cancelled() is False
    assert error.done() is True
    assert error.running() is False


def test_a_failed_call_object(where: Where, channel: Any, kind: Kind) -> None:
    """A future or an iterator raises itself."""
    where.script(fail(Code.ABORTED, "not now"))
    call = kind.start(channel)
    error = failure(lambda: kind.finish(call))
    assert error is call
    assert call.code() is Code.ABORTED
    assert call.details() == "not now"
    assert call.exception() is call
    assert call.done()
    assert not call.running()
    assert not call.cancelled()
    assert not call.is_active()
    frames = call.traceback()
    assert frames is not None
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    assert raised.value is call


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
def test_every_code_comes_through(where: Where, channel: Any, code: Code) -> None:
    """Each code arrives as itself, blocking and not."""
    where.script(fail(code, "words"))
    error = failure(lambda: UU.run(channel))
    assert (error.code(), error.details()) == (code, "words")
    error = failure(lambda: UU.finish(UU.start(channel)))
    assert (error.code(), error.details()) == (code, "words")


def test_an_exception_in_the_handler(where: Where, channel: Any, kind: Kind) -> None:
    """It is UNKNOWN, in grpcio's words."""

    def step(context: Any) -> None:
        raise LookupError("broken")

    where.script(step)
    error = failure(lambda: kind.run(channel))
    assert error.code() is Code.UNKNOWN
    assert "broken" in error.details()


def test_cancel_between_messages(where: Where, channel: Any) -> None:
    """Those before it have arrived; the next read raises."""
    call = SS.start(channel, iter_then_wait(b"one", gate := threading.Event()))
    assert next(call) == b"one"
    assert call.cancel()
    gate.set()
    with pytest.raises(grpc.RpcError):
        next(call)


def iter_then_wait(first: bytes, gate: threading.Event) -> Any:
    """A request, and then nothing until the gate opens."""

    class Requests:
        def __iter__(self) -> Iterator[bytes]:
            yield first
            gate.wait(HANGS_S)

    return Requests()


def test_a_request_that_can_not_be_serialized(channel: Any, kind: Kind) -> None:
    """The call ends INTERNAL, in grpcio's words."""

    def broken(request: Any) -> bytes:
        raise LookupError("can not")

    stub = kind.stub(channel, request_serializer=broken)
    error = failure(lambda: list(stub(kind.argument())) if kind.streams_responses else stub(kind.argument()))
    assert error.code() is Code.INTERNAL
    assert error.details() == "Exception serializing request!"


def test_a_serializer_that_gives_no_bytes(channel: Any, kind: Kind) -> None:
    """So does one that has nothing to say."""
    stub = kind.stub(channel, request_serializer=lambda request: None)
    error = failure(lambda: list(stub(kind.argument())) if kind.streams_responses else stub(kind.argument()))
    assert error.code() is Code.INTERNAL


def test_a_response_that_can_not_be_read(channel: Any, kind: Kind) -> None:
    """The call ends INTERNAL, in grpcio's words."""

    def broken(data: bytes) -> Any:
        raise LookupError("can not")

    stub = kind.stub(channel, response_deserializer=broken)
    error = failure(lambda: list(stub(kind.argument())) if kind.streams_responses else stub(kind.argument()))
    assert error.code() is Code.INTERNAL
    assert error.details() == "Exception deserializing response!"


@pytest.mark.parametrize("kind", REQUEST_STREAMS, ids=str)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "object"])
def test_a_request_iterator_that_raises(channel: Any, kind: Kind, blocking: bool) -> None:
    """The call ends UNKNOWN, in grpcio's words."""

    def requests() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("no more")

    stub = kind.stub(channel)
    if blocking:
        error = failure(lambda: list(stub(requests())) if kind.streams_responses else stub(requests()))
    else:
        call = stub(requests()) if kind.streams_responses else stub.future(requests())
        error = failure(lambda: kind.finish(call))
    assert error.code() is Code.UNKNOWN
    assert error.details() == "Exception iterating requests!"


@pytest.mark.parametrize("kind", REQUEST_STREAMS, ids=str)
def test_requests_that_are_no_iterable(channel: Any, kind: Kind) -> None:
    """They are asked with ``next``."""
    error = failure(
        lambda: kind.finish(kind.stub(channel)(5) if kind.streams_responses else kind.stub(channel).future(5))
    )
    assert error.code() is Code.UNKNOWN


@pytest.mark.parametrize("kind", REQUEST_STREAMS, ids=str)
def test_a_server_that_ends_first(where: Where, channel: Any, kind: Kind) -> None:
    """A call that fails while requests are still to come ends; the iterator is let go of."""
    where.script(fail(Code.PERMISSION_DENIED))
    gate = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        gate.wait(HANGS_S)
        yield b"two"

    stub = kind.stub(channel)
    call = stub(requests()) if kind.streams_responses else stub.future(requests())
    error = failure(lambda: kind.finish(call))
    assert error.code() is Code.PERMISSION_DENIED
    gate.set()


# ---- cancelling ----


def test_cancel(where: Where, channel: Any, kind: Kind) -> None:
    """A running call that is cancelled ends at once, and the server learns of it."""
    gate = gated(where)
    call = kind.start(channel)
    eventually(lambda: where.received)
    assert call.is_active()
    assert call.running()
    assert not call.done()
    assert call.cancel() is True
    assert call.cancelled()
    assert call.done()
    assert not call.running()
    assert not call.is_active()
    assert call.code() is Code.CANCELLED
    assert call.details() == "Locally cancelled by application!"
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    with pytest.raises(grpc.FutureCancelledError):
        call.exception()
    with pytest.raises(grpc.FutureCancelledError):
        call.traceback()
    assert call.cancel() is False
    gate.set()


def test_cancel_at_once(where: Where, channel: Any, kind: Kind) -> None:
    """Before anything was sent, or just after."""
    gate = gated(where)
    call = kind.start(channel)
    assert call.cancel() is True
    assert call.code() is Code.CANCELLED
    assert call.trailing_metadata() is not None
    assert call.initial_metadata() is not None
    gate.set()


def test_cancel_after_the_end(channel: Any, kind: Kind) -> None:
    """There is nothing to cancel any more."""
    call = kind.start(channel)
    kind.finish(call)
    ended(call)
    assert call.cancel() is False
    assert not call.cancelled()
    assert call.code() is Code.OK


@pytest.mark.parametrize("kind", STREAMS, ids=str)
def test_iterating_a_cancelled_call(where: Where, channel: Any, kind: Kind) -> None:
    """It raises the call."""
    gate = gated(where)
    call = kind.start(channel)
    call.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    assert raised.value.code() is Code.CANCELLED
    gate.set()


@pytest.mark.parametrize("kind", STREAMS, ids=str)
def test_cancel_from_another_thread_while_iterating(where: Where, channel: Any, kind: Kind) -> None:
    """Who waits for a message is woken."""
    gate = gated(where)
    call = kind.start(channel)
    eventually(lambda: where.received)
    timer = threading.Timer(0.05, call.cancel)
    timer.start()
    error = failure(lambda: list(call))
    assert error.code() is Code.CANCELLED
    timer.join()
    gate.set()


def end_seen(where: Where) -> threading.Event:
    """All calls hang; the event is set when one has ended at its server."""
    seen = threading.Event()

    def step(context: Any) -> None:
        if not context.add_callback(seen.set):
            seen.set()
        wait_for(threading.Event())(context)

    where.script(step)
    return seen


def test_the_server_sees_a_cancellation(where: Where, channel: Any, kind: Kind) -> None:
    """Its context is no longer active."""
    seen = end_seen(where)
    call = kind.start(channel)
    eventually(lambda: where.received)
    call.cancel()
    assert seen.wait(HANGS_S)


def test_a_forgotten_call_is_cancelled(where: Where, channel: Any, kind: Kind) -> None:
    """A call that nobody holds any more ends."""
    seen = end_seen(where)
    call = kind.start(channel)
    eventually(lambda: where.received)
    del call
    assert seen.wait(HANGS_S)


# ---- futures ----


def test_before_during_and_after(where: Where, channel: Any, kind: Kind) -> None:
    """Running, then done."""
    gate = gated(where)
    call = kind.start(channel)
    assert isinstance(call, grpc.Call)
    assert isinstance(call, grpc.Future)
    assert call.running()
    assert not call.done()
    assert not call.cancelled()
    assert "object" in repr(call)
    gate.set()
    kind.finish(call)
    ended(call)
    assert not call.running()
    assert call.done()
    assert "StatusCode.OK" in repr(call)


def test_the_final_status(channel: Any, kind: Kind) -> None:
    """A result, no exception, no traceback."""
    call = kind.start(channel)
    kind.finish(call)
    assert call.exception() is None
    assert call.traceback() is None
    assert call.code() is Code.OK
    assert call.details() == ""
    if kind in FUTURES:
        assert [call.result()] == kind.echo()


def test_a_result_that_takes_too_long(where: Where, channel: Any, kind: Kind) -> None:
    """``result``, ``exception`` and ``traceback`` have time-outs, which do not end the call."""
    gate = gated(where)
    call = kind.start(channel)
    for wait in (call.result, call.exception, call.traceback):
        with pytest.raises(grpc.FutureTimeoutError):
            wait(timeout=0.05)
    assert call.is_active()
    gate.set()
    assert kind.finish(call) == kind.echo()


def test_done_callbacks(where: Where, channel: Any, kind: Kind) -> None:
    """They get the call, in order, once; one that is added after the end is called at once."""
    gate = gated(where)
    call = kind.start(channel)
    seen: list[Any] = []
    last = threading.Event()
    call.add_done_callback(lambda done: seen.append(("first", done)))
    assert call.add_callback(lambda: seen.append("second")) is True
    call.add_done_callback(lambda done: last.set())
    gate.set()
    kind.finish(call)
    assert last.wait(HANGS_S)
    assert seen == [("first", call), "second"]
    call.add_done_callback(seen.append)
    assert seen[-1] is call
    assert call.add_callback(lambda: None) is False


def test_a_done_callback_that_calls(where: Where, channel: Any, kind: Kind) -> None:
    """A blocking call in a callback works."""
    gate = gated(where)
    call = kind.start(channel)
    answers: list[bytes] = []
    done = threading.Event()

    def again(_: Any) -> None:
        answers.append(UU.stub(channel)(b"again"))
        done.set()

    call.add_done_callback(again)
    gate.set()
    kind.finish(call)
    assert done.wait(HANGS_S)
    assert answers == [b"again"]


def test_a_done_callback_that_raises(where: Where, channel: Any, kind: Kind) -> None:
    """It harms nobody else."""
    gate = gated(where)
    call = kind.start(channel)
    seen = threading.Event()

    def broken(_: Any) -> None:
        raise LookupError("broken")

    call.add_done_callback(broken)
    call.add_done_callback(lambda _: seen.set())
    gate.set()
    kind.finish(call)
    assert seen.wait(HANGS_S)
    assert kind.run(channel) == kind.echo()


def test_done_callbacks_of_a_cancelled_call(where: Where, channel: Any, kind: Kind) -> None:
    """They are called, too."""
    gate = gated(where)
    call = kind.start(channel)
    seen = threading.Event()
    call.add_done_callback(lambda _: seen.set())
    call.cancel()
    assert seen.wait(HANGS_S)
    gate.set()


@pytest.mark.parametrize("method", ["code", "details", "trailing_metadata"])
def test_who_asks_early_waits(where: Where, channel: Any, kind: Kind, method: str) -> None:
    """What only the end brings is waited for."""
    gate = gated(where)
    call = kind.start(channel)
    timer = threading.Timer(0.05, gate.set)
    timer.start()
    drain = threading.Thread(target=lambda: kind.finish(call))
    drain.start()
    assert getattr(call, method)() is not None
    assert gate.is_set()
    timer.join()
    drain.join(HANGS_S)


# ---- iterators ----


@pytest.mark.parametrize("kind", STREAMS, ids=str)
def test_an_iterator_in_another_thread(channel: Any, kind: Kind) -> None:
    """A call may be begun here and read there."""
    call = kind.start(channel)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(call))
    thread.start()
    thread.join(HANGS_S)
    assert found == kind.echo()


@pytest.mark.parametrize("kind", STREAMS, ids=str)
def test_iterating_twice(channel: Any, kind: Kind) -> None:
    """``next`` after the end raises StopIteration again."""
    call = kind.start(channel)
    assert list(call) == kind.echo()
    assert list(call) == []
    with pytest.raises(StopIteration):
        next(call)
    with pytest.raises(StopIteration):
        call.next()


def test_a_dialogue_is_not_held_back(channel: Any) -> None:
    """Requests that depend on responses: each goes out when it is made."""
    turns: list[bytes] = []
    more = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for i in range(5):
            assert more.acquire(timeout=HANGS_S)
            yield b"%d" % i

    for response in SS.stub(channel)(requests()):
        turns.append(response)
        more.release()
    assert turns == [b"0", b"1", b"2", b"3", b"4"]


def test_a_writer_and_a_reader_side_by_side(channel: Any) -> None:
    """Flow control holds the requests back, and nothing is lost or out of order."""
    sent = [b"%d" % i * 50 for i in range(500)]
    assert list(SS.stub(channel)(iter(sent))) == sent


@pytest.mark.parametrize("kind", STREAMS, ids=str)
def test_single_threaded_streams(where: Where, kind: Kind) -> None:
    """The experimental option of grpcio is understood."""
    channel = where.open(options=((grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),))
    assert kind.run(channel) == kind.echo()
    call = kind.stub(channel)(kind.argument())
    assert next(call) == kind.echo()[0]
    assert list(call) == kind.echo()[1:]
    assert call.code() is Code.OK
    assert dict(call.trailing_metadata())[NAME_KEY]


def test_a_single_threaded_stream_that_fails(where: Where) -> None:
    """It raises itself, as the other does."""
    where.script(fail(Code.ABORTED, "no"))
    channel = where.open(options=((grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),))
    error = failure(lambda: US.run(channel))
    assert (error.code(), error.details()) == (Code.ABORTED, "no")


def test_context_variables(channel: Any, kind: Kind) -> None:
    """As grpcio does: it runs request iterators in a copy of the caller's context."""
    import contextvars

    here: contextvars.ContextVar[str] = contextvars.ContextVar("here", default="nowhere")
    here.set("caller")
    seen: list[str] = []

    def requests() -> Iterator[bytes]:
        seen.append(here.get())
        yield b"x"

    if kind.streams_requests:
        answer = kind.stub(channel)(requests())
        assert (list(answer) if kind.streams_responses else [answer]) == [b"x"]
        assert seen == ["caller"]
    else:
        assert kind.run(channel) == kind.echo()
