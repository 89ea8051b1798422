"""The private parts of grpcio that `lb.aio._grpcio` stands on: when one moves, a test here says which."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc.aio import _call as grpcio_call
from grpc.aio import _channel as grpcio_channel

import lb
from lb.aio.response_stream import ResponseStream
from lb.aio.unary import UnaryCall
from lb.core import words
from lb.testing import Backend
from lb.testing.backend import STREAM_STREAM, STREAM_UNARY, UNARY_STREAM, UNARY_UNARY, fail
from tests.support import doors

STOPPING = """
import asyncio, socket, grpc

async def main():
    for _ in range(50):
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        with socket.create_connection(("127.0.0.1", port)):
            await server.stop(None)
    print("fine")

asyncio.run(main())
"""
BAD_CREDENTIALS = """
import asyncio, grpc, lb
from lb.testing.backend import Backend, UNARY_UNARY

async def main():
    async with Backend() as backend, grpc.aio.insecure_channel(backend.address) as channel:
        for _ in range(10):
            try:
                lb.aio.channel("static:///127.0.0.1:1", credentials="nonsense")
            except TypeError:
                pass
        assert await channel.unary_unary(UNARY_UNARY)(b"x", timeout=30) == b"x"
    print("fine")

asyncio.run(main())
"""


async def test_credentials_of_a_wrong_type_harm_nobody() -> None:
    """A ``TypeError``, and grpcio goes on working: it counts its channels to know when to stop its poller."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", BAD_CREDENTIALS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr[-2000:]
    assert "AssertionError" not in done.stderr


def test_a_server_of_grpcio_stops_while_a_connection_is_silent() -> None:
    """With a release whose core closes its port in a thread that is not made for it, as 1.78's, the process ends."""
    done = subprocess.run([sys.executable, "-c", STOPPING], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr[-2000:]


def test_the_channel_is_a_grpc_channel_for_a_type_checker() -> None:
    """Generated stubs take it without a cast. (Checked by mypy, not here: the ignore must become unused.)"""
    channel: grpc.aio.Channel = lb.aio.channel("static:///127.0.0.1:1")
    assert isinstance(channel, grpc.aio.Channel)


_grpcio = doors.grpcio("aio")


async def test_the_upper_channel_has_what_grpcios_has(backend: Backend) -> None:
    """`UpperChannel` sets by hand what grpcio's constructor would: a new attribute there must be known here."""
    async with grpc.aio.insecure_channel(backend.address) as theirs, lb.aio.channel("static:///127.0.0.1:1") as ours:
        assert set(vars(ours)) == set(vars(theirs)) | {"_active_calls"}  # which those before 1.83 lack


WITHOUT = """
import grpc, grpc._channel, grpc.aio, sys
{before}
grpc.__version__ = "9.9.0"
try:
    import lb.{room}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("room", "before", "what"),
    [
        ("aio", "del grpc.aio._channel._augment_channel_arguments", "grpc.aio._channel._augment_channel_arguments"),
        ("aio", "del grpc.aio._channel.Channel", "module 'grpc.aio._channel' has no attribute 'Channel'"),
        (
            "aio",
            "del grpc.aio._call; sys.modules['grpc.aio._call'] = None",
            "grpc.aio._call",
        ),
        ("sync", "del grpc._channel._RPCState, grpc._common.encode", "grpc._channel._RPCState, grpc._common.encode"),
        ("sync", "del grpc._channel.Channel", "module 'grpc._channel' has no attribute 'Channel'"),
    ],
)
def test_a_newer_grpcio_without_a_private_name(room: str, before: str, what: str) -> None:
    """Importing `lb` says what is missing, which grpcio is there, and which would do."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(room=room, before=before)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(
        f"lb works with grpcio {_grpcio.OLDEST} to {_grpcio.NEWEST}; grpcio 9.9.0 is installed, and lacks"
    )
    assert what in done.stdout
    assert done.stdout.rstrip().endswith(". Install a release in between, or a newer lb.")


def test_the_oldest_release_is_the_floor() -> None:
    """What that message calls the oldest is what pyproject.toml asks for."""
    project = tomllib.loads((Path(lb.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    floors = [one.partition(",")[0] for one in project["dependencies"]]  # single releases may be left out
    assert f"grpcio>={_grpcio.OLDEST}" in floors


def test_the_signatures_that_are_overridden() -> None:
    """``_close(grace)`` and ``_register_call(call)``."""
    for name in ("_close", "_register_call") if _grpcio.TELLS_OF_CALLS else ("_close",):
        theirs = inspect.signature(getattr(grpcio_channel.Channel, name))
        assert list(theirs.parameters) == list(inspect.signature(getattr(_grpcio.UpperChannel, name)).parameters)


async def test_a_unary_call_is_made_as_grpcio_makes_it(backend: Backend) -> None:
    """`UnaryUnary` takes what its base takes, and what its call overrides is what grpcio's has."""
    theirs = grpcio_channel.UnaryUnaryMultiCallable.__call__
    assert list(inspect.signature(theirs).parameters) == list(inspect.signature(_grpcio.UnaryUnary.__call__).parameters)
    async with grpc.aio.insecure_channel(backend.address) as channel:
        stub: Any = channel.unary_unary(UNARY_UNARY)
        call = stub(b"x", timeout=10)
        assert sorted(vars(call)) == sorted(
            f"_{name}"
            for name in (
                *("loop", "cython_call", "metadata", "request_serializer", "response_deserializer"),
                *("request", "context", "invocation_task", "call_response"),
            )
        )
        assert await call == b"x"
    async with lb.aio.channel(backend.address) as channel:
        stub = channel.unary_unary(UNARY_UNARY)
        kinds = set()
        for _ in range(2):  # the first call of a method goes the general way
            call = stub(b"x", timeout=10)
            assert isinstance(call, grpcio_call.UnaryUnaryCall)
            kinds.add(type(call))
            assert await call == b"x"
        assert kinds == {grpcio_call.UnaryUnaryCall, UnaryCall}


async def test_a_unary_callable_has_what_ours_reads() -> None:
    """The attributes of grpcio's multicallable that `UnaryUnary` passes on, and its own."""
    async with lb.aio.channel("static:///127.0.0.1:1") as channel:
        made = channel.unary_unary(UNARY_UNARY)
        assert type(made) is _grpcio.UnaryUnary
        assert " ".join(sorted(vars(made))) == (
            "_channel _interceptors _loop _method _python_channel _references _registered_call_handle"
            " _request_serializer _response_deserializer method registered"
        )


async def test_the_lower_call(backend: Backend) -> None:
    """Its methods take what we give them, and its status and headers are where we look for them."""
    async with grpc.aio.insecure_channel(backend.address) as channel:
        lower = _grpcio.lower(channel)
        call = lower.call(UNARY_UNARY.encode(), None, None, False, 0)
        assert (call._status, call._initial_metadata) == (None, None)
        assert await call.unary_unary(b"x", (("a", "1"),)) == b"x"
        assert call._status.code() == 0
        assert call._status.details() == ""
        assert isinstance(call._status.trailing_metadata(), tuple)
        assert call._initial_metadata == ()
        registered = lower.get_registered_call_handle(UNARY_UNARY.encode())
        assert await lower.call(UNARY_UNARY.encode(), None, None, False, registered).unary_unary(b"y", ()) == b"y"
        ended: list[bool] = []
        stream = ResponseStream(
            lower.call(UNARY_STREAM.encode(), None, None, False, 0), lambda stream: ended.append(stream.done())
        )
        await stream.initiate_unary_stream(b"z", ())
        assert await stream.receive_serialized_message() == b"z"
        stream.cancel("enough")
        assert ended == [True]
        assert stream._status.details() == "enough"


async def test_the_lower_call_of_a_stream_of_requests(backend: Backend) -> None:
    """It says when messages may be sent, in both kinds."""
    async with grpc.aio.insecure_channel(backend.address) as channel:
        lower = _grpcio.lower(channel)
        for method in (STREAM_UNARY, STREAM_STREAM):
            call = lower.call(method.encode(), None, None, False, 0)
            if method == STREAM_STREAM:
                call = ResponseStream(call, lambda _: None)
            sent = asyncio.Event()
            begin = call.stream_unary if method == STREAM_UNARY else call.initiate_stream_stream
            running = asyncio.ensure_future(begin((), sent.set))
            await sent.wait()
            await call.send_serialized_message(b"1")
            await call.send_receive_close()
            answer = await running
            if method == STREAM_STREAM:
                answer = await call.receive_serialized_message()
                assert await call.receive_serialized_message() is _grpcio.EOF
                await call.status()
            assert answer == b"1"


async def test_how_core_words_a_call_without_a_connection(backend: Backend) -> None:
    """The table knows it, and takes no other failure for it."""
    async with grpc.aio.insecure_channel(backend.address) as channel:
        lower = _grpcio.lower(channel)
        backend.script(fail())
        failed = lower.call(UNARY_UNARY.encode(), None, None, False, 0)
        await failed.unary_unary(b"", ())
        assert words.meaning(failed._status.details()) is None
        await backend.stop()
        unsent = lower.call(UNARY_UNARY.encode(), None, None, False, 0)
        while not unsent.done():
            await unsent.unary_unary(b"", ())
        details = unsent._status.details()
        assert words.meaning(details) is words.Meaning.NEVER_CONNECTED, details
        assert words.names(details, backend.address)
