"""One body of tests for grpcio's own channel and for ours: interceptors, connectivity, life."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.support.releases import RELEASE
from tests.support.wait import longer
from tests.sync.conftest import Fleet
from tests.sync.interceptors import Recorder
from tests.sync.kit import HANGS_S, REQUESTS, SS, SU, UU, Kind, Server, eventually, fail, failure, wait_for
from tests.sync.worlds import FUTURES, STREAMS, Where, gated

# Grpcio's thread for subscriptions raises it if its channel closes between two watches. Ours does not: test_life.py.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s)Exception in thread .*ValueError. Cannot monitor channel state. Channel closed!"
    ":pytest.PytestUnhandledThreadExceptionWarning"
)

Code = grpc.StatusCode
State = grpc.ChannelConnectivity


class OnlyUnary(grpc.UnaryUnaryClientInterceptor):
    """Whatever it is told to do with a unary call."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """As grpcio asks for it."""
        return self._act(continuation, client_call_details, request)


# ---- interceptors ----


def test_one_class_of_all_kinds_serves_all(where: Where, kind: Kind) -> None:
    """It sees each call once, and what it changes reaches the server."""
    recorder = Recorder()
    channel = where.open(interceptors=[recorder])
    assert kind.run(channel) == kind.echo()
    assert recorder.log == [f"one {kind}"]
    assert where.received[0].metadata["x-seen-by"] == "one"


def test_interceptors_of_call_objects(where: Where, kind: Kind) -> None:
    """Futures and ``with_call`` pass through them, too."""
    recorder = Recorder()
    channel = where.open(interceptors=[recorder])
    assert kind.finish(kind.start(channel)) == kind.echo()
    if kind in FUTURES:
        response, call = kind.stub(channel).with_call(kind.argument())
        assert [response] == kind.echo()
        assert call.code() is Code.OK
        assert len(recorder.log) == 2


def test_the_first_in_the_list_is_outermost(where: Where, kind: Kind) -> None:
    """The first is the outermost."""
    log: list[str] = []
    channel = where.open(interceptors=[Recorder("one", log), Recorder("two", log)])
    assert kind.run(channel) == kind.echo()
    assert log == [f"one {kind}", f"two {kind}"]


def test_intercept_channel(where: Where, kind: Kind) -> None:
    """``grpc.intercept_channel`` takes the channel, several times."""
    log: list[str] = []
    inner = grpc.intercept_channel(where.open(), Recorder("inner", log))
    outer = grpc.intercept_channel(inner, Recorder("outer", log))
    assert kind.run(outer) == kind.echo()
    assert log == [f"outer {kind}", f"inner {kind}"]


def test_each_kind_sees_its_calls_once(where: Where, kind: Kind) -> None:
    """An interceptor of another kind is passed over."""
    seen: list[str] = []

    def act(continuation: Any, details: Any, request: Any) -> Any:
        seen.append(details.method)
        return continuation(details, request)

    channel = where.open(interceptors=[OnlyUnary(act)])
    assert kind.run(channel) == kind.echo()
    assert len(seen) == (kind is UU)


def test_a_bad_interceptor(where: Where) -> None:
    """It is refused when the channel is made."""
    with pytest.raises(TypeError, match="interceptor must be"):
        where.open(interceptors=[object()])


def test_an_interceptor_that_raises(where: Where) -> None:
    """A blocking call raises what it raised; a future carries it."""

    def act(continuation: Any, details: Any, request: Any) -> Any:
        raise LookupError("broken")

    channel = where.open(interceptors=[OnlyUnary(act)])
    with pytest.raises(LookupError):
        UU.run(channel)
    call = UU.start(channel)
    assert isinstance(call.exception(), LookupError)
    assert call.code() is Code.INTERNAL


def test_an_interceptor_that_retries(where: Where) -> None:
    """It may call the continuation again."""
    where.servers[0].script(fail(Code.ABORTED))
    for server in where.servers[1:]:
        server.script(fail(Code.ABORTED))

    def act(continuation: Any, details: Any, request: Any) -> Any:
        for _ in range(len(where.servers) + 1):
            call = continuation(details, request)
            if call.code() is Code.OK:
                break
        return call

    channel = where.open(interceptors=[OnlyUnary(act)])
    assert UU.run(channel) == UU.echo()


def test_an_interceptor_that_answers(where: Where) -> None:
    """It may answer by itself; nothing is sent."""

    class Answer(grpc.Future):  # type: ignore[type-arg]  # generic in the stubs alone
        def result(self, timeout: float | None = None) -> bytes:
            return b"mine"

        def cancel(self) -> bool:
            return False

        def cancelled(self) -> bool:
            return False

        def running(self) -> bool:
            return False

        def done(self) -> bool:
            return True

        def exception(self, timeout: float | None = None) -> None:
            return None

        def traceback(self, timeout: float | None = None) -> None:
            return None

        def add_done_callback(self, fn: Any) -> None:
            fn(self)

    channel = where.open(interceptors=[OnlyUnary(lambda continuation, details, request: Answer())])
    assert UU.run(channel) == [b"mine"]
    assert where.received == []


def test_a_failure_through_an_interceptor(where: Where) -> None:
    """As a call that has ended."""
    where.script(fail(Code.NOT_FOUND, "gone"))
    seen: list[Any] = []

    def act(continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(details, request)
        seen.append((call.code(), call.details(), call.done()))
        return call

    channel = where.open(interceptors=[OnlyUnary(act)])
    error = failure(lambda: UU.run(channel))
    assert error.code() is Code.NOT_FOUND
    assert seen == [(Code.NOT_FOUND, "gone", True)]


# ---- connectivity ----


class States:
    """Notes the states that a subscription tells."""

    def __init__(self) -> None:
        self.seen: list[State] = []

    def __call__(self, state: State) -> None:
        """One more."""
        self.seen.append(state)


def test_a_new_channel_is_idle_and_stays_so(channel: Any) -> None:
    """A subscription alone connects nothing; with ``try_to_connect`` it does."""
    states = States()
    channel.subscribe(states)
    eventually(lambda: states.seen == [State.IDLE])
    channel.subscribe(other := States(), try_to_connect=True)
    eventually(lambda: states.seen[-1] is State.READY and other.seen[-1] is State.READY)
    channel.unsubscribe(states)
    channel.unsubscribe(other)


def test_unsubscribe(channel: Any) -> None:
    """Nothing is told any more; what never subscribed can be unsubscribed."""
    states = States()
    channel.unsubscribe(states)
    channel.subscribe(states)
    eventually(lambda: states.seen)
    channel.unsubscribe(states)
    told = len(states.seen)
    grpc.channel_ready_future(channel).result(timeout=HANGS_S)
    assert len(states.seen) == told


def test_a_subscriber_that_raises(channel: Any) -> None:
    """It harms no other."""

    def broken(state: State) -> None:
        raise LookupError("broken")

    states = States()
    channel.subscribe(broken, try_to_connect=True)
    channel.subscribe(states)
    eventually(lambda: State.READY in states.seen)
    channel.unsubscribe(broken)
    channel.unsubscribe(states)


def test_channel_ready(channel: Any) -> None:
    """It is done when the channel is ready."""
    ready = grpc.channel_ready_future(channel)
    seen: list[Any] = []
    ready.add_done_callback(seen.append)
    assert ready.result(timeout=HANGS_S) is None
    assert ready.done()
    assert not ready.running()
    eventually(lambda: seen == [ready])


def test_channel_ready_future_of_nobody(free_port: int) -> None:
    """Where nobody listens it times out, and can be cancelled."""
    import lb.sync

    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{free_port}"),
        lb.sync.channel(f"static:///127.0.0.1:{free_port}"),
    ):
        with channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=0.1)
            assert ready.cancel() is True
            with pytest.raises(grpc.FutureCancelledError):
                ready.result()


def test_a_first_call_connects_it(channel: Any) -> None:
    """A subscriber learns of it."""
    states = States()
    channel.subscribe(states)
    UU.run(channel)
    eventually(lambda: State.READY in states.seen)
    channel.unsubscribe(states)


def test_a_lost_server(world: Where, fleet: Fleet) -> None:
    """The channel is not ready any more when all servers are gone."""
    where = Where(fleet(len(world.servers)), world.ours)
    channel = where.open()
    states = States()
    channel.subscribe(states, try_to_connect=True)
    eventually(lambda: State.READY in states.seen)
    for server in where.servers:
        server.stop()
    eventually(lambda: states.seen[-1] is not State.READY)
    error = failure(lambda: UU.run(channel))
    assert error.code() is Code.UNAVAILABLE
    channel.unsubscribe(states)
    where.close()


def test_without_a_server_a_call_fails_fast_or_waits(free_port: int, kind: Kind) -> None:
    """A call to where nobody listens fails UNAVAILABLE, or waits for ready until its deadline."""
    import lb.sync

    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{free_port}"),
        lb.sync.channel(f"static:///127.0.0.1:{free_port}"),
    ):
        with channel:
            error = failure(lambda channel=channel: kind.run(channel, timeout=10))  # type: ignore[misc]
            assert error.code() is Code.UNAVAILABLE
            assert "Connection refused" in error.details()
            error = failure(
                lambda channel=channel: kind.run(channel, timeout=0.3, wait_for_ready=True)  # type: ignore[misc]
            )
            assert error.code() is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("wait", [None, True], ids=["fail fast", "wait for ready"])
def test_metadata_that_cannot_be_sent_wait_for_no_connection(free_port: int, kind: Kind, wait: bool | None) -> None:
    """What cannot be sent ends the call INTERNAL, also where nothing is connected, and at once."""
    import lb.sync

    channels: list[Any] = [lb.sync.channel(f"static:///127.0.0.1:{free_port}")]
    if RELEASE >= (1, 81):  # grpcio itself does so from there on
        channels.append(grpc.insecure_channel(f"127.0.0.1:{free_port}"))
    for channel in channels:
        with channel:
            illegal: Any = {"metadata": (("with blank", "x"),), "wait_for_ready": wait, "timeout": 1000}
            for end in (
                lambda channel=channel, illegal=illegal: kind.run(channel, **illegal),
                lambda channel=channel, illegal=illegal: kind.finish(kind.start(channel, **illegal)),
            ):
                error = failure(end)
                assert (error.code(), error.details()) == (Code.INTERNAL, "Invalid metadata")


def test_wait_for_ready_waits(free_port: int, kind: Kind) -> None:
    """A call that waits is answered once a server is there."""
    import lb.sync

    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{free_port}", options=(("grpc.max_reconnect_backoff_ms", 200),)),
        lb.sync.channel(f"static:///127.0.0.1:{free_port}"),
    ):
        with channel:
            call = kind.start(channel, wait_for_ready=True, timeout=HANGS_S)
            states = States()
            channel.subscribe(states, try_to_connect=True)
            eventually(lambda states=states: State.TRANSIENT_FAILURE in states.seen)  # type: ignore[misc]
            server = Server("late", port=free_port)
            assert kind.finish(call) == kind.echo()
            channel.unsubscribe(states)
            server.stop()


# ---- life ----


def test_a_channel_is_a_context_manager(where: Where, kind: Kind) -> None:
    """It gives the channel, and closes it."""
    with where.open() as channel:
        assert kind.run(channel) == kind.echo()
    with pytest.raises(ValueError, match="Cannot invoke RPC"):
        kind.run(channel)


def test_use_after_close(channel: Any, kind: Kind) -> None:
    """It raises ValueError where the call is made, for each way to call; stubs made before and after."""
    stub = kind.stub(channel)
    channel.close()
    for multicallable in (stub, kind.stub(channel)):
        with pytest.raises(ValueError, match="Cannot invoke RPC"):
            multicallable(kind.argument())
        if kind in FUTURES:
            with pytest.raises(ValueError, match="Cannot invoke RPC: Channel closed!"):
                multicallable.future(kind.argument())
            with pytest.raises(ValueError, match="Cannot invoke RPC on closed channel!"):
                multicallable.with_call(kind.argument())


def test_close_twice(channel: Any) -> None:
    """Once is enough."""
    UU.run(channel)
    channel.close()
    channel.close()


def test_close_without_use(where: Where) -> None:
    """Nothing was begun, so nothing is to end."""
    where.open().close()


def test_closing_the_channel_cancels_its_calls(where: Where, channel: Any, kind: Kind) -> None:
    """Running calls end CANCELLED."""
    gate = gated(where)
    call = kind.start(channel)
    eventually(lambda: where.received)
    channel.close()
    error = failure(lambda: kind.finish(call))
    assert error.code() is Code.CANCELLED
    assert error.details() == "Channel closed!"
    gate.set()


@pytest.mark.parametrize("kind", FUTURES, ids=str)
def test_close_cancels_blocking_calls(where: Where, channel: Any, kind: Kind) -> None:
    """So do those that somebody waits for in another thread."""
    kind.run(channel)
    before = len(where.received)
    gate = gated(where)
    errors: list[Any] = []
    thread = threading.Thread(target=lambda: errors.append(failure(lambda: kind.run(channel))))
    thread.start()
    eventually(lambda: len(where.received) > before)
    channel.close()
    thread.join(HANGS_S)
    assert [(error.code(), error.details()) for error in errors] == [(Code.CANCELLED, "Channel closed!")]
    gate.set()


def test_close_ends_what_waits_for_a_connection(free_port: int, kind: Kind) -> None:
    """A call that waits for ready ends CANCELLED, too, blocking or not."""
    import lb.sync

    def closed_after(channel: Any, pause_s: float) -> list[Any]:
        call = kind.start(channel, wait_for_ready=True)
        errors: list[Any] = []
        begun = threading.Event()

        def work() -> None:
            begun.set()
            try:
                kind.run(channel, wait_for_ready=True)
            except (grpc.RpcError, ValueError) as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(HANGS_S)
        time.sleep(pause_s)  # until the call is under way: nothing tells
        channel.close()
        assert failure(lambda: kind.finish(call)).code() is Code.CANCELLED
        thread.join(HANGS_S)
        return errors

    makes: tuple[Callable[[], Any], ...] = (
        lambda: grpc.insecure_channel(f"127.0.0.1:{free_port}"),
        lambda: lb.sync.channel(f"static:///127.0.0.1:{free_port}"),
    )
    for make in makes:
        for pause_s in longer(0.05):
            errors = closed_after(make(), pause_s)
            if not isinstance(errors[0], ValueError):
                break  # else the channel was closed before the call began
        assert [error.code() for error in errors] == [Code.CANCELLED]


def test_subscribers_at_close(channel: Any) -> None:
    """They are let go of; nothing raises."""
    states = States()
    channel.subscribe(states, try_to_connect=True)
    eventually(lambda: State.READY in states.seen)
    channel.close()
    channel.unsubscribe(states)


def test_a_stub_keeps_its_channel(where: Where, kind: Kind) -> None:
    """Who forgets the channel and keeps a stub can call."""
    channel = where.open()
    where.opened.clear()
    stub = kind.stub(channel)
    del channel
    gc.collect()
    for _ in range(2):
        answer = stub(kind.argument())
        assert (list(answer) if kind.streams_responses else [answer]) == kind.echo()


@pytest.mark.parametrize("kind", [*STREAMS, SU], ids=str)
def test_a_call_outlives_stub_and_channel(where: Where, kind: Kind) -> None:
    """Who forgets both and keeps a call gets its answer."""
    gate = gated(where)
    channel = where.open()
    where.opened.clear()
    call = kind.start(channel)
    del channel
    gc.collect()
    gate.set()
    assert kind.finish(call) == kind.echo()


def test_targets(where: Where) -> None:
    """What grpcio takes is taken, and means the same."""
    import lb.sync

    port = where.servers[0].port
    for target in (f"127.0.0.1:{port}", f"localhost:{port}", f"dns:///127.0.0.1:{port}", f"ipv4:127.0.0.1:{port}"):
        for channel in (grpc.insecure_channel(target), lb.sync.channel(target)):
            with channel:
                assert UU.run(channel, timeout=HANGS_S) == UU.echo()


@pytest.mark.parametrize(
    "settings",
    [
        {"options": (("a", object()),)},
        {"options": 5},
        {"options": (("a",),)},
        {"compression": "gzip"},
    ],
    ids=["an option's value", "no options", "an option without a value", "compression by name"],
)
def test_bad_options(where: Where, settings: Any) -> None:
    """They raise when the channel is made."""
    with pytest.raises((TypeError, ValueError, AttributeError)):
        where.open(**settings)


def test_requests_are_asked_for_in_a_thread(channel: Any) -> None:
    """An iterator that waits for the response of its own call, as grpcio allows."""
    responses: list[bytes] = []
    told = threading.Condition()

    def requests() -> Iterator[bytes]:
        for i, request in enumerate(REQUESTS):
            with told:
                assert told.wait_for(lambda i=i: len(responses) == i, HANGS_S)  # type: ignore[misc]
            yield request

    for response in SS.stub(channel)(requests()):
        with told:
            responses.append(response)
            told.notify_all()
    assert responses == list(REQUESTS)


def test_calls_from_a_done_callback_of_a_closed_channel(where: Where, channel: Any) -> None:
    """A callback may close the channel."""
    closed = threading.Event()

    def close(_: Any) -> None:
        channel.close()
        closed.set()

    gate = threading.Event()
    where.script(wait_for(gate))
    call = UU.start(channel)
    call.add_done_callback(close)
    gate.set()
    assert closed.wait(HANGS_S)
    assert call.result() == b"one"
