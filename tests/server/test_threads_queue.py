"""Calls that wait for a place on a ``grpc.server`` with threads, and those whose time is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

import lb.sync
from lb.core.serving.priority import PRIORITY_KEY
from lb.server import Concurrency, Limits
from lb.server.threads import Admission
from lb.testing import Backend
from lb.testing.backend import hang
from lb.testing.clock import FakeClock
from tests.server.threads_kit import KINDS, WITHIN_S, Breaks, Serving, begin, fixed, serving
from tests.support.wait import eventually, longer

unary = grpc.unary_unary_rpc_method_handler


def queued(limit: int, queue: int = 8, **others: Any) -> Limits:
    """So many at once; others wait, as long as the test lasts."""
    return Limits(concurrency=Concurrency(limit=limit, adaptive=False, queue=queue, queue_s=WITHIN_S), **others)


async def waiting(at: Serving, kind: str = "unary_unary", *, load: float, word: bytes = b"well", **named: Any) -> Any:
    """A call in the queue."""
    call = at.call(kind, word, timeout=WITHIN_S, **named)
    await eventually(lambda: at.admission.load == load, f"a load of {load}")
    return call


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_waits_has_no_thread(kind: str) -> None:
    """It runs when the call before it has ended, in that one's thread, and is answered as any other."""
    with serving(queued(1), threads=1) as at:
        calls = begin(at)
        waits = await waiting(at, kind, load=2.0)
        assert at.admission.in_flight == at.service.calls == 1
        at.service.go.set()
        assert calls[0].result() == b"wait"
        if kind.endswith("stream"):
            assert list(waits) == [b"well"] * (2 if kind == "unary_stream" else 1)
        else:
            assert waits.result() == (b"done" if kind == "stream_unary" else b"well")
        assert at.service.threads == {"lb-calls-0"}
        await at.idle()


@pytest.mark.parametrize("kind", KINDS)
async def test_who_waits_too_long_is_refused_though_no_request_came(kind: str) -> None:
    """The thread that refuses waits for nobody: with push-back, long before the client would say anything."""
    limits = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue_s=0.001))
    with serving(limits, threads=1) as at:
        calls = begin(at)
        made: Any = at.channel.stream_stream(f"/test.Service/{kind}")
        never = threading.Event()

        def requests() -> Iterator[bytes]:
            never.wait(WITHIN_S)
            yield from ()

        call = made(requests(), timeout=WITHIN_S)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in {pair[0] for pair in call.trailing_metadata()}
        never.set()
        assert at.service.calls == 1
        at.service.go.set()
        calls[0].result()
        await at.idle()


async def test_who_is_gone_when_it_is_its_turn_never_runs() -> None:
    """Its place goes to the next."""
    with serving(queued(1), threads=1) as at:
        calls = begin(at)
        last = await waiting(at, load=2.0)
        for load, kind in enumerate(KINDS, 3):
            gone = await waiting(at, kind, load=load, word=b"gone")
            gone.cancel()
        own: Any = at.channel.unary_unary("/grpc.Own/own")
        for _ in range(3):  # behind the last cancellation
            assert own(b"well", timeout=WITHIN_S) == b"well"
        called = at.service.calls
        at.service.go.set()
        calls[0].result()
        assert last.result() == b"well"
        await at.idle()
        assert (at.service.calls - called, at.service.entered) == (1, 0)


async def test_who_never_comes_to_the_pool_leaves_room_in_the_queue() -> None:
    """Another interceptor raises after admission: the next call shows that this one has ended."""
    with serving(queued(1), threads=1, outer=[Breaks()]) as at:
        calls = begin(at)
        assert at.outcome("unary_unary", b"well", metadata=[("break", "")])[0] is grpc.StatusCode.UNKNOWN
        own: Any = at.channel.unary_unary("/grpc.Own/own")
        assert own(b"well", timeout=WITHIN_S) == b"well"
        assert at.admission.load == 1.0
        at.service.go.set()
        calls[0].result()
        await at.idle()


async def test_a_request_that_never_comes_is_told_after_the_wait() -> None:
    """A client that ends its side without a request: UNIMPLEMENTED, as grpcio says it."""
    with serving(queued(1), threads=1) as at:
        calls = begin(at)
        made: Any = at.channel.stream_stream("/test.Service/unary_unary")
        call = made(iter(()), timeout=WITHIN_S)
        await eventually(lambda: at.admission.load == 2.0, "it waits")
        at.service.go.set()
        calls[0].result()
        assert call.code() is grpc.StatusCode.UNIMPLEMENTED
        await at.idle()


async def test_the_important_go_first_and_the_sheddable_are_driven_out() -> None:
    """By the metadata ``lb-priority``. A call that has to make room for another is refused at once."""

    def priority(word: str) -> Any:
        return {"metadata": ((PRIORITY_KEY, word),)}

    with serving(queued(1, 2), threads=1) as at:
        calls = begin(at)
        sheddable = await waiting(at, load=2.0, **priority("sheddable"))
        common = await waiting(at, load=3.0)
        critical = at.call("unary_unary", b"wait", timeout=WITHIN_S, **priority("critical"))
        assert sheddable.code() is grpc.StatusCode.UNAVAILABLE
        assert at.outcome("unary_unary", b"well", **priority("sheddable"))[0] is grpc.StatusCode.UNAVAILABLE
        at.service.go.set()
        order = [critical.result(), common.result(), calls[0].result()]
        assert order == [b"wait", b"well", b"wait"]
        await at.idle()


async def test_a_call_waits_for_the_thread_of_a_stream() -> None:
    """There are places, but each thread has a stream: it runs when one ends."""
    with serving(queued(4), threads=2) as at:
        streams = [at.call("unary_stream", b"first", timeout=WITHIN_S) for _ in range(2)]
        assert [next(stream) for stream in streams] == [b"first"] * 2
        waits = await waiting(at, load=0.25)
        assert at.admission.in_flight == 2
        at.service.go.set()
        assert waits.result() == b"well"
        assert [list(stream) for stream in streams] == [[b"first"]] * 2
        await at.idle()


@pytest.mark.parametrize("timeout", [None, WITHIN_S])
async def test_a_call_ends_in_time_and_its_place_when_the_handler_does(timeout: float | None) -> None:
    """DEADLINE_EXCEEDED, though nobody can stop the handler: it sees that its call is over, and keeps the place."""
    seen: list[bool] = []
    service_go = threading.Event()

    def work(request: bytes, context: Any) -> bytes:
        service_go.wait(WITHIN_S)
        seen.append(context.is_active())
        return request

    with serving(fixed(1, timeout_s=0.01), threads=1, more={"work": unary(work)}) as at:
        call = at.call("unary_unary", b"x", method="work", timeout=timeout)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert call.details() == "the handler took longer than the 0.01 s it may take here"
        assert at.admission.in_flight == 1
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        service_go.set()
        await at.idle()
        assert seen == [False]
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK


@pytest.mark.parametrize("end", ["returns", "raises", "aborts"])
async def test_what_a_handler_does_after_its_time_leads_to_nothing(end: str) -> None:
    """Whatever it is: the status was sent, the server serves on, and stops."""
    go = threading.Event()

    def work(request: bytes, context: Any) -> bytes:
        go.wait(WITHIN_S)
        if end == "raises":
            raise ValueError("late")
        if end == "aborts":
            context.abort(grpc.StatusCode.NOT_FOUND, "late")
        return request

    with serving(fixed(1, timeout_s=0.01), threads=1, more={"work": unary(work)}) as at:
        assert at.outcome("unary_unary", b"x", method="work")[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        go.set()
        await at.idle()
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK


async def test_a_stream_of_requests_ends_with_its_time() -> None:
    """A handler that waits for the next request hears that there is none."""
    with serving(fixed(1, timeout_s=0.01), threads=1) as at:
        never = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"well"
            never.wait(WITHIN_S)

        made: Any = at.channel.stream_stream("/test.Service/stream_stream")
        call = made(requests())
        assert next(call) == b"well"
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await at.idle()
        never.set()


async def test_a_stream_that_waits_for_its_client_ends_with_the_status() -> None:
    """Its time is over while its client does not take a response: once it has, it is told, and the thread is free."""
    large = bytes(3 << 20)  # far more than a connection takes from a stream that nobody reads
    begun = threading.Event()

    def work(request: bytes, context: Any) -> Iterator[bytes]:
        begun.set()
        yield large
        while context.is_active():
            yield b"more"

    more: Any = {"work": grpc.unary_stream_rpc_method_handler(work)}
    received: list[bytes] = []
    for timeout_s in longer(0.005):
        begun.clear()
        with serving(fixed(1, timeout_s=timeout_s), threads=1, more=more) as at:
            stream = at.call("unary_stream", b"x", method="work", timeout=WITHIN_S)
            assert begun.wait(WITHIN_S)
            await eventually(lambda: "limited=0" in repr(at.admission), "its time is over")
            with suppress(grpc.RpcError):
                received.extend(stream)
            assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await at.idle()
        if received:  # else it was over before the first response was sent
            break
    assert received[0] == large


async def test_requests_that_end_with_the_time_are_no_end_of_the_requests() -> None:
    """A handler that adds them up must not take what came for all: it hears that the call is over."""
    heard: list[str] = []

    def add_up(requests: Iterator[bytes], context: Any) -> bytes:
        try:
            heard.extend(request.decode() for request in requests)
            heard.append("all")
        except grpc.RpcError:
            heard.append("over")
        return b"done"

    never = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        never.wait(WITHIN_S)

    more: Any = {"add_up": grpc.stream_unary_rpc_method_handler(add_up)}
    with serving(fixed(1, timeout_s=0.01), threads=1, more=more) as at:
        made: Any = at.channel.stream_stream("/test.Service/add_up")
        assert made(requests()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await at.idle()
        assert heard[-1] == "over"
        never.set()


async def test_a_handler_that_fails_because_of_its_time_is_told_so() -> None:
    """Its own call ends with the deadline, it raises, and the client hears why: not UNKNOWN."""
    async with Backend() as backend:
        backend.always(hang())
        with lb.sync.channel(f"static:///{backend.address}") as channel:

            def forward(request: bytes, context: Any) -> bytes:
                call: Any = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
                answer: bytes = call(request)
                return answer

            with serving(
                fixed(1, timeout_s=0.05), threads=1, inner=[lb.sync.incoming()], more={"work": unary(forward)}
            ) as at:
                call = at.call("unary_unary", b"x", method="work")
                await eventually(call.done)
                assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                await at.idle()


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(
    ("given", "longest", "most"), [(None, 30.0, 30), (90, 30.0, 30), (30, 90.0, 30), (30, None, 30)]
)
async def test_a_handlers_calls_inherit_the_earlier_deadline(
    given: float | None, longest: float | None, most: float, outside: bool
) -> None:
    """The client's or the server's own, whichever interceptor is outside."""
    async with Backend() as backend:
        with lb.sync.channel(f"static:///{backend.address}") as channel:

            def forward(request: bytes, context: Any) -> bytes:
                call: Any = channel.unary_unary("/lb.testing.Echo/UnaryUnary")
                answer: bytes = call(request)
                return answer

            around: Any = {"inner" if outside else "outer": [lb.sync.incoming()]}
            with serving(Limits(timeout_s=longest), more={"work": unary(forward)}, **around) as at:
                call = at.call("unary_unary", b"x", method="work", timeout=given)
                await eventually(call.done)
                assert call.result() == b"x"
        (received,) = backend.received
    assert received.timeout_s is not None
    assert most - 15 < received.timeout_s < most + 0.5


def test_a_pool_that_is_shut_down_ends_its_threads() -> None:
    """Also the one that looks when something is due; and nothing begins afterwards."""
    with serving(queued(1, timeout_s=30.0), threads=1) as at:
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK
        assert any(thread.name == "lb-alarm" for thread in threading.enumerate())
    assert not any(thread.name.startswith("lb-alarm") for thread in threading.enumerate())
    Admission(Limits(timeout_s=1.0), clock=FakeClock()).pool.shutdown()
