"""Threads, processes and what is left: the background loop, many endpoints, forks, forgotten channels, other loops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import grpc
import pytest

import lb
from lb.shared import fork
from lb.sync import loop, subchannel
from tests.support import doors
from tests.sync.conftest import Fleet
from tests.sync.kit import (
    HANGS_S,
    IDEMPOTENT,
    KINDS,
    SS,
    SU,
    US,
    UU,
    Kind,
    Server,
    channel_to,
    eventually,
    failure,
    in_flight,
    lb_threads,
    ready,
    wait_for,
)


def run(code: str, *arguments: str, **environment: str) -> list[str]:
    """What a new process prints that executes this; it must end well and say nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "GRPC_VERBOSITY": "NONE", **environment},
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-3000:])
    assert done.stderr == ""
    return done.stdout.splitlines()


# ---- threads ----


def test_nothing_starts_before_the_first_use(server: Server) -> None:
    """Making a channel starts nothing; the first call starts the loop; the last close ends it."""
    eventually(lambda: lb_threads() == [], "a neighbour's loop has ended")
    with channel_to(server) as one, channel_to(server) as two:
        assert lb_threads() == []
        UU.run(one)
        UU.run(two)
        assert lb_threads() == ["lb: loop"]
    eventually(lambda: lb_threads() == [])
    with channel_to(server) as again:
        assert UU.run(again) == UU.echo()


def test_the_loop_lives_as_long_as_any_channel(server: Server) -> None:
    """The one that closes first takes nothing from the other."""
    with channel_to(server) as one:
        UU.run(one)
        with channel_to(server) as two:
            UU.run(two)
        assert UU.run(one) == UU.echo()
        assert UU.finish(UU.start(one)) == UU.echo()


def test_two_hundred_endpoints(fleet: Fleet) -> None:
    """The number of threads does not depend on that of endpoints, whatever is done with them."""
    servers = fleet(2, workers=64)
    # Every name resolves to one of the two servers, and is an endpoint of its own.
    endpoints = tuple(lb.Endpoint(servers[i % 2].address, id=f"e{i}") for i in range(200))

    class All:
        target = "all"

        def start(self, listener: Any) -> None:
            listener.update(lb.Resolution(endpoints))

        def close(self) -> None:
            pass

    before = set(threading.enumerate())
    states: list[Any] = []
    with lb.sync.channel(All(), policy="round_robin", retry=IDEMPOTENT) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        ready(channel, 200)
        most = 0
        gate = threading.Event()

        def work() -> None:
            for _ in range(25):
                UU.run(channel, timeout=HANGS_S)
            gate.wait(HANGS_S)

        callers = [threading.Thread(target=work) for _ in range(16)]
        for caller in callers:
            caller.start()
        futures = [UU.start(channel, timeout=HANGS_S) for _ in range(200)]
        streams = [US.start(channel, timeout=HANGS_S) for _ in range(200)]
        ours = set(threading.enumerate()) - before - set(callers)
        most = len([t for t in ours if "ThreadPoolExecutor" not in t.name])
        for future in futures:
            assert UU.finish(future) == UU.echo()
        for stream in streams:
            assert US.finish(stream) == US.echo()
        gate.set()
        for caller in callers:
            caller.join(HANGS_S)
        picks = [endpoint.picks for endpoint in channel.snapshot().endpoints]
        assert sum(picks) == 16 * 25 + 400
        assert min(picks) == max(picks) == 4
        # The loop, grpcio's poller, the thread of the futures' events, that of the subscription, one that delivers.
        assert most <= 5, [thread.name for thread in ours]
        channel.unsubscribe(states.append)


def test_closing_between_two_watches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grpcio's thread for subscriptions, which is about to watch the channel, ends, and no error is told of it."""
    clock, polling, go = time.time, threading.Event(), threading.Event()
    pollers: list[threading.Thread] = []
    unhandled: list[Any] = []

    def held() -> float:
        if sys._getframe(1).f_code.co_name == "_poll_connectivity":  # it asks what time it is before it watches
            pollers.append(threading.current_thread())
            polling.set()
            go.wait(HANGS_S)
        return clock()

    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    monkeypatch.setattr(time, "time", held)
    with channel_to(server) as channel:
        channel.subscribe(lambda state: None)
        assert polling.wait(HANGS_S)
    go.set()
    pollers[0].join(HANGS_S)
    assert not pollers[0].is_alive()
    assert unhandled == []


def test_one_thread_for_each_stream_of_requests(server: Server) -> None:
    """As in grpcio: a user's iterator may block, so each has a thread of its own, which ends with it."""
    before = threading.active_count()
    gate = threading.Event()
    with channel_to(server) as channel:
        ready(channel, 1)

        def requests() -> Any:
            yield b"one"
            gate.wait(HANGS_S)

        calls = [SS.stub(channel)(requests()) for _ in range(5)]
        for call in calls:
            assert next(call) == b"one"
        gate.set()
        for call in calls:
            assert list(call) == []
    eventually(lambda: threading.active_count() <= before + 32)


# ---- what is left ----


def test_a_forgotten_channel_cleans_up(server: Server, recwarn: pytest.WarningsRecorder, caplog: Any) -> None:
    """Nobody closed it: it goes with its last reference, without a word, and so does the loop."""
    channel = channel_to(server)
    stub = channel.unary_unary(UU.method)
    assert stub(b"x") == b"x"
    assert UU.finish(UU.start(channel)) == UU.echo()
    inner = weakref.ref(doors.engine(channel))
    with caplog.at_level(logging.DEBUG, "asyncio"):
        del channel
        gc.collect()
        assert stub(b"x") == b"x"
        del stub
        gc.collect()
        eventually(lambda: lb_threads() == [])
    eventually(lambda: gc.collect() >= 0 and inner() is None, "the channel is collected")
    assert [str(warning.message) for warning in recwarn] == []
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_no_call_is_left(server: Server, kind: Kind) -> None:
    """Calls that ended, in whichever way, are collected and hold no place."""
    from lb.sync.blocking import BlockingCall
    from lb.sync.calls import LoopCall

    with channel_to(server) as channel:
        ready(channel, 1)
        for _ in range(10):
            kind.run(channel)
            kind.finish(kind.start(channel))
            kind.start(channel).cancel()
            failure(lambda: kind.run(channel, timeout=-1))
            getattr(channel, kind.name)("/lb.testing.Echo/Nothing")
        eventually(lambda: in_flight(channel) == 0)
        gc.collect()
        eventually(
            lambda: not [o for o in gc.get_objects() if isinstance(o, (BlockingCall, LoopCall))], "calls are collected"
        )
        assert doors.running(channel) == set()


def test_calls_cancelled_at_random_moments_leave_nothing_behind(fleet: Fleet, kind: Kind) -> None:
    """Calls cancelled at any moment leave nothing in flight, and no thread waiting."""
    servers = fleet(2)
    with channel_to(*servers, retry=IDEMPOTENT) as channel:
        ready(channel, 2)

        def work(number: int) -> None:
            for i in range(40):
                call = kind.start(channel)
                for _ in range((i * 7 + number) % 50 * 20):
                    pass
                call.cancel()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
        eventually(lambda: in_flight(channel) == 0)
        eventually(lambda: doors.running(channel) == set())
        assert kind.run(channel) == kind.echo()


@pytest.mark.parametrize("kind", [US, SS], ids=str)
def test_a_stream_that_can_not_be_read(server: Server, kind: Kind) -> None:
    """A response that does not deserialize ends the call for its caller, who forgets it: it waits for no reader."""
    with channel_to(server) as channel:
        ready(channel, 1)
        stub = kind.stub(channel, response_deserializer=lambda data: None)
        for _ in range(3):
            assert failure(lambda: list(stub(kind.argument()))).code() is grpc.StatusCode.INTERNAL
        # The error is the call itself, with its own traceback: a cycle.
        eventually(lambda: gc.collect() >= 0 and in_flight(channel) == 0)
        eventually(lambda: doors.running(channel) == set())


@pytest.mark.parametrize("hedging", [None, lb.Hedging(delay_s=0.001)], ids=["plain", "hedged"])
def test_closing_while_calls_run(fleet: Fleet, hedging: lb.Hedging | None) -> None:
    """Whatever a call was about, it ends at once, cancelled or refused; closing twice at once is closing once."""
    servers = fleet(2, workers=16)
    wrong: list[object] = []

    def work(channel: Any, rng: Random) -> None:
        while True:
            kind = rng.choice(KINDS)
            try:
                if rng.random() < 0.5:
                    kind.run(channel)
                else:
                    kind.finish(kind.start(channel))
            except grpc.FutureCancelledError:
                pass
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    wrong.append(error)
            except ValueError:  # closed
                return

    with channel_to(servers[0]) as other:
        for turn in range(12):
            channel = channel_to(*servers, retry=IDEMPOTENT, hedging=hedging)
            if turn % 2:
                ready(channel, 1)
            threads = [threading.Thread(target=work, args=(channel, Random(i)), daemon=True) for i in range(8)]
            threads += [threading.Thread(target=channel.close) for _ in range(2)]
            for thread in threads[:-2]:
                thread.start()
            time.sleep(Random(turn).uniform(0.0, 0.03))
            for thread in threads[-2:]:
                thread.start()
            for thread in threads:
                thread.join(HANGS_S)
            assert [thread for thread in threads if thread.is_alive()] == []
            assert wrong == []
            assert UU.run(other, timeout=HANGS_S) == UU.echo()
    eventually(lambda: lb_threads() == [])


# ---- what a user's code does in the library's own thread ----


class Starting:
    """A resolver that does something first."""

    target = "starting"

    def __init__(self, server: Server, act: Callable[[], object]) -> None:
        self._server = server
        self._act = act

    def start(self, listener: Any) -> None:
        """Do it, and name the server."""
        self._act()
        listener.update(lb.Resolution((lb.Endpoint(self._server.address),)))

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("inner", [UU, SU], ids=str)
def test_waiting_in_the_librarys_thread(server: Server, inner: Kind) -> None:
    """A blocking call there would wait for itself: it is an error that says so."""
    told: list[str] = []
    with channel_to(server) as other:

        def act() -> None:
            try:
                inner.run(other, timeout=HANGS_S)
            except RuntimeError as error:
                told.append(str(error))

        with lb.sync.channel(Starting(server, act)) as channel:
            assert UU.run(channel, timeout=HANGS_S) == UU.echo()
    assert len(told) == 1
    assert "a resolver or policy made a blocking call in lb's own thread" in told[0]


def test_asking_a_loop_that_has_ended() -> None:
    """Who was about to wait for it is told that nothing comes."""
    used = loop.acquire()
    loop.release(used)
    used.thread.join(HANGS_S)

    async def never() -> None:
        """Nobody runs it."""

    assert used.wait(never()) is None
    assert not used.soon(print)


def test_descriptors(server: Server) -> None:
    """Making, using and closing channels opens nothing that stays."""

    def once() -> None:
        with channel_to(server) as channel:
            UU.run(channel)
            UU.finish(UU.start(channel))

    for _ in range(3):
        once()
    eventually(lambda: lb_threads() == [])
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(10):
        once()
    eventually(lambda: lb_threads() == [])
    if before:
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


# ---- the end of the process ----


def test_a_process_that_closes_nothing_ends(server: Server) -> None:
    """At once, and without a word, even with a call under way."""
    server.script(None, None, wait_for(threading.Event()))
    code = """
        import sys, lb
        channel = lb.sync.channel("static:///" + sys.argv[1])
        stub = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
        print(stub(b"x"), stub.future(b"y").result())
        call = stub.future(b"z")
        print("end")
    """
    assert run(code, server.address) == ["b'x' b'y'", "end"]


@pytest.mark.parametrize("end", ["", "channel.close()"], ids=["forgotten", "closed"])
def test_a_process_that_watches_consul_ends(end: str) -> None:
    """Without a word of aiohttp's about sessions that nobody closed."""
    code = f"""
        import logging, grpc, lb
        logging.disable()
        channel = lb.sync.channel("consul://127.0.0.1:9/catalog")
        try:
            channel.unary_unary("/a/b")(b"x", timeout=0.5)
        except grpc.RpcError:
            print("failed")
        {end}
    """
    assert run(code) == ["failed"]


def test_ctrl_c_in_a_blocking_call(server: Server) -> None:
    """It ends the wait, in the caller's own thread as in the loop's care; the process can go on."""
    server.always = wait_for(threading.Event())
    code = """
        import os, signal, sys, threading, lb
        channel = lb.sync.channel("static:///" + sys.argv[1])
        nobody = lb.sync.channel("static:///127.0.0.1:1")
        first = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
        for stub, options in ((first, {}), (first, {}), (nobody.unary_unary("/a/b"), {"wait_for_ready": True})):
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                stub(b"x", timeout=30, **options)
            except KeyboardInterrupt:
                print("interrupted")
        print(sum(e.in_flight for e in channel.snapshot().endpoints))
        channel.close()
        nobody.close()
    """
    lines = run(code, server.address)
    assert lines == ["interrupted", "interrupted", "interrupted", "0"]
    assert signal.SIGINT


def test_ctrl_c_ends_the_call_at_its_server(fleet: Fleet) -> None:
    """Its one worker is free for the next call."""
    (server,) = fleet(1, workers=1)
    server.script(None, wait_for(threading.Event()))
    code = """
        import os, signal, sys, threading, lb
        with lb.sync.channel("static:///" + sys.argv[1]) as channel:
            stub = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
            stub(b"x", timeout=20)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                stub(b"x", timeout=20)
            except KeyboardInterrupt:
                print(stub(b"y", timeout=10))
    """
    assert run(code, server.address) == ["b'y'"]


def kept_stream(channel: Any) -> Any:
    """One in its middle."""
    call = US.start(channel)
    next(call)
    return call


def kept_hanging(channel: Any) -> Any:
    """One that the server never answers."""
    return SS.start(channel, timeout=1000)


def kept_ended_stream(channel: Any) -> Any:
    """One that was read to its end."""
    call = SS.start(channel)
    SS.finish(call)
    return call


def kept_future(channel: Any) -> Any:
    """One with its result."""
    call = SU.start(channel)
    SU.finish(call)
    return call


def kept_blocking_call(channel: Any) -> Any:
    """The call object that comes with an answer; a new channel's first call goes through the loop."""
    return UU.stub(channel).with_call(b"x")


def kept_error(channel: Any) -> Any:
    """What a stream has raised."""
    call = US.start(channel, timeout=1.0)
    return failure(lambda: US.finish(call))


@pytest.mark.parametrize(
    "keep", [kept_stream, kept_hanging, kept_ended_stream, kept_future, kept_blocking_call, kept_error]
)
def test_a_call_object_that_is_kept_delays_no_closing(
    server: Server, monkeypatch: pytest.MonkeyPatch, keep: Callable[[Any], Any]
) -> None:
    """Nothing in it keeps core's call, and with it the connection: closing ends without its time-out."""
    monkeypatch.setattr(subchannel, "WATCH_S", 10 * HANGS_S)
    if keep in (kept_hanging, kept_error):
        server.always = wait_for(threading.Event())
    channel = channel_to(server)
    kept = keep(channel)
    eventually(lambda: server.received)
    channel.close()
    eventually(lambda: lb_threads() == [], "the channel is closed")
    assert lb.attempts(kept[1] if isinstance(kept, tuple) else kept)


def test_ctrl_c_in_a_stream_delays_no_closing(server: Server) -> None:
    """The call object is still there, in the variable of who was interrupted."""
    server.always = wait_for(threading.Event())
    code = """
        import os, signal, sys, threading, time, lb, lb.sync.subchannel
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lb.sync.subchannel.WATCH_S = 600
        channel = lb.sync.channel("static:///" + sys.argv[1])
        call = channel.unary_stream("/lb.testing.Echo/UnaryStream")(b"x", timeout=1000)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            next(call)
        except KeyboardInterrupt:
            print("interrupted")
        channel.close()
        deadline = time.monotonic() + 60
        while any(t.name == "lb: loop" for t in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.01)
        print([t.name for t in threading.enumerate() if t.name.startswith("lb")])
    """
    assert run(code, server.address) == ["interrupted", "[]"]


# ---- forks ----

FORK = """
    import os, sys, warnings, lb
    warnings.simplefilter("ignore")  # Python 3.12 warns of every fork beside threads
    address, use = sys.argv[1:]
    channel = lb.sync.channel("static:///" + address)
    method = "/lb.testing.Echo/UnaryUnary"
    if use == "used":
        assert channel.unary_unary(method)(b"x", timeout=20) == b"x"
    child = os.fork()
    if not child:
        for call in (
            lambda: channel.unary_unary(method)(b"x", timeout=20),
            lambda: channel.unary_unary(method).future(b"x", timeout=20).result(),
            lambda: list(channel.unary_stream("/lb.testing.Echo/UnaryStream")(b"x", timeout=20)),
            lambda: lb.sync.channel("static:///" + address).unary_unary(method)(b"x", timeout=20),
        ):
            try:
                print(call(), flush=True)
            except (ValueError, RuntimeError) as error:
                print(type(error).__name__, "forked" in str(error), flush=True)
        channel.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert channel.unary_unary(method)(b"x", timeout=20) == b"x"
    print("parent")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told(server: Server) -> None:
    """The child gets an error, for the old channel and for new ones; the parent goes on."""
    # Core's own handlers are kept out: they crash a child now and then, grpcio's own channels alike.
    lines = run(FORK, server.address, "used", GRPC_ENABLE_FORK_SUPPORT="0")
    assert lines == ["ValueError True", "ValueError True", "ValueError True", "RuntimeError True", "parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_parent_that_used_none(server: Server) -> None:
    """A channel that is made and not used works on both sides."""
    lines = run(FORK, server.address, "made", GRPC_ENABLE_FORK_SUPPORT="0")
    assert lines == ["b'x'", "b'x'", "[b'x', b'x', b'x']", "b'x'", "parent"]


FORKS = """
    import os, queue, sys, warnings, lb
    warnings.simplefilter("ignore")  # as above
    address, left = sys.argv[1:]
    unary, stream = "/lb.testing.Echo/UnaryUnary", "/lb.testing.Echo/StreamStream"

    def make():
        return lb.sync.channel("static:///" + address)

    def call(channel):
        try:
            return channel.unary_unary(unary)(b"x", timeout=20).decode()
        except (ValueError, RuntimeError) as error:
            return str(error)

    used = make()
    assert call(used) == "x"
    if left == "closed":
        used.close()
    elif left == "running":
        more = queue.SimpleQueue()
        answers = used.stream_stream(stream)(iter(more.get, None), timeout=60)
        more.put(b"1")
        assert next(answers) == b"1"
    for _ in range(3):
        child = os.fork()
        if not child:
            new = []
            try:
                new.append(make())
                print(call(used), "|", call(new[0]), flush=True)
            except RuntimeError as error:
                print(call(used), "|", error, flush=True)
            for channel in new:
                channel.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        if left != "closed":
            assert call(used) == "x"
    if left == "running":
        more.put(b"2")
        more.put(None)
        assert list(answers) == [b"2"]
    print("parent")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_new_channel_after_a_fork_while_no_call_runs(server: Server) -> None:
    """It works in the child. The one that was used says that it is the parent's, and goes on there."""
    lines = run(FORKS, server.address, "open")
    assert lines == [f"Cannot invoke RPC: {fork.LEFT} | x"] * 3 + ["parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_new_channel_after_a_fork_with_all_closed(server: Server) -> None:
    """It works in the child."""
    lines = run(FORKS, server.address, "closed")
    assert lines == ["Cannot invoke RPC on closed channel! | x"] * 3 + ["parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_new_channel_after_a_fork_while_a_call_runs(server: Server) -> None:
    """An error in the child, for both; the call goes on in the parent."""
    # Core's own handlers are kept out: they crash a child now and then, grpcio's own channels alike.
    lines = run(FORKS, server.address, "running", GRPC_ENABLE_FORK_SUPPORT="0")
    assert lines == [f"Cannot invoke RPC: {fork.FORKED} | {fork.FORKED}"] * 3 + ["parent"]


FORKS_BESIDE_A_CALL = """
    import os, sys, threading, time, warnings, grpc, lb
    warnings.simplefilter("ignore")  # as above
    channel = lb.sync.channel("static:///" + sys.argv[1])
    unary, stream = "/lb.testing.Echo/UnaryUnary", "/lb.testing.Echo/UnaryStream"
    grpc.channel_ready_future(channel).result(20)
    answers, again = [], []

    def held():
        answer, ended = channel.unary_unary(unary).with_call(b"x", metadata=[("what", "held")])
        answers.append(answer)
        again.extend(lb.attempts(ended)[1:])

    call = threading.Thread(target=held)
    call.start()
    while not channel.snapshot().endpoints[0].in_flight:
        time.sleep(0.001)
    ends = []
    for turn in range(20):
        child = os.fork()
        if not child:
            time.sleep(0.2)  # in which core's own threads begin there
            try:
                lb.sync.channel("static:///" + sys.argv[1])
            except RuntimeError:
                os._exit(0)
            os._exit(3)
        ends.append(os.waitpid(child, 0)[1])
        named = {"timeout": 20, "metadata": [("what", str(turn))]}
        answer, call_ended = channel.unary_unary(unary).with_call(b"x", **named)
        assert answer == b"x"
        answered = channel.unary_stream(stream)(b"x", **named)
        assert list(answered)
        again += [attempt for ended in (call_ended, answered) for attempt in lb.attempts(ended)[1:]]
    print(ends, answers, again)
    channel.unary_unary(unary)(b"x", timeout=20, metadata=[("what", "last")])
    call.join()
    print(answers, again)
    channel.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_live_that_are_forked_while_a_blocking_call_runs(server: Server) -> None:
    """As with grpcio's own channel; a new channel is refused there. In the parent the call and later ones go on.

    Each call reaches the server once.
    """
    came: list[str] = []

    def until_the_last(context: Any) -> None:
        came.append(str(dict(context.invocation_metadata())["what"]))
        if came[-1] == "held":
            eventually(lambda: "last" in came, "the last call after all forks", within_s=120)

    server.always = until_the_last
    printed = run(FORKS_BESIDE_A_CALL, server.address)
    turns = [str(turn) for turn in range(20) for _ in ("unary", "stream")]
    assert (printed, came) == ([f"{[0] * 20} [] []", "[b'x'] []"], ["held", *turns, "last"])


FORKS_OFTEN = """
    import asyncio, gc, os, sys, warnings, lb
    warnings.simplefilter("ignore")  # as above

    def timers():
        gc.collect()
        return sum(isinstance(found, asyncio.TimerHandle) and not found.cancelled() for found in gc.get_objects())

    channel = lb.sync.channel("static:///" + sys.argv[1], connection=lb.Connection(idle_s=600))
    call = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
    before = 0
    for turn in range(16):
        assert call(b"x", timeout=20) == b"x"
        before = before or timers()
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert call(b"x", timeout=20) == b"x"
    print(timers() - before < 8 or timers())
    channel.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_who_forks_often_is_looked_after_once(server: Server) -> None:
    """Each fork puts the channel to sleep: one timer watches for idleness, however often it woke up."""
    assert run(FORKS_OFTEN, server.address) == ["True"]


# ---- asyncio beside it ----


def test_both_kinds_of_channel_in_one_process(server: Server) -> None:
    """A loop of the user's own with an `lb.aio` channel runs beside the background loop."""
    with channel_to(server) as channel:
        ready(channel, 1)

        async def main() -> list[bytes]:
            async with lb.aio.channel(f"static:///{server.address}") as other:
                calls = [other.unary_unary(UU.method)(b"%d" % i) for i in range(50)]
                threads = [asyncio.to_thread(lambda: UU.finish(UU.start(channel))) for _ in range(10)]
                assert await asyncio.gather(*threads) == [UU.echo()] * 10
                return [await call for call in calls]

        # In a thread: the tests' own loop must not be replaced.
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(asyncio.run(main())))
        thread.start()
        thread.join(HANGS_S)
        assert answers == [[b"%d" % i for i in range(50)]]
        assert US.run(channel) == US.echo()


def test_a_blocking_call_inside_a_loop(server: Server) -> None:
    """It blocks that loop, as in grpcio, and works."""
    with channel_to(server) as channel:

        async def main() -> list[bytes]:
            return UU.run(channel)

        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(asyncio.run(main())))
        thread.start()
        thread.join(HANGS_S)
        assert answers == [UU.echo()]


def test_grpcios_race_is_not_told(caplog: Any) -> None:
    """Loops that share grpcio's socket find it empty now and then: ours says nothing of it, but of all else."""

    class Handle:
        def __repr__(self) -> str:
            return "<Handle PollerCompletionQueue._handle_events(...)>"

    class Loop:
        told = 0

        def default_exception_handler(self, context: Any) -> None:
            self.told += 1

    other: Any = Loop()
    on_exception = doors.on_exception()
    on_exception(other, {"exception": BlockingIOError(), "handle": Handle()})
    assert other.told == 0
    on_exception(other, {"exception": LookupError(), "handle": Handle()})
    on_exception(other, {"exception": BlockingIOError(), "handle": "<Handle other>"})
    assert other.told == 2
