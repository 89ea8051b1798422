"""Spans of a call and of its attempts, and the trace context that servers get."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import grpc
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace import StatusCode as SpanStatus

import lb
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker
from lb.core.call import Call
from lb.core.policies.round_robin import RoundRobin
from lb.core.shared import Rules, Shared
from lb.telemetry.spans import Spans
from lb.testing import Backend
from lb.testing.backend import fail, hang, pushback
from tests.aio.conftest import Fleet
from tests.aio.kit import IDEMPOTENT, SS, US, UU, First, Kind, Told, channel_to, failure, ready
from tests.telemetry.kit import NO_SDK, Ids, Measured, Recording

sampling: Any = pytest.importorskip("opentelemetry.sdk.trace.sampling", reason=NO_SDK)
sdk: Any = pytest.importorskip("opentelemetry.sdk.trace")
BaseSampler: Any = sampling.Sampler


def ids(traceparent: Any) -> tuple[int, int, bool]:
    """Trace id, span id and whether it is sampled, of a ``traceparent``."""
    _, trace_id, span_id, flags = str(traceparent).split("-")
    return int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1)


async def test_a_call_and_its_attempt(backend: Backend, kind: Kind) -> None:
    """Two spans with the names and attributes that `lb.telemetry.spans` promises."""
    recording = Recording()
    async with channel_to(backend, policy="round_robin") as channel:
        recording.of(channel)
        await kind.run(channel)
    name = kind.method[1:]
    common = {"rpc.system": "grpc", "rpc.service": "lb.testing.Echo", "rpc.method": name.partition("/")[2]}
    (attempt,) = recording.attempts
    assert recording.call.name == f"Sent.{name}"
    assert dict(recording.call.attributes) == {
        "lb.target": f"static:///{backend.address}",
        "rpc.grpc.status_code": 0,
    }
    assert attempt.name == f"Attempt.{name}"
    assert attempt.kind is SpanKind.CLIENT
    host, _, port = backend.address.rpartition(":")
    assert dict(attempt.attributes) == {
        **common,
        "server.address": host,
        "server.port": int(port),
        "lb.endpoint.id": backend.address,
        "lb.policy": "round_robin",
        "lb.attempt": 1,
        "lb.breaker.state": "CLOSED",
        "rpc.grpc.status_code": 0,
    }
    assert attempt.parent.span_id == recording.call.context.span_id
    assert recording.call.parent is None
    assert len(recording.spans) == 2


async def test_a_failed_attempt_then_a_good_one(fleet: Fleet, kind: Kind) -> None:
    """Each attempt's span has its own outcome; the second says why there is one; the call's says how many."""
    one, two = await fleet(2)
    recording = Recording()
    async with channel_to(one, two, policy=First(), retry=IDEMPOTENT) as channel:
        recording.of(channel)
        await ready(channel, 2)
        one.always(fail(details="not now"))
        with recording.span("request") as request:
            await kind.run(channel)
    first, second = recording.attempts
    call = recording.call
    assert call.parent.span_id == request.get_span_context().span_id
    assert call.attributes["lb.attempts"] == 2
    assert "lb.gave_up" not in call.attributes
    assert call.status.status_code is SpanStatus.UNSET
    assert [span.parent.span_id for span in (first, second)] == [call.context.span_id] * 2
    assert [span.attributes["lb.endpoint.id"] for span in (first, second)] == [one.address, two.address]
    assert [span.attributes["lb.attempt"] for span in (first, second)] == [1, 2]
    assert [span.attributes["rpc.grpc.status_code"] for span in (first, second)] == [14, 0]
    assert first.status.status_code is SpanStatus.ERROR
    assert first.status.description == "UNAVAILABLE: not now"
    assert second.attributes["lb.retry.reason"] == "retry: UNAVAILABLE: not now"
    assert "lb.retry.reason" not in first.attributes
    for span, received in [(first, one.received[0]), (second, two.received[0])]:
        assert ids(received.metadata["traceparent"]) == (span.context.trace_id, span.context.span_id, True)


async def test_a_call_that_fails_says_why_there_is_no_other_attempt(backend: Backend, kind: Kind) -> None:
    """Status and words on both spans, ``lb.gave_up`` on the call's."""
    backend.always(fail(details="away"))
    recording = Recording()
    async with channel_to(backend) as channel:
        recording.of(channel)
        await failure(kind.start(channel))
    for span in (recording.call, *recording.attempts):
        assert span.status.status_code is SpanStatus.ERROR
        assert span.status.description == "UNAVAILABLE: away"
        assert span.attributes["rpc.grpc.status_code"] == 14
    assert recording.call.attributes["lb.gave_up"] == "the method is not declared idempotent"


async def test_a_servers_words_on_one_line(backend: Backend, kind: Kind) -> None:
    """Who reads a trace, too, sees no line and no escape sequence that a server made up; nor megabytes."""
    backend.always(fail(details="away\nERROR all is lost \x1b[31m" + "x" * 4000))
    recording = Recording()
    async with channel_to(backend) as channel:
        recording.of(channel)
        await failure(kind.start(channel))
    for span in (recording.call, *recording.attempts):
        assert span.status.description.startswith(r"UNAVAILABLE: away\nERROR all is lost \x1b[31mxxx")
        assert span.status.description.isprintable()
        assert len(span.status.description) < 2100


async def test_a_call_without_an_attempt_has_a_span(kind: Kind) -> None:
    """Nobody was there: one span, with the error and 0 attempts."""
    recording = Recording()
    async with lb.aio.channel(Told(note="nobody")) as channel:
        recording.of(channel)
        await failure(kind.start(channel))
    assert recording.attempts == []
    assert recording.call.attributes["lb.attempts"] == 0
    assert "nobody" in recording.call.status.description


async def test_a_cancelled_call_ends_its_spans(backend: Backend, kind: Kind) -> None:
    """Once each, with CANCELLED."""
    backend.always(hang())
    recording = Recording()
    async with channel_to(backend) as channel:
        recording.of(channel)
        call = kind.start(channel)
        await backend.until(lambda: backend.in_flight == 1)
        call.cancel()
        await asyncio.gather(call.code(), return_exceptions=True)
    assert [span.attributes["rpc.grpc.status_code"] for span in recording.spans] == [1, 1]


@pytest.mark.parametrize("kind", [US, SS], ids=str)
async def test_a_picked_attempt_that_never_began_has_no_span(backend: Backend, kind: Kind) -> None:
    """Cancelled between the pick and the start: nothing of it in the trace, and nothing raises."""
    backend.script(pushback(0))
    recording = Recording()

    def cancel_soon(picks: int) -> None:
        if picks == 2:
            asyncio.get_running_loop().call_soon(call.cancel)

    async with channel_to(backend, policy=First(cancel_soon)) as channel:
        recording.of(channel)
        await ready(channel, 1)
        call = kind.start(channel)
        await call.code()
    assert len(recording.attempts) == 1
    assert recording.call.attributes["rpc.grpc.status_code"] == 1


async def test_sampled_out_costs_no_attempt_spans(fleet: Fleet, kind: Kind) -> None:
    """The context is passed on all the same, with the flag that says so, in each attempt."""
    one, two = await fleet(2)
    recording = Recording(sampling.ALWAYS_OFF)
    async with channel_to(one, two, policy=First(), retry=IDEMPOTENT) as channel:
        recording.of(channel)
        await ready(channel, 2)
        one.always(fail())
        call = kind.start(channel)
        await kind.responses(call)
        assert all(attempt.span is None for attempt in lb.attempts(call))
    assert recording.spans == []
    seen = [ids(backend.received[0].metadata["traceparent"]) for backend in (one, two)]
    assert seen[0] == seen[1]
    assert not seen[0][2]


class Sampler(BaseSampler):  # type: ignore[misc]  # of the SDK, which may not be there
    """Writes down what it is asked, and answers as it is told."""

    def __init__(self, decision: Any, trace_state: Any = None) -> None:
        self.asked: list[tuple[int, str, int]] = []
        self._answer = sampling.SamplingResult(decision, {"from": "sampler"}, trace_state)

    def should_sample(self, parent_context: Any, trace_id: int, name: str, kind: Any = None, *_: Any, **__: Any) -> Any:
        """See the SDK."""
        parent = trace.get_current_span(parent_context).get_span_context()
        self.asked.append((trace_id, name, parent.span_id))
        return self._answer

    def get_description(self) -> str:
        """See the SDK."""
        return "test"


@pytest.mark.parametrize("parent", ["none", "sampled", "not sampled"])
@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("decision", list(sampling.Decision), ids=lambda decision: decision.name)
async def test_a_decision_is_the_samplers(backend: Backend, decision: Any, random: bool, parent: str) -> None:
    """The sampler is asked once for a call, as the SDK itself asks it, and trace id and flags are the SDK's too."""

    def around() -> Any:
        if parent == "none":
            return contextlib.nullcontext()
        flags = trace.TraceFlags((parent == "sampled") | (2 * random))
        return trace.use_span(trace.NonRecordingSpan(trace.SpanContext(0xC000, 0xD000, True, flags)))

    theirs = Sampler(decision)
    with around():
        plain = sdk.TracerProvider(sampler=theirs, id_generator=Ids(random=random), shutdown_on_exit=False)
        span = plain.get_tracer("lb").start_span(f"Sent.{UU.method[1:]}")
    ours = Sampler(decision)
    recording = Recording(ours, Ids(random=random))
    async with channel_to(backend) as channel:
        recording.of(channel)
        with around():
            await UU.run(channel)
    assert ours.asked[0] == theirs.asked[0]
    wanted = span.get_span_context()
    _, trace_id, span_id, flags = str(backend.received[0].metadata["traceparent"]).split("-")
    assert int(trace_id, 16) == wanted.trace_id
    assert int(flags, 16) == wanted.trace_flags
    if decision is sampling.Decision.DROP:
        assert int(span_id, 16) == wanted.span_id
        assert ours.asked == theirs.asked
        assert recording.spans == []
    else:
        assert len(ours.asked) == 2  # for the attempt's span, too
        assert recording.provider.id_generator.generate_trace_id() == plain.id_generator.generate_trace_id()
        if decision is sampling.Decision.RECORD_AND_SAMPLE:
            assert recording.call.context == wanted
            assert recording.call.attributes["from"] == "sampler"
            assert int(span_id, 16) == recording.attempts[0].context.span_id


async def test_a_samplers_trace_state_is_passed_on(backend: Backend) -> None:
    """Also of a call that it drops."""
    recording = Recording(Sampler(sampling.Decision.DROP, trace.TraceState([("vendor", "7")])))
    async with channel_to(backend) as channel:
        recording.of(channel)
        await UU.run(channel)
    metadata = backend.received[0].metadata
    assert metadata["tracestate"] == "vendor=7"
    assert not ids(metadata["traceparent"])[2]


@pytest.mark.parametrize("watched", [False, True])
async def test_threads_decide_each_their_own(watched: bool) -> None:
    """What one thread has decided is not taken for another one's span."""
    recording = Recording(sampling.TraceIdRatioBased(0.5))
    if watched:  # the SDK makes the spans

        class Watching(sdk.SpanProcessor):  # type: ignore[misc]  # as above
            def on_start(self, span: Any, parent_context: Any = None) -> None: ...

        recording.provider.add_span_processor(Watching())
    balancer = Balancer("static:///x", RoundRobin(), Breaker(), Random(1))
    spans = Spans("static:///x", balancer)
    spans.use(recording.provider.get_tracer("lb"))
    method = Shared("/a.B/C", Rules(retry=lb.Retry()), balancer, lb.Budget().new_state())

    def work() -> list[tuple[int, bool]]:
        made = []
        for _ in range(100):
            span: Any = spans.call_started(Call(method, None, None, 0.0), 0.0)
            if isinstance(span, tuple):
                trace_id, _, sampled = ids(span[0][1])
            else:
                trace_id, sampled = span.get_span_context().trace_id, True
            made.append((trace_id, sampled))
        return made

    with ThreadPoolExecutor(4) as pool:
        made = [one for future in [pool.submit(work) for _ in range(4)] for one in future.result()]
    assert len({trace_id for trace_id, _ in made}) == len(made)
    assert all(sampled == (trace_id % 2**64 < 2**63) for trace_id, sampled in made)
    assert {sampled for _, sampled in made} == {True, False}


async def test_baggage_goes_with_every_attempt(fleet: Fleet, kind: Kind) -> None:
    """A retry of a stream runs in a task of its own: it has the caller's context, too."""
    one, two = await fleet(2)
    recording = Recording()
    async with channel_to(one, two, policy=First(), retry=IDEMPOTENT) as channel:
        recording.of(channel)
        await ready(channel, 2)
        one.always(fail())
        token = context.attach(baggage.set_baggage("user", "7"))
        try:
            await kind.run(channel)
        finally:
            context.detach(token)
        await UU.run(channel)
    assert [backend.received[0].metadata.get("baggage") for backend in (one, two)] == ["user=7", "user=7"]
    assert "baggage" not in two.received[1].metadata


async def test_calls_side_by_side_keep_their_own_traces(backend: Backend) -> None:
    """Each call's parent is the span that was current where it was made."""
    recording = Recording()
    async with channel_to(backend) as channel:
        recording.of(channel)

        async def one(i: int) -> tuple[str, int]:
            with recording.span(f"request {i}") as span:
                await UU.run(channel, metadata=(("x-number", str(i)),))
            return str(i), span.get_span_context().trace_id

        expected = dict(await asyncio.gather(*(one(i) for i in range(10))))
    for received in backend.received:
        assert ids(received.metadata["traceparent"])[0] == expected[str(received.metadata["x-number"])]


async def test_the_callers_metadata_stays(backend: Backend) -> None:
    """The trace context is added to it."""
    recording = Recording()
    async with channel_to(backend) as channel:
        recording.of(channel)
        await UU.run(channel, metadata=grpc.aio.Metadata(("x-a", "1"), ("x-bin", b"\x00")))
    metadata = backend.received[0].metadata
    assert (metadata["x-a"], metadata["x-bin"]) == ("1", b"\x00")
    assert "traceparent" in metadata


WITHOUT_SDK = """
import asyncio, sys, lb
from opentelemetry import propagate, trace, context
from lb.testing.backend import Backend, UNARY_UNARY, UNARY_STREAM

async def main():
    async with Backend() as backend, lb.aio.channel(f"static:///{backend.address}") as channel:
        await channel.unary_unary(UNARY_UNARY)(b"x")
        came = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        token = context.attach(propagate.extract(came))
        await channel.unary_unary(UNARY_UNARY)(b"x")
        async for _ in channel.unary_stream(UNARY_STREAM)(b"x"): pass
        context.detach(token)
        print([call.metadata.get("traceparent") for call in backend.received])
    assert "opentelemetry.sdk" not in sys.modules

asyncio.run(main())
"""

SDK_LATER = """
import asyncio, lb, lb.telemetry.spans
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from lb.testing.backend import Backend, UNARY_UNARY

async def main():
    exporter = InMemorySpanExporter()
    async with Backend() as backend, lb.aio.channel(f"static:///{backend.address}") as channel:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        await channel.unary_unary(UNARY_UNARY)(b"x")
    print(sorted(span.name.partition(".")[0] for span in exporter.get_finished_spans()))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param(
            WITHOUT_SDK,
            str([None, *["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] * 2]),
            id="without an SDK what came in is passed on",
        ),
        pytest.param(SDK_LATER, "['Attempt', 'Sent']", id="an SDK set up after the channel was made is used"),
    ],
)
async def test_the_global_provider(program: str, expected: str) -> None:
    """In a process of its own, since a provider can be set only once."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr[-2000:]


class Propagator:
    """Writes headers of its own choice, and baggage as the standard does."""

    fields: frozenset[str] = frozenset()

    def __init__(self, **headers: Any) -> None:
        self._headers = headers

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        """Reads nothing."""
        return context

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        """Writes them; raises what is an exception."""
        for key, value in self._headers.items():
            if isinstance(value, Exception):
                raise value
            setter.set(carrier, key, value)


@contextlib.contextmanager
def propagating(propagator: Any) -> Iterator[None]:
    """With a global propagator; channels look for it when they begin."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(propagator)
    try:
        yield
    finally:
        propagate.set_global_textmap(before)


async def test_headers_that_cannot_be_sent_are_dropped(
    fleet: Fleet, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """No call fails, and no endpoint is blamed, for a header that a propagator makes; the log is told of each once."""
    (backend,) = await fleet(1)
    bad = {
        "x tenant": "a",
        "x-name": "Jürgen",
        "x-line": "a\nb" + "x" * 4000,
        "x-count": 3,
        "x-surrogate": "\udce9",
        "x-raw-bin": "a",
    }
    with propagating(Propagator(**bad, **{"x-good": "fine", "x-good-bin": b"\x00\xff"})):
        async with channel_to(backend) as channel:
            recording = Recording()
            recording.of(channel)
            for _ in range(2):
                await kind.run(channel)
            assert all(e.breaker == "CLOSED" for e in channel.snapshot().endpoints)
    for received in backend.received:
        assert received.metadata["x-good"] == "fine"
        assert received.metadata["x-good-bin"] == b"\x00\xff"
        assert not set(bad) & set(received.metadata)
    told = [record.getMessage() for record in caplog.records if record.name == "lb.telemetry"]
    assert len(told) == len(bad)
    assert all(any(repr(key) in line for line in told) for key in bad)
    assert all(line.isprintable() and len(line) < 400 for line in told), "what came in may be passed on, whatever it is"


async def test_a_propagator_that_raises_fails_no_call(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """What it wrote before is passed on, and the log has it once."""
    with propagating(Propagator(first="1", second=RuntimeError("no"), third="3")):
        async with channel_to(backend) as channel:
            Recording().of(channel)
            for _ in range(2):
                await UU.run(channel)
    assert [record.name for record in caplog.records if "propagator raised" in record.getMessage()] == ["lb.telemetry"]
    assert backend.received[-1].metadata["first"] == "1"
    assert "third" not in backend.received[-1].metadata


async def test_baggage_goes_without_a_span(fleet: Fleet, kind: Kind) -> None:
    """A process without an SDK, or a caller without a span, passes its baggage on all the same."""
    (backend,) = await fleet(1)
    async with channel_to(backend) as channel:
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        try:
            await kind.run(channel)
        finally:
            context.detach(token)
        await kind.run(channel)
    first, second = backend.received
    assert first.metadata["baggage"] == "tenant=blue"
    assert "traceparent" not in first.metadata
    assert "baggage" not in second.metadata


@pytest.mark.parametrize("key", ["suppress_instrumentation", "api"])
async def test_instrumentation_that_is_suppressed(backend: Backend, kind: Kind, key: str) -> None:
    """Under ``suppress_instrumentation()`` a call makes no span, passes nothing on and counts in no metric."""
    utils = pytest.importorskip("opentelemetry.instrumentation.utils", reason=NO_SDK)
    recording, measured = Recording(), Measured()
    async with channel_to(backend) as channel:
        recording.of(channel)
        measured.of(channel)
        with recording.span("exporting"):
            if key == "api":
                with utils.suppress_instrumentation():
                    await kind.run(channel)
            else:
                token = context.attach(context.set_value(key, True))
                await kind.run(channel)
                context.detach(token)
        assert [span.name for span in recording.spans] == ["exporting"]
        assert "traceparent" not in backend.received[-1].metadata
        assert [point.value for point in measured.points("grpc.client.attempt.started")] == [0]
        assert measured.points("grpc.client.call.duration") == []
        assert measured.points("grpc.client.attempt.duration") == []
        await kind.run(channel)
        assert measured.point("grpc.client.attempt.started").value == 1


async def test_contribs_client_instrumentation_beside_ours(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """With contrib's client interceptors a call has two sets of client spans, and one log line says so."""
    contrib = pytest.importorskip("opentelemetry.instrumentation.grpc", reason=NO_SDK)
    recording = Recording()
    interceptors = contrib.aio_client_interceptors(tracer_provider=recording.provider)
    async with channel_to(backend, interceptors=interceptors) as channel:
        recording.of(channel)
        for _ in range(2):
            await UU.run(channel)
    assert len(recording.spans) == 6
    told = [record.getMessage() for record in caplog.records if record.name == "lb.telemetry"]
    assert len(told) == 1
    assert "two sets of client spans" in told[0]
    assert "opentelemetry.instrumentation.grpc" in told[0]


_INSTRUMENTED = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()
import lb

async def main():
    async with lb.aio.channel(sys.argv[1]) as channel:
        await channel.unary_unary(sys.argv[2])(b"x", timeout=60)

asyncio.run(main())
with lb.sync.channel(sys.argv[1]) as channel:
    channel.unary_unary(sys.argv[2])(b"x", timeout=60)
found = exporter.get_finished_spans()
print([span.name.partition(".")[0] for span in found])
print({(span.instrumentation_scope.name, bool(span.instrumentation_scope.version)) for span in found})
"""


async def test_a_process_that_contrib_instruments(backend: Backend) -> None:
    """A process whose grpcio was instrumented before `lb` was imported has one set of client spans, with a version."""
    pytest.importorskip("opentelemetry.instrumentation.grpc", reason=NO_SDK)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _INSTRUMENTED, f"static:///{backend.address}", UU.method, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    assert out.decode().splitlines() == ["['Attempt', 'Sent', 'Attempt', 'Sent']", "{('lb', True)}"]
