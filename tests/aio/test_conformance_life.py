"""From making a channel to forgetting it, in all worlds: loops, forks, closing, the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
import weakref
from typing import Any

import grpc
import pytest

import lb
from lb.shared import fork
from lb.testing.backend import UNARY_UNARY, Backend, Gate, hang, hold
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, NO_BREAKER, REQUESTS, UU, Kind, eventually, lb_tasks, target
from tests.aio.worlds import Side, World
from tests.support.releases import since

# ---- closing ----


async def test_close_lets_calls_end_within_the_grace(side: Side, fleet: Fleet, kind: Kind) -> None:
    """The running call ends well; new ones are refused meanwhile; closing returns with the last call."""
    since(side.ours, 1, 83)
    gate = Gate()
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hold(gate))
    channel = side.to(backends)
    call = kind.start(channel)
    await eventually(lambda: any(backend.in_flight for backend in backends))
    closing = asyncio.ensure_future(channel.close(grace=30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        kind.start(channel)
    assert not closing.done()
    gate.open()
    async with asyncio.timeout(HANGS_S):
        assert await kind.responses(call) == kind.echo()
        await closing
    assert await call.code() is grpc.StatusCode.OK
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


@pytest.mark.parametrize("grace", [None, 0, 0.05], ids=str)
async def test_close_cancels_what_is_left(side: Side, fleet: Fleet, kind: Kind, grace: float | None) -> None:
    """Calls end with CANCELLED, at the server too; nobody waits longer than the grace."""
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hang())
    channel = side.to(backends)
    call = kind.start(channel)
    await eventually(lambda: any(backend.in_flight for backend in backends))
    async with asyncio.timeout(HANGS_S):
        await channel.close(grace)
    assert call.done()
    assert call.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await kind.responses(call)
    await eventually(lambda: not any(backend.in_flight for backend in backends), "the servers were told")


@pytest.mark.parametrize("grace", [-1, -0.5], ids=str)
async def test_a_negative_grace(world: World, grace: float) -> None:
    """``ValueError``; the channel goes on."""
    since(world.side.ours, 1, 83)
    with pytest.raises(ValueError, match="grace must be non-negative"):
        await world.channel.close(grace)
    assert await UU.run(world.channel) == UU.echo()


@pytest.mark.parametrize("grace", ["1", object()], ids=["text", "object"])
async def test_a_grace_that_is_no_number(side: Side, fleet: Fleet, grace: Any) -> None:
    """``TypeError``."""
    since(side.ours, 1, 83)
    channel = side.to(await fleet(side.backends))
    with pytest.raises(TypeError):
        await channel.close(grace)
    await channel.close()


async def test_use_after_close(world: World) -> None:
    """``UsageError`` from each kind of call, old stubs and new ones; closing again does nothing."""
    stubs = [(kind, kind.stub(world.channel)) for kind in KINDS]
    await UU.run(world.channel)
    await world.channel.close()
    await world.channel.close(5)
    async with world.channel as channel:
        for kind, stub in stubs:
            for made in (stub, kind.stub(channel)):
                with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
                    made(iter(REQUESTS) if kind.streams_requests else REQUESTS[0])


async def test_an_error_in_the_block_closes_the_channel_and_comes_out(side: Side, fleet: Fleet) -> None:
    """``async with`` swallows nothing."""
    channel = side.to(await fleet(side.backends))
    calls = []

    async def use() -> None:
        async with channel:
            calls.append(UU.start(channel))
            raise LookupError

    with pytest.raises(LookupError):
        await use()
    assert calls[0].cancelled()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_two_channels_do_not_touch_each_other(side: Side, fleet: Fleet) -> None:
    """Closing one leaves the other's calls alone."""
    gate = Gate()
    backends = await fleet(side.backends)
    for backend in backends:
        backend.always(hold(gate))
    async with side.to(backends) as one:
        async with side.to(backends) as other:
            mine, theirs = UU.start(one), UU.start(other)
            await eventually(lambda: sum(backend.in_flight for backend in backends) == 2)
        assert theirs.cancelled()
        assert not mine.done()
        gate.open()
        assert await mine == b"one"


# ---- forgetting ----


async def test_a_forgotten_channel_leaves_nothing(side: Side, fleet: Fleet) -> None:
    """No warning, no task; the connections end."""
    backends = await fleet(side.backends)
    before = asyncio.all_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channel = side.to(backends)
        assert await UU.run(channel) == UU.echo()
        gone = weakref.ref(channel)
        del channel
        await eventually(lambda: gc.collect() >= 0 and gone() is None and not lb_tasks(), "it is gone")
    # The server's own are named by the method, which has "lb" in it, too.
    assert not [task for task in asyncio.all_tasks() - before if task.get_name().startswith("lb")]


async def test_an_unused_channel_is_forgotten_quietly(side: Side) -> None:
    """Never connected, never closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channel = side.make("127.0.0.1:1")
        gone = weakref.ref(channel)
        del channel
        await eventually(lambda: gc.collect() >= 0 and gone() is None, "it is gone")


async def test_a_stub_keeps_its_channel(side: Side, fleet: Fleet, kind: Kind) -> None:
    """A stub is enough to go on, though nobody holds the channel."""
    stub = kind.stub(side.to(await fleet(side.backends)))
    gc.collect()
    call = stub(iter(REQUESTS) if kind.streams_requests else REQUESTS[0])
    gc.collect()
    assert await kind.responses(call) == kind.echo()
    await stub._references[0].close()


# ---- copies and names ----


async def test_a_channel_is_no_value(world: World) -> None:
    """It can not be pickled, and neither can a call; it is a key of a dictionary."""
    call = UU.start(world.channel)
    await call
    for thing in (world.channel, call):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(thing)
    assert {world.channel: 1}[world.channel] == 1
    assert world.channel == world.channel
    assert isinstance(world.channel, grpc.aio.Channel)


async def test_the_words_for_a_call(world: World, kind: Kind) -> None:
    """A running call has an address, an ended one its status and words."""
    call = kind.start(world.channel)
    assert str(call) == repr(call)
    await kind.responses(call)
    assert await call.code() is grpc.StatusCode.OK
    assert "of RPC that terminated with:" in repr(call)
    assert "StatusCode.OK" in repr(call)
    assert isinstance(
        call, (grpc.aio.UnaryUnaryCall, grpc.aio.UnaryStreamCall, grpc.aio.StreamUnaryCall, grpc.aio.StreamStreamCall)
    )


# ---- event loops ----

MADE_WITHOUT_A_LOOP = """
import asyncio, grpc, lb
{loop}
channel = {channel}
echo = channel.unary_unary("/lb.testing.Echo/UnaryUnary")

async def main():
    answer = await echo(b"x", timeout=30)
    await channel.close()
    return answer

print({run})
"""


_SLOW = re.compile(r"^Executing <.* took [0-9.]+ seconds\n", re.MULTILINE)
"""What asyncio says in its debug mode on a machine that is busy."""


async def run_script(text: str, **environment: str) -> tuple[str, str]:
    """What a script prints, and what it complains of. Raises when it fails or hangs."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", text],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GRPC_VERBOSITY": "NONE", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip(), _SLOW.sub("", done.stderr)


@pytest.mark.parametrize("ours", [False, True], ids=["grpcio", "lb"])
async def test_made_at_import_time(backend: Backend, ours: bool) -> None:
    """While no loop runs; it works in the loop that first uses it, and leaves no complaint."""
    text = MADE_WITHOUT_A_LOOP.format(
        loop="loop = asyncio.new_event_loop(); asyncio.set_event_loop(loop)",
        channel=Side("", ours, 1).code([backend]),
        run="loop.run_until_complete(main()), loop.close()",
    )
    assert await run_script(text) == ("b'x' None", "")


async def test_made_at_import_time_and_used_by_asyncio_run(backend: Backend) -> None:
    """Grpcio's own is bound to another loop by then; ours is not bound to any."""
    channel = Side("", True, 1).code([backend])
    text = MADE_WITHOUT_A_LOOP.format(loop="", channel=channel, run="asyncio.run(main())")
    assert await run_script(text) == ("b'x'", "")


NO_ADDRESS = """
import asyncio, grpc, lb

class Knows:
    def __init__(self, address):
        self.endpoint = lb.Endpoint(address)

    def start(self, listener):
        listener.update(lb.Resolution((self.endpoint,)))

    def close(self):
        pass

async def main():
    async with {channel} as channel:
        channel.get_state(try_to_connect=True)
        try:
            await channel.unary_unary("/lb.testing.Echo/UnaryUnary")(b"x", timeout=30)
        except grpc.aio.AioRpcError:
            print("failed")

asyncio.run(main())
"""


@pytest.mark.parametrize("text", ["unix:", "ipv4:foo", "dns:///", "foo/bar"])
@pytest.mark.parametrize(
    "make", ["grpc.aio.insecure_channel({!r})", "lb.aio.channel(Knows({!r}))"], ids=["grpcio", "lb"]
)
async def test_the_process_ends_after_an_address_that_is_none(text: str, make: str) -> None:
    """Nothing is left in core that the end of the process would wait for. (Ours has it from a resolver.)"""
    out, _ = await run_script(NO_ADDRESS.format(channel=make.format(text)))
    assert out == "failed"


USED_TWICE = """
import asyncio, grpc, lb
channel = {channel}
echo = channel.unary_unary("/lb.testing.Echo/UnaryUnary")

async def main():
    async with asyncio.timeout(30):
        return await echo(b"x")

print(asyncio.run(main()))
try:
    print(asyncio.run(main()))
except grpc.aio.UsageError as error:
    print(error)
"""


async def test_asyncio_run_twice_with_one_channel(backend: Backend) -> None:
    """A clear error at the second, and never a hang."""
    out, complaints = await run_script(USED_TWICE.format(channel=Side("", True, 1).code([backend])))
    first, second = out.splitlines()
    assert first == "b'x'"
    assert second.startswith("channel static:///")
    assert "make one channel per event loop" in second
    assert "Traceback" not in complaints


async def test_a_channel_in_each_of_many_loops(side: Side, fleet: Fleet) -> None:
    """One after another in threads, each with a channel of its own."""
    backends = await fleet(side.backends)

    def elsewhere() -> bytes:
        async def use() -> bytes:
            async with side.to(backends) as channel:
                answer: bytes = await channel.unary_unary(UNARY_UNARY)(b"x", timeout=HANGS_S)
                return answer

        return asyncio.run(use())

    for _ in range(3):
        assert await asyncio.to_thread(elsewhere) == b"x"


async def test_another_loop_is_told_at_once(backend: Backend, kind: Kind) -> None:
    """Calls and watches from a second loop: a clear error; the first loop's channel goes on."""
    async with lb.aio.channel(target(backend), breaker=NO_BREAKER) as channel:
        assert await kind.run(channel) == kind.echo()

        def elsewhere() -> list[str]:
            async def use() -> list[str]:
                said = []
                for way in (lambda: kind.start(channel), lambda: channel.get_state(try_to_connect=True)):
                    with pytest.raises(grpc.aio.UsageError) as raised:
                        way()
                    said.append(str(raised.value))
                return said

            return asyncio.run(use())

        said = await asyncio.to_thread(elsewhere)
        assert all("make one channel per event loop" in words for words in said)
        assert await kind.run(channel) == kind.echo()


async def test_uvloop(backend: Backend) -> None:
    """Any event loop will do."""
    pytest.importorskip("uvloop", reason="needs the package uvloop")
    text = MADE_WITHOUT_A_LOOP.replace("import asyncio,", "import asyncio, uvloop,")
    text = text.format(loop="", channel=Side("", True, 1).code([backend]), run="uvloop.run(main())")
    assert (await run_script(text))[0] == "b'x'"


# ---- forks ----

FORKED = """
import asyncio, grpc, lb, os, signal
address = {address!r}
module_level = lb.aio.channel("static:///" + address)

async def use(channel):
    async with asyncio.timeout(30):
        return await channel.unary_unary("/lb.testing.Echo/UnaryUnary")(b"x")

async def parent():
    channel = lb.aio.channel("static:///" + address)
    print("parent", await use(channel), flush=True)
    if {inside}:
        child = fork(channel)
    else:
        child = None
    return channel, child

def say(name, function):
    try:
        print(name, function(), flush=True)
    except grpc.aio.UsageError as error:
        print(name, "UsageError", "this process was forked while" in str(error), flush=True)

def fork(channel):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        if channel is not None:
            say("old", lambda: asyncio.run(use(channel)))
            say("state", lambda: channel.get_state().name)
        say("module", lambda: asyncio.run(use(module_level)))
        say("new", lambda: asyncio.run(use(lb.aio.channel("static:///" + address))))
        os._exit(0)
    return pid

channel, child = asyncio.run(parent()) if {used} else (None, None)
child = fork(channel) if child is None else child
print("status", os.waitpid(child, 0)[1], flush=True)
if channel is not None:
    asyncio.run(channel.close())
"""
# Core's own threads crash a child now and then, whoever made the channel; so it does not start them there.
QUIET = {"GRPC_ENABLE_FORK_SUPPORT": "0"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("inside", [False, True], ids=["between loops", "inside the loop"])
async def test_a_forked_child_is_told(backend: Backend, inside: bool) -> None:
    """Grpcio's thread is not there: every channel says so at once, the parent's, an unused one and a new one."""
    out, _ = await run_script(FORKED.format(address=backend.address, inside=inside, used=True), **QUIET)
    assert out.splitlines() == [
        "parent b'x'",
        "old UsageError True",
        "state SHUTDOWN",
        "module UsageError True",
        "new UsageError True",
        "status 0",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_child_of_a_parent_that_used_none(backend: Backend) -> None:
    """Works like any other process, with a channel of the parent's too."""
    out, _ = await run_script(FORKED.format(address=backend.address, inside=False, used=False), **QUIET)
    assert out.splitlines() == ["module b'x'", "new b'x'", "status 0"]


FORKED_IDLE = """
import asyncio, os, sys, threading, time, warnings, lb
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork beside threads
address, where = os.environ["ADDRESS"], os.environ["WHERE"]

async def use():
    global channel
    channel = lb.aio.channel("static:///" + address)
    return await call()

async def call():
    return await channel.unary_unary("/lb.testing.Echo/UnaryUnary")(b"x", timeout=20)

def fork():
    ends = set()
    for _ in range(20):
        pid = os.fork()
        if not pid:
            time.sleep(0.2)  # in which core's own threads begin there
            os._exit(0)
        ends.add(os.waitpid(pid, 0)[1])
    return ends

async def inside():
    print(await use(), fork(), await call())
    await channel.close()

if where == "inside":
    asyncio.run(inside())
elif where == "after":
    print(asyncio.run(use()), fork())
else:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    def run(what):
        return asyncio.run_coroutine_threadsafe(what, loop).result()
    print(run(use()), fork(), run(call()))
    run(channel.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["inside", "after", "beside"])
async def test_children_live_that_are_forked_while_no_call_runs(backend: Backend, where: str) -> None:
    """Forked in the loop's thread, after the end of the loop, and in another thread; the channel goes on."""
    out, _ = await run_script(FORKED_IDLE, ADDRESS=backend.address, WHERE=where)
    assert out == "b'x' {0}" + ("" if where == "after" else " b'x'")


async def test_grpcios_thread_is_known_by_its_name(backend: Backend) -> None:
    """On it depends what a forked child is told."""
    async with grpc.aio.insecure_channel(backend.address) as channel:
        await UU.run(channel)
        assert any(fork.POLLER in thread.name for thread in threading.enumerate())
    assert not fork.lost()
