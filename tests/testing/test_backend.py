"""The scripted backend itself, over a plain channel of grpcio's: other tests believe what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lb.core.outcome import PUSHBACK_KEY
from lb.testing import Backend
from lb.testing.backend import (
    METHODS,
    NAME_KEY,
    Gate,
    answered_by,
    echo,
    fail,
    hang,
    hold,
    pushback,
)
from tests.aio.conftest import Fleet
from tests.aio.kit import HANGS_S, KINDS, REQUESTS, SS, SU, US, UU, Kind, failure


@pytest.fixture
async def plain(backend: Backend) -> AsyncIterator[Any]:
    """Grpcio's own channel to it."""
    async with grpc.aio.insecure_channel(backend.address) as channel:
        yield channel


async def test_it_echoes_and_notes(backend: Backend, plain: Any, kind: Kind) -> None:
    """The answer, its name, and everything about the call."""
    call = kind.start(plain, timeout=30, metadata=(("x-user", "7"),))
    assert await kind.responses(call) == kind.echo()
    assert answered_by(await call.trailing_metadata()) == "a"
    (received,) = backend.received
    assert received.method == kind.method
    assert received.messages == kind.sent()
    assert received.metadata["x-user"] == "7"
    assert received.timeout_s is not None
    assert 25 < received.timeout_s <= 30.1
    assert received.half_closed
    assert received.ended
    assert not received.cancelled
    assert received.peer.startswith("ipv4:127.0.0.1:")
    assert backend.in_flight == 0
    assert backend.methods == [kind.method]
    assert tuple(await call.initial_metadata()) == ()


async def test_a_script_is_used_up_step_by_step(backend: Backend, plain: Any, kind: Kind) -> None:
    """One step a call, then ``always``, then the echo."""
    backend.script(fail(details="first"), fail(grpc.StatusCode.NOT_FOUND))
    backend.script(echo(trailing_metadata=(("x-third", "1"),)))
    backend.always(fail(grpc.StatusCode.ABORTED))
    quiet = () if kind.streams_requests else REQUESTS
    assert (await failure(kind.start(plain, quiet))).details() == "first"
    assert (await failure(kind.start(plain, quiet))).code() is grpc.StatusCode.NOT_FOUND
    call = kind.start(plain)
    assert await kind.responses(call) == kind.echo()
    assert (await call.trailing_metadata())["x-third"] == "1"
    for _ in range(2):
        assert (await failure(kind.start(plain, quiet))).code() is grpc.StatusCode.ABORTED
    backend.always(None)
    assert await kind.run(plain) == kind.echo()


async def test_a_refusal_carries_its_push_back(backend: Backend, plain: Any) -> None:
    """As given, and the backend's name; core makes one that it can not read a number far below 0."""
    for value in (0, 250, -1, "soon"):
        backend.script(pushback(value))
        error = await failure(UU.start(plain))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        trailers = error.trailing_metadata()
        assert trailers is not None
        if isinstance(value, int):
            assert trailers[PUSHBACK_KEY] == str(value)
        else:
            assert int(trailers[PUSHBACK_KEY]) < 0
        assert trailers[NAME_KEY] == "a"


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_failure_after_some_messages(backend: Backend, plain: Any, after: int) -> None:
    """So many responses first, where responses stream; so many requests read, where these do."""
    for kind in (US, SS):
        backend.script(fail(after=after))
        call = kind.start(plain, REQUESTS[: max(after, 1)])
        for _ in range(after):
            assert await call.read() in REQUESTS
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    backend.script(fail(after=after))
    await failure(SU.start(plain, REQUESTS[:after]))
    assert len(backend.received[-1].messages) == after


async def test_headers_come_early_only_where_asked_for(backend: Backend, plain: Any) -> None:
    """Before the gate, also when they are empty; else with the answer."""
    gate = Gate()
    for step in (echo(headers=True), echo(initial_metadata=(("x-head", "1"),))):
        backend.script(hold(gate, step))
        call = US.start(plain)
        async with asyncio.timeout(HANGS_S):
            headers = tuple(await call.initial_metadata())
        assert ("x-head", "1") in headers or step.headers
        call.cancel()
    backend.script(hold(gate))
    call = US.start(plain)
    await backend.until(lambda: len(backend.received) == 3)
    asking = asyncio.ensure_future(call.initial_metadata())
    await asyncio.wait([asking], timeout=0.05)
    assert not asking.done()
    gate.open()
    await asking
    assert await US.responses(call) == US.echo()


async def test_a_gate_holds_many_and_stays_open(backend: Backend, plain: Any, kind: Kind) -> None:
    """All of them go on at once; who comes later does not wait."""
    gate = Gate()
    backend.always(hold(gate))
    calls = [kind.start(plain) for _ in range(3)]
    await backend.until(lambda: backend.in_flight == 3)
    assert "shut" in repr(gate)
    gate.open()
    assert [await kind.responses(call) for call in calls] == [kind.echo()] * 3
    assert await kind.run(plain) == kind.echo()
    assert "open" in repr(gate)


async def test_a_cancelled_call_is_noted(backend: Backend, plain: Any, kind: Kind) -> None:
    """It is no longer in flight."""
    backend.always(hang())
    call = kind.start(plain)
    await backend.until(lambda: backend.in_flight == 1)
    call.cancel()
    await backend.until(lambda: backend.in_flight == 0)
    assert backend.received[0].cancelled
    assert backend.received[0].ended


async def test_until_gives_up(backend: Backend) -> None:
    """``TimeoutError`` that shows the backend's state."""
    with pytest.raises(TimeoutError, match=r"not true within 0.01 s: <Backend a .* up received=0 in_flight=0>"):
        await backend.until(lambda: False, within_s=0.01)


async def test_stop_cuts_calls_off_and_start_takes_the_same_port(backend: Backend, plain: Any) -> None:
    """Records and script are kept."""
    backend.script(hang())
    address = backend.address
    call = UU.start(plain)
    await backend.until(lambda: backend.in_flight == 1)
    await backend.stop()
    await backend.stop()
    assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE
    assert "down" in repr(backend)
    await backend.start()
    await backend.start()
    assert backend.address == address
    assert await UU.start(plain, wait_for_ready=True, timeout=HANGS_S) == b"one"
    assert len(backend.received) == 2
    assert backend.in_flight == 0


async def test_stop_with_grace_lets_calls_end(backend: Backend, plain: Any) -> None:
    """The one that is running."""
    gate = Gate()
    backend.script(hold(gate))
    call = UU.start(plain)
    await backend.until(lambda: backend.in_flight == 1)
    stopping = asyncio.ensure_future(backend.stop(10))
    gate.open()
    assert await call == b"one"
    await stopping


async def test_a_taken_port_is_an_error(backend: Backend, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """No port is shared between two, silently."""
    monkeypatch.setattr("lb.testing.backend._REBIND_S", 0.05)  # how long a port may take to be set free
    (other,) = await fleet(1)
    assert other.address != backend.address
    third = Backend(port=int(backend.address.rpartition(":")[2]))
    with pytest.raises(RuntimeError):
        await third.start()


async def test_an_unknown_method_is_noted(backend: Backend, plain: Any) -> None:
    """UNIMPLEMENTED for the caller, and its name in ``unknown``."""
    error = await failure(plain.unary_unary("/x.Y/Z")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert backend.unknown == ["/x.Y/Z"]
    assert backend.received == []


async def test_how_many_copies(fleet: Fleet) -> None:
    """Of a stream of responses to one request; none as well."""
    (backend,) = await fleet(1, copies=0)
    async with grpc.aio.insecure_channel(backend.address) as channel:
        assert await US.run(channel) == []
        backend.copies = 5
        assert await US.run(channel) == [b"one"] * 5


def test_who_answered() -> None:
    """The name from the trailing metadata; empty for others'."""
    assert answered_by(((NAME_KEY, "a"),)) == "a"
    assert answered_by((("x", "y"),)) == ""
    assert answered_by(None) == ""
    assert tuple(kind.method for kind in KINDS) == METHODS


# ---- servicers of a user's own ----


class Counting:
    """A servicer of four methods over plain numbers: doubles, counts up, sums, doubles each."""

    async def double(self, request: int, context: Any) -> int:
        """One number for one."""
        return 2 * request

    async def count(self, request: int, context: Any) -> AsyncIterator[int]:
        """Many for one."""
        for number in range(request):
            yield number

    async def total(self, requests: AsyncIterator[int], context: Any) -> int:
        """One for many."""
        return sum([number async for number in requests])

    async def doubles(self, requests: AsyncIterator[int], context: Any) -> AsyncIterator[int]:
        """Many for many."""
        async for number in requests:
            yield 2 * number

    def missing(self, request: int, context: Any) -> int:
        """As a generated base class has it."""
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError


def add_counting(server: grpc.aio.Server) -> None:
    """As generated code adds a servicer."""
    servicer = Counting()
    how: Any = {"request_deserializer": int, "response_serializer": lambda number: str(number).encode()}
    handlers = {
        "Double": grpc.unary_unary_rpc_method_handler(servicer.double, **how),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.count, **how),
        "Total": grpc.stream_unary_rpc_method_handler(servicer.total, **how),
        "Doubles": grpc.stream_stream_rpc_method_handler(servicer.doubles, **how),
        "Missing": grpc.unary_unary_rpc_method_handler(servicer.missing, **how),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Counting", handlers)])


COUNTING = [
    ("unary_unary", "Double", [2], [b"4"]),
    ("unary_stream", "Count", [3], [b"0", b"1", b"2"]),
    ("stream_unary", "Total", [1, 2, 3], [b"6"]),
    ("stream_stream", "Doubles", [1, 2, 3], [b"2", b"4", b"6"]),
]


def start(channel: Any, kind: str, method: str, requests: list[int]) -> Any:
    """A call of one of its methods."""
    stub = getattr(channel, kind)(f"/test.Counting/{method}", request_serializer=lambda n: str(n).encode())
    return stub(iter(requests) if kind.startswith("stream") else requests[0], timeout=HANGS_S)


async def answers(call: Any) -> list[bytes]:
    """What a call brings."""
    return [answer async for answer in call] if hasattr(call, "__aiter__") else [await call]


@pytest.mark.parametrize(("kind", "method", "requests", "expected"), COUNTING, ids=[row[0] for row in COUNTING])
async def test_servicers_of_ones_own(kind: str, method: str, requests: list[int], expected: list[bytes]) -> None:
    """They answer beside the echo, after the script, and what they were asked is noted as they take it."""
    async with Backend("a", add=add_counting) as backend, grpc.aio.insecure_channel(backend.address) as channel:
        # All requests are read first: grpcio's client makes an error of its own of one that it cannot write.
        after = 3 if kind.startswith("stream") else 0
        backend.script(fail(grpc.StatusCode.ABORTED, "not now", after=after, trailing_metadata=(("x-why", "script"),)))
        error = await failure(start(channel, kind, method, requests))
        assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "not now")
        assert dict(tuple(error.trailing_metadata() or ()))["x-why"] == "script"
        call = start(channel, kind, method, requests)
        assert await answers(call) == expected
        assert answered_by(await call.trailing_metadata()) == "a"
        received = backend.received[-1]
        assert (received.method, received.messages) == (f"/test.Counting/{method}", requests)
        assert received.half_closed
        await backend.until(lambda: received.ended and not backend.in_flight)
        assert await UU.run(channel) == UU.echo()
        await backend.stop()
        await backend.start()
        assert await answers(start(channel, kind, method, requests)) == expected


async def test_a_servicers_stream_breaks_off() -> None:
    """``after`` counts the responses that are sent; a call that hangs is cancelled at the servicer, too."""
    async with Backend(add=add_counting) as backend, grpc.aio.insecure_channel(backend.address) as channel:
        backend.script(fail(after=2), hang(after=1))
        call = start(channel, "unary_stream", "Count", [5])
        assert [await call.read(), await call.read()] == [b"0", b"1"]
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        call = start(channel, "stream_stream", "Doubles", [1, 2])
        assert await call.read() == b"2"
        call.cancel()
        await backend.until(lambda: backend.received[-1].cancelled)


async def test_what_a_servicer_leaves_unimplemented() -> None:
    """A method that its generated base class has is answered as that answers it."""
    async with Backend(add=add_counting) as backend, grpc.aio.insecure_channel(backend.address) as channel:
        error = await failure(start(channel, "unary_unary", "Missing", [1]))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
