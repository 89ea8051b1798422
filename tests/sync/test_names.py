"""The private parts of grpcio that `lb.sync._grpcio` stands on: when one moves, a test here says which."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import grpc
import pytest
from grpc import _channel as grpcio_channel
from grpc._cython import cygrpc

import lb
from lb.core.balancer import Balancer
from lb.core.call import Call
from lb.sync import blocking, calls, events
from lb.sync.front import Front
from lb.sync.locked import LockedBalancer, LockedCall
from tests.support import doors
from tests.sync.kit import KINDS, UU, Kind, Server, channel_to

_grpcio = doors.grpcio("sync")


def test_the_upper_channel_has_what_grpcios_has() -> None:
    """`UpperChannel` sets by hand what grpcio's constructor would: a new attribute there must be known here."""
    with grpc.insecure_channel("127.0.0.1:1") as theirs, lb.sync.channel("static:///127.0.0.1:1") as ours:
        assert set(vars(doors.upper(ours))) == set(vars(theirs))


def test_the_lower_channel_has_what_grpcios_has() -> None:
    """Whatever the upper layer may ask of a ``cygrpc.Channel`` is there."""
    theirs = {name for name in dir(cygrpc.Channel) if not name.startswith("_")}
    # Asked by grpcio's own fork handlers, with which our channels are not registered; ``target`` by nobody.
    left_out = {"cancel_calls_on_fork", "close_on_fork", "target"}
    assert theirs - left_out <= set(dir(Front))


def test_the_lower_call() -> None:
    """The same for calls and events."""
    for theirs, ours in ((cygrpc.SegregatedCall, calls.LoopCall), (cygrpc.IntegratedCall, calls.LoopCall)):
        assert {name for name in dir(theirs) if not name.startswith("_")} <= set(dir(ours))
    assert {"cancel", "next_event"} <= set(dir(blocking.BlockingCall))
    event = {name for name in dir(cygrpc.BatchOperationEvent) if not name.startswith("_")}
    assert event <= set(dir(events.Event))
    for operation in (
        cygrpc.ReceiveStatusOnClientOperation,
        cygrpc.ReceiveInitialMetadataOperation,
        cygrpc.ReceiveMessageOperation,
        cygrpc.SendMessageOperation,
    ):
        assert {name for name in dir(operation) if not name.startswith("_")} <= set(dir(events.Status))


def test_operations_can_be_read() -> None:
    """Metadata, flags and messages of operations."""
    operation = cygrpc.SendInitialMetadataOperation((("a", "b"),), 0)
    assert _grpcio.metadata_of(operation) == (("a", "b"),)
    assert _grpcio.wait_for_ready(operation) is None
    assert _grpcio.metadata_of(cygrpc.SendInitialMetadataOperation(None, 0)) == ()
    for said in (True, False):
        flags = grpcio_channel._InitialMetadataFlags().with_wait_for_ready(said)
        assert _grpcio.wait_for_ready(cygrpc.SendInitialMetadataOperation(None, flags)) is said
    assert _grpcio.message_of(cygrpc.SendMessageOperation(b"x", 0)) == b"x"


def test_a_blocking_call_is_one_batch(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of a unary call, in the order in which `BlockingCall` reads them."""
    seen: list[Any] = []
    real = Front.segregated_call

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inspect.signature(real).bind(self, *args, **kwargs).arguments["batches"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Front, "segregated_call", spy)
    with channel_to(server) as channel:
        UU.run(channel)
    ((operations, _),) = seen[0]
    assert [operation.type() for operation in operations] == [
        _grpcio.SEND_INITIAL_METADATA,
        _grpcio.SEND_MESSAGE,
        _grpcio.SEND_CLOSE,
        _grpcio.RECEIVE_INITIAL_METADATA,
        _grpcio.RECEIVE_MESSAGE,
        _grpcio.RECEIVE_STATUS,
    ]


def test_arguments_of_the_lower_calls() -> None:
    """What the upper layer hands to a core channel, by position."""
    for name in ("segregated_call", "integrated_call"):
        assert list(inspect.signature(getattr(Front, name)).parameters) == [
            "self", "flags", "method", "host", "deadline", "metadata", "credentials", "batches", "context",
            "registered_call_handle",
        ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_calls_are_grpcios_own(server: Server, kind: Kind) -> None:
    """A user meets the classes of grpcio."""
    with channel_to(server) as channel:
        call = kind.start(channel)
        assert type(call).__module__ == "grpc._channel"
        kind.finish(call)
        assert isinstance(channel, grpc.Channel)


def test_one_connection_for_both_sides(server: Server) -> None:
    """The channel that watches an endpoint and the one that calls it share a connection."""
    peers: set[str] = set()
    server.always = lambda context: peers.add(context.peer())
    with channel_to(server) as channel:
        for _ in range(3):
            UU.run(channel)
            UU.finish(UU.start(channel))
    assert len(peers) == 1


def test_every_public_method_is_locked() -> None:
    """What threads may ask of the core goes through the lock, with the same arguments; a new method there does, too."""
    constant = {"method"}  # a call's name never changes
    before = {"uncounted", "will_send"}  # said before the first attempt by the one thread that carries the call out
    for base, locked in ((Balancer, LockedBalancer), (Call, LockedCall)):
        public = {name: value for name, value in vars(base).items() if not name.startswith("_")}
        for name, value in public.items():
            if name in before:
                continue
            if inspect.isfunction(value):
                assert name in vars(locked), f"{base.__name__}.{name}"
                assert inspect.signature(vars(locked)[name]) == inspect.signature(value), f"{base.__name__}.{name}"
            elif isinstance(value, property) and name not in constant:
                assert name in vars(locked), f"{base.__name__}.{name}"


def test_importing_it_is_cheap() -> None:
    """`lb.sync` adds little to what grpcio and `lb.aio` take, and starts no thread."""
    code = """if True:
        import sys, threading, time
        import lb.aio
        begun = time.process_time()
        import lb.sync
        print(time.process_time() - begun < 0.1, threading.active_count(), "asyncio.subprocess" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[:2] == ["True", "1"]


def test_a_python_without_register_at_fork() -> None:
    """As on Windows: importing works, and nothing watches for forks."""
    # What Python's own modules ask of it is theirs: they are there already.
    code = "import concurrent.futures.thread, grpc.aio, os, random; del os.register_at_fork; import lb; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr[-2000:]
