"""Admission on a ``grpc.server`` with threads: who runs, what a refusal says, and that no place is ever lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lb.server import Concurrency, Limits, Rate
from lb.server.threads import Admission
from lb.testing.clock import FakeClock
from tests.server.threads_kit import ENDS, KINDS, WITHIN_S, Breaks, Service, begin, fixed, serving
from tests.support.wait import eventually


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ENDS)
async def test_a_call_ends_as_without_admission_and_gives_its_place_back(kind: str, word: str) -> None:
    """Of each kind, and however it ends; more often than there are places."""
    codes = {"well": grpc.StatusCode.OK, "raises": grpc.StatusCode.UNKNOWN}
    with serving(fixed(2), threads=2) as at:
        for _ in range(5):
            assert at.outcome(kind, word.encode())[0] is codes.get(word, grpc.StatusCode.DATA_LOSS)
        await at.idle()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_server_refuses_each_kind_at_once(kind: str) -> None:
    """UNAVAILABLE with push-back while every thread is at work; the handler does not run, nor does the call wait."""
    with serving(fixed(2), threads=2) as at:
        calls = begin(at, 2)
        code, trailers = at.outcome(kind, b"well")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert int(trailers["grpc-retry-pushback-ms"]) >= 0
        assert at.service.calls == 2
        at.service.go.set()
        assert [call.result() for call in calls] == [b"wait"] * 2
        assert at.outcome(kind, b"well")[0] is grpc.StatusCode.OK
        await at.idle()


async def test_no_call_runs_that_finds_no_thread() -> None:
    """A limit above the number of threads lets no call wait in the pool."""
    with serving(fixed(100), threads=2) as at:
        calls = begin(at, 2)
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        at.service.go.set()
        for call in calls:
            call.result()
        await at.idle()


async def test_a_client_that_has_its_answer_may_ask_again_at_once() -> None:
    """As many callers as places and threads, each with the next call right behind its last: none is refused."""
    with serving(fixed(2), threads=2) as at:
        codes: list[grpc.StatusCode] = []

        def caller() -> None:
            codes.extend(at.outcome("unary_unary", b"well")[0] for _ in range(200))

        callers = [threading.Thread(target=caller) for _ in range(2)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert codes == [grpc.StatusCode.OK] * 400
        await at.idle()


async def test_a_place_is_kept_until_the_thread_is_free() -> None:
    """A handler whose client is gone works on, and its place stays taken: it cannot be cancelled."""
    with serving(fixed(1), threads=1) as at:
        (call,) = begin(at)
        call.cancel()
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        at.service.go.set()
        await at.idle()
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", ["unary_stream", "stream_unary", "stream_stream"])
async def test_a_call_that_ends_before_its_request_came_gives_its_place_back(kind: str) -> None:
    """No handler runs for a unary request that never comes, and none ends by itself for a stream of them."""
    with serving(fixed(1), threads=1) as at:
        made: Any = at.channel.stream_stream(f"/test.Service/{kind}")
        never = threading.Event()

        def requests() -> Iterator[bytes]:
            never.wait(WITHIN_S)
            yield from ()

        call = made(requests(), timeout=WITHIN_S)
        await eventually(lambda: at.admission.load == 1.0, "the call has its place")
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        call.cancel()
        never.set()
        await at.idle()
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK


async def test_a_stream_has_its_place_until_its_first_response_and_its_thread_until_its_end() -> None:
    """Beside an open stream another call runs, in another thread; with no thread left it is refused."""
    with serving(fixed(1), threads=2) as at:
        streams = [at.call("unary_stream", b"first", timeout=WITHIN_S)]
        assert next(streams[0]) == b"first"
        assert at.admission.load == 0.0
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK
        streams.append(at.call("unary_stream", b"first", timeout=WITHIN_S))
        assert next(streams[1]) == b"first"
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        streams[0].cancel()
        at.service.go.set()
        assert list(streams[1]) == [b"first"]
        await at.idle()


async def test_grpcs_own_services_are_always_admitted() -> None:
    """A full server answers health checks: they have threads of their own."""
    with serving(fixed(1), threads=1) as at:
        calls = begin(at)
        own: Any = at.channel.unary_unary("/grpc.Own/own")
        assert own(b"well", timeout=WITHIN_S) == b"well"
        at.service.go.set()
        calls[0].result()
        await at.idle()


async def test_over_a_rate() -> None:
    """RESOURCE_EXHAUSTED with RetryInfo; each client has its own rate."""
    limits = Limits(client_rate=Rate(0.001, burst=1), client_key="who")
    with serving(limits) as at:
        assert at.outcome("unary_unary", b"well", metadata=[("who", "a")])[0] is grpc.StatusCode.OK
        code, trailers = at.outcome("unary_unary", b"well", metadata=[("who", "a")])
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = RetryInfo()
        assert Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
        assert info.retry_delay.seconds > 900
        assert at.outcome("unary_unary", b"well", metadata=[("who", "b")])[0] is grpc.StatusCode.OK
        await at.idle()


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (fixed(1), grpc.StatusCode.UNAVAILABLE),
        (Limits(concurrency=Concurrency(limit=1, adaptive=False, queue_s=0.001)), grpc.StatusCode.UNAVAILABLE),
        (fixed(2, rate=Rate(0.001, burst=1)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["full", "after waiting", "rate"],
)
async def test_what_is_refused_says_who_refused_it(limits: Limits, code: grpc.StatusCode) -> None:
    """The trailers that it was given stand beside its own; what is admitted has none of them."""
    with serving(limits, threads=1, trailers=[("id", "test-1"), ("id-bin", b"\x00")]) as at:
        calls = begin(at)
        found, trailers = at.outcome("unary_unary", b"well")
        assert (found, trailers["id"], trailers["id-bin"]) == (code, "test-1", b"\x00")
        assert len(trailers) == 3
        at.service.go.set()
        assert calls[0].result() == b"wait"
        assert not calls[0].trailing_metadata()
        await at.idle()


async def test_where_grpcio_itself_refuses_no_place_is_lost() -> None:
    """It does so between interceptors and handler, without push-back; the place is back with the next call."""
    with serving(fixed(4), threads=4, maximum_concurrent_rpcs=1) as at:
        calls = begin(at)
        for _ in range(20):
            code, trailers = at.outcome("unary_unary", b"well")
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "grpc-retry-pushback-ms" not in trailers
        at.service.go.set()
        calls[0].result()

        def answered() -> bool:  # grpcio counts a call for a moment after its end
            return at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK

        await eventually(answered)
        await at.idle()


class Looks(grpc.ServerInterceptor):
    """An interceptor that notes its thread."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Note it."""
        self.threads.add(threading.current_thread().name)
        return continuation(handler_call_details)


async def test_grpcio_runs_interceptors_in_one_thread_of_its_own() -> None:
    """Admission depends on it: it sees a call before any thread of the pool does, and must not wait."""
    looks = Looks()
    with serving(fixed(4), threads=4, outer=[looks]) as at:
        calls = begin(at, 4)
        at.service.go.set()
        for call in calls:
            call.result()
        assert len(at.service.threads) == 4
        assert len(looks.threads) == 1
        assert not looks.threads & at.service.threads
        await at.idle()


async def test_in_a_common_pool_a_refusal_waits_for_a_handler() -> None:
    """Why admission has a pool of its own: grpcio runs the handler that refuses as any other."""
    service = Service()

    def intercept(continuation: Any, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(refuse) if "refused" in details.method else continuation(details)

    def refuse(_: bytes, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "")

    interceptor: Any = type("Refuses", (grpc.ServerInterceptor,), {"intercept_service": staticmethod(intercept)})()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, interceptors=[interceptor], options=[("grpc.so_reuseport", 0)])
        handlers: dict[str, Any] = {"work": grpc.unary_unary_rpc_method_handler(service.unary_unary)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            work: Any = channel.unary_unary("/test.Service/work")
            working = work.future(b"wait", timeout=WITHIN_S)
            assert service.begun.acquire(timeout=WITHIN_S)
            refused: Any = channel.unary_unary("/test.Service/refused")
            with pytest.raises(grpc.RpcError) as caught:
                refused(b"", timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            service.go.set()
            working.result()
        server.stop(None).wait()


async def test_where_another_interceptor_raises_no_place_is_lost() -> None:
    """The call ends between admission and handler."""
    with serving(fixed(2), threads=2, outer=[Breaks()]) as at:
        for _ in range(5):
            assert at.outcome("unary_unary", b"well", metadata=[("break", "")])[0] is grpc.StatusCode.UNKNOWN
        assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.OK
        await at.idle()


async def test_no_limit_is_no_limit() -> None:
    """``concurrency=None``: calls wait for a thread, as they do with grpcio's pool."""
    with serving(Limits(concurrency=None), threads=1) as at:
        calls = begin(at)
        calls += [at.call("unary_unary", b"well", timeout=WITHIN_S) for _ in range(5)]
        at.service.go.set()
        assert [call.result() for call in calls] == [b"wait", *[b"well"] * 5]
        await at.idle()


async def test_handlers_have_the_threads_that_were_asked_for() -> None:
    """No handler runs in grpcio's thread, nor in the one for refusals; no more threads begin than were asked for."""
    with serving(fixed(3), threads=3) as at:
        calls = begin(at, 3)
        for _ in range(5):
            assert at.outcome("unary_unary", b"well")[0] is grpc.StatusCode.UNAVAILABLE
        at.service.go.set()
        for call in calls:
            call.result()
        assert at.service.threads == {"lb-calls-0", "lb-calls-1", "lb-calls-2"}
        await at.idle()


async def test_a_hopeless_call_is_refused_before_its_handler() -> None:
    """Half of the time that the method takes is left: DEADLINE_EXCEEDED long before, and the handler has not run."""
    clock = FakeClock()
    with serving(fixed(64), threads=64, clock=clock, trailers=[("id", "test-1")]) as at:
        for _ in range(2):  # an estimate needs a hundred calls
            at.service.go.clear()
            calls = begin(at, 64)
            clock.advance(100.0)
            at.service.go.set()
            for call in calls:
                call.result()
            await at.idle()
        for _ in range(5):
            code, trailers = at.outcome("unary_unary", b"well", timeout=50.0)
            assert (code, trailers) == (grpc.StatusCode.DEADLINE_EXCEEDED, {"id": "test-1"})
        assert at.service.calls == 128
        assert at.outcome("unary_unary", b"well", timeout=200.0)[0] is grpc.StatusCode.OK
        assert at.outcome("unary_unary", b"well", timeout=1e6)[0] is grpc.StatusCode.OK
        await at.idle()


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), ("8", TypeError)])
def test_a_wrong_number_of_threads_is_told(threads: Any, error: type[Exception]) -> None:
    """When the admission is made, with the argument's name."""
    with pytest.raises(error, match=r"^threads is "):
        Admission(threads=threads)
