"""When a span is made at its end, when the SDK makes it, and what others see of it meanwhile."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import context, propagate, trace

import lb
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker
from lb.core.call import Call
from lb.core.policies.round_robin import RoundRobin
from lb.core.shared import Rules, Shared
from lb.telemetry.late import Late
from lb.telemetry.spans import Spans
from lb.testing import Backend
from lb.testing.backend import hang
from tests.aio.kit import UU, channel_to
from tests.support import doors
from tests.telemetry.kit import NO_SDK, Measured, Recording

otel = doors.opentelemetry()
sdk: Any = pytest.importorskip("opentelemetry.sdk.trace", reason=NO_SDK)
sampling: Any = pytest.importorskip("opentelemetry.sdk.trace.sampling", reason=NO_SDK)
export: Any = pytest.importorskip("opentelemetry.sdk.trace.export", reason=NO_SDK)


def begun(provider: Any) -> Any:
    """The span of one call, as `Spans` begins it."""
    balancer = Balancer("static:///x", RoundRobin(), Breaker(), Random(1))
    spans = Spans("static:///x", balancer)
    spans.use(provider.get_tracer("lb"))
    method = Shared("/a.B/C", Rules(retry=lb.Retry()), balancer, lb.Budget().new_state())
    return spans.call_started(Call(method, None, None, 0.0), 0.0)


def provider_of(*processors: Any, **settings: Any) -> Any:
    """A provider of the SDK."""
    provider = sdk.TracerProvider(shutdown_on_exit=False, **settings)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


class AtStart(sdk.SpanProcessor):  # type: ignore[misc]  # of the SDK, which may not be there
    """Looks at a span when it starts."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """See the SDK."""


class AtEnding(sdk.SpanProcessor):  # type: ignore[misc]
    """Looks at a span just before its end."""

    def _on_ending(self, span: Any) -> None:
        """See the SDK."""


class AtEnd(sdk.SpanProcessor):  # type: ignore[misc]
    """Looks at spans that have ended."""

    def on_end(self, span: Any) -> None:
        """See the SDK."""


class Several(sdk.SynchronousMultiSpanProcessor):  # type: ignore[misc]
    """Hands spans on to several processors, its own way."""


class Sampler(sampling.Sampler):  # type: ignore[misc]
    """Answers as it is told."""

    def __init__(self, decision: Any, **attributes: Any) -> None:
        self._answer = sampling.SamplingResult(decision, attributes)

    def should_sample(self, *_: Any, **__: Any) -> Any:
        """See the SDK."""
        return self._answer

    def get_description(self) -> str:
        """See the SDK."""
        return "test"


def patched() -> Any:
    """A processor that looks at starts because somebody has put a function in."""
    processor = sdk.SpanProcessor()
    processor.on_start = lambda span, parent_context=None: None
    return processor


SAMPLE = sampling.Decision.RECORD_AND_SAMPLE


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(lambda: provider_of(), id="no processor"),
        pytest.param(lambda: provider_of(AtEnd(), AtEnd()), id="processors that look at the end alone"),
        pytest.param(lambda: provider_of(export.SimpleSpanProcessor(None)), id="the SDK's simple one"),
        pytest.param(lambda: provider_of(sampler=sampling.ALWAYS_ON), id="all are sampled"),
        pytest.param(lambda: provider_of(sampler=sampling.TraceIdRatioBased(1.0)), id="by ratio"),
        pytest.param(lambda: provider_of(sampler=sampling.ParentBased(Sampler(SAMPLE))), id="by a sampler for roots"),
        pytest.param(
            lambda: provider_of(span_limits=sdk.SpanLimits(max_span_attributes=otel.MOST_ATTRIBUTES)), id="a wide limit"
        ),
        pytest.param(
            lambda: provider_of(active_span_processor=sdk.ConcurrentMultiSpanProcessor()), id="processors side by side"
        ),
    ],
)
def test_a_span_that_nobody_watches_is_made_at_its_end(provider: Any) -> None:
    """Nothing but its end is seen of it, and its attributes are all `lb`'s, within the limits."""
    assert type(begun(provider())) is Late


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(lambda: provider_of(AtStart()), id="a processor looks at starts"),
        pytest.param(lambda: provider_of(AtEnd(), AtStart()), id="one of two does"),
        pytest.param(lambda: provider_of(AtEnding()), id="a processor looks before the end"),
        pytest.param(lambda: provider_of(patched()), id="a processor was made to"),
        pytest.param(lambda: provider_of(active_span_processor=Several()), id="who hands them on is no SDK's"),
        pytest.param(lambda: provider_of(sampler=Sampler(SAMPLE)), id="who samples might not sample attempts"),
        pytest.param(
            lambda: provider_of(sampler=sampling.ParentBased(Sampler(SAMPLE, why="so"))), id="a sampler adds attributes"
        ),
        pytest.param(
            lambda: provider_of(sampler=sampling.ParentBased(Sampler(sampling.Decision.RECORD_ONLY))),
            id="recorded, and not sampled",
        ),
        pytest.param(
            lambda: provider_of(
                sampler=sampling.ParentBased(sampling.ALWAYS_ON, local_parent_sampled=sampling.ALWAYS_OFF)
            ),
            id="children are not sampled",
        ),
        pytest.param(
            lambda: provider_of(span_limits=sdk.SpanLimits(max_span_attributes=otel.MOST_ATTRIBUTES - 1)),
            id="few attributes",
        ),
        pytest.param(
            lambda: provider_of(span_limits=sdk.SpanLimits(max_span_attribute_length=100)), id="short attributes"
        ),
    ],
)
def test_a_span_that_is_watched_is_the_sdks(provider: Any) -> None:
    """From its beginning."""
    span = begun(provider())
    assert isinstance(span, sdk.Span)
    assert span.is_recording()


def test_a_processor_that_comes_later_is_noticed() -> None:
    """By the next call, of the same channel."""
    provider = provider_of(AtEnd())
    tracer = otel.Sdk.of(provider.get_tracer("lb"))
    assert tracer is not None
    assert tracer.unwatched()
    provider.add_span_processor(AtStart())
    assert not tracer.unwatched()


def test_a_tracer_is_looked_at_again_when_it_has_changed() -> None:
    """Once a second it is asked whether: what was made of it stays otherwise."""
    tracer = provider_of().get_tracer("lb")
    taken = otel.Sdk.of(tracer)
    assert otel.Sdk.of(tracer, taken) is taken
    tracer.sampler = sampling.ALWAYS_OFF
    again = otel.Sdk.of(tracer, taken)
    assert again is not None
    assert again is not taken
    assert again.bound is None
    assert otel.Sdk.of(provider_of().get_tracer("lb"), again) is not again


def test_a_tracer_of_somebody_else_is_asked() -> None:
    """Also one that is made of the SDK's, is switched off, or counts what it makes."""

    class Tracer(sdk.Tracer):  # type: ignore[misc]
        """Somebody's own."""

    tracer = provider_of().get_tracer("lb")
    assert otel.Sdk.of(tracer) is not None
    tracer.__class__ = Tracer
    assert otel.Sdk.of(tracer) is None
    assert otel.Sdk.of(trace.NoOpTracer()) is None


def test_a_tracer_that_counts_its_spans_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's metrics of itself count what it starts and ends."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert otel.Sdk.of(provider_of().get_tracer("lb")) is None


@pytest.mark.parametrize("lacking", ["_span_limits", "_instrumentation_scope", "instrumentation_info"])
def test_an_sdk_that_lacks_a_name_makes_its_spans(lacking: str) -> None:
    """It is asked for the decision still, and nothing raises."""
    tracer = provider_of().get_tracer("lb")
    delattr(tracer, lacking)
    taken = otel.Sdk.of(tracer)
    assert taken is not None
    assert not taken.unwatched()


def test_an_sdk_whose_span_is_made_otherwise_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were its arguments others, or in another order, ours would be wrong."""

    def other(self: Any, context: Any, name: str) -> None: ...

    monkeypatch.setattr(sdk.ReadableSpan, "__init__", other)
    taken = otel.Sdk.of(provider_of().get_tracer("lb"))
    assert taken is not None
    assert not taken.unwatched()


SAMPLERS = [
    sampling.ALWAYS_ON,
    sampling.ParentBased(sampling.ALWAYS_ON),
    *(sampling.TraceIdRatioBased(ratio) for ratio in (0.0, 0.01, 0.5, 1.0)),
    *(sampling.ParentBasedTraceIdRatio(ratio) for ratio in (0.0, 0.25, 1.0)),
]


@given(st.sampled_from(SAMPLERS), st.integers(1, 2**128 - 1))
@example(SAMPLERS[4], 2**63 - 1)
@example(SAMPLERS[4], 2**63)
@example(SAMPLERS[4], 2**64)
@example(SAMPLERS[0], 2**64 - 1)
def test_a_new_trace_is_sampled_as_its_sampler_says(sampler: Any, trace_id: int) -> None:
    """The bound that is read of a sampler gives its own answers, with nothing added."""
    taken = otel.Sdk.of(provider_of(sampler=sampler).get_tracer("lb"))
    assert taken is not None
    assert taken.bound is not None
    result = sampler.should_sample(None, trace_id, "Sent.x", None, None, ())
    ours = taken.sampled if trace_id & otel.LOW_HALF < taken.bound else taken.dropped
    assert (ours.decision, ours.attributes, ours.trace_state) == (result.decision, result.attributes, None)
    assert result.trace_state is None


class Half(sampling.TraceIdRatioBased):  # type: ignore[misc]
    """Might decide otherwise."""


@pytest.mark.parametrize(
    "sampler",
    [Half(0.5), sampling.ParentBased(Half(0.5)), Sampler(SAMPLE), sampling.ALWAYS_OFF],
    ids=["a subclass", "with a parent", "its own", "never"],
)
def test_other_samplers_are_asked(sampler: Any) -> None:
    """A class of somebody else's is, even where it comes from one that is known."""
    taken = otel.Sdk.of(provider_of(sampler=sampler).get_tracer("lb"))
    assert taken is not None
    assert taken.bound is None


async def test_what_others_see_of_it(backend: Backend) -> None:
    """It has ids, so that spans can begin under it and context is passed on; what is written to it is not kept."""
    recording = Recording()
    backend.script(hang())
    async with channel_to(backend) as channel:
        recording.of(channel)
        call = UU.start(channel)
        await backend.until(lambda: backend.in_flight == 1)
        (attempt,) = lb.attempts(call)
        span: Any = attempt.span
        assert isinstance(span, trace.Span)
        ids = span.get_span_context()
        assert ids.is_valid
        assert ids.trace_flags.sampled
        assert not span.is_recording()
        span.set_attribute("a", 1)
        span.set_attributes({"b": 2})
        span.add_event("c")
        span.add_link(ids)
        span.update_name("d")
        span.set_status(trace.Status(trace.StatusCode.OK))
        span.record_exception(ValueError("e"))
        span.end()
        under = trace.set_span_in_context(span, context.Context())
        recording.provider.get_tracer("test").start_span("child", under).end()
        carrier: dict[str, str] = {}
        propagate.inject(carrier, under)
        call.cancel()
    (child,) = [span for span in recording.spans if span.name == "child"]
    (ended,) = recording.attempts
    assert child.parent == ended.context == ids
    assert carrier["traceparent"] == backend.received[0].metadata["traceparent"]
    assert not set(ended.attributes) & {"a", "b"}
    assert (ended.events, ended.links, ended.name) == ((), (), f"Attempt.{UU.method[1:]}")
    assert "Attempt" in repr(span)


def test_an_id_that_no_trace_can_have_is_not_passed_on() -> None:
    """An id generator of somebody's own may make anything: no call fails by it."""

    class Ids:
        def generate_trace_id(self) -> int:
            return 2**128

        def generate_span_id(self) -> int:
            return 1

    assert begun(provider_of(sampler=sampling.ALWAYS_OFF, id_generator=Ids())) == ()


def test_it_ends_once() -> None:
    """A second end hands nothing on."""
    ended = []

    class Counting(sdk.SpanProcessor):  # type: ignore[misc]
        def on_end(self, span: Any) -> None:
            ended.append(span)

    span = begun(provider_of(Counting()))
    span.attributes["a"] = 1
    span.finish()
    span.finish()
    assert [dict(one.attributes) for one in ended] == [{"a": 1}]


@pytest.mark.parametrize("watched", [False, True])
async def test_durations_of_sampled_calls_have_exemplars(backend: Backend, watched: bool) -> None:
    """Of the call and of its attempt, each with its own span; a call that is sampled out has none."""
    recording, measured = Recording(sampling.ParentBased(sampling.ALWAYS_ON)), Measured()
    if watched:
        recording.provider.add_span_processor(AtStart())
    unsampled = trace.NonRecordingSpan(trace.SpanContext(0xC000, 0xD000, True))
    async with channel_to(backend) as channel:
        recording.of(channel)
        measured.of(channel)
        with trace.use_span(unsampled):
            await UU.run(channel)
        for name in ("call", "attempt"):  # each in a turn of its own: what was collected is forgotten
            assert measured.point(f"grpc.client.{name}.duration").exemplars == []
            await UU.run(channel)
            (exemplar,) = measured.point(f"grpc.client.{name}.duration").exemplars
            (span,) = [one for one in recording.spans[-2:] if one.name.startswith("Sent") == (name == "call")]
            assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)
