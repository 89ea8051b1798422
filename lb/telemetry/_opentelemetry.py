"""Every name of OpenTelemetry that `lb` uses and that is not promised. A test fails when one of them moves.

Three are the API's: the key of ``suppress_instrumentation()``, the parts of a composite propagator, and the module of
its own meter providers. Without the first a call is not recognised as suppressed; without the second the propagators
are asked one by one; without the third durations are handed to a provider that drops them.

The others are the SDK's. They let `lb` take a decision before there is a span, make a span at its end (`Sdk`), and
record many durations at once (`Bulk`). With an SDK that lacks them, or with tracers and histograms that are not the
SDK's own, the API's ``start_span`` and ``record`` serve. The SDK itself is never imported here: there can only be a
tracer or a histogram of it when somebody else has.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from opentelemetry import context, propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import Span, SpanContext, SpanKind, Status
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# ---- the API ----

# Contrib's instrumentations read the API's own key so, too. Old SDKs set the plain word.
_SUPPRESSED = (getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", ""), "suppress_instrumentation")


def suppressed(current: Context) -> bool:
    """Whether ``suppress_instrumentation()`` holds in this context."""
    return bool(current.get(_SUPPRESSED[0]) or current.get(_SUPPRESSED[1]))


def by_the_standard() -> bool:
    """Whether trace context is passed on by OpenTelemetry's default: W3C's ``traceparent`` and ``baggage``."""
    propagator = propagate.get_global_textmap()
    parts = getattr(propagator, "_propagators", ()) if type(propagator) is CompositePropagator else ()
    return [type(part) for part in parts] == [TraceContextTextMapPropagator, W3CBaggagePropagator]


def is_stand_in(provider: object) -> bool:
    """Whether a meter provider is one of the API's own, which measure nothing."""
    return type(provider).__module__.startswith("opentelemetry.metrics")


# ---- the SDK ----

OF_TRACER = (
    "sampler",
    "id_generator",
    "resource",
    "span_processor",
    "instrumentation_info",
    "_instrumentation_scope",
    "_span_limits",
    "_is_enabled",
)
"""Of an ``opentelemetry.sdk.trace.Tracer``."""

READABLE = (
    *("self", "name", "context", "parent", "resource", "attributes", "events", "links", "kind"),
    *("instrumentation_info", "status", "start_time", "end_time", "instrumentation_scope"),
)
"""What the SDK's ``ReadableSpan`` is made of, in this order. The class is public; making one is not."""

MOST_ATTRIBUTES = 16
"""A span of `lb` has fewer: a limit that is not below this one never binds."""

_RANDOM = 2
"""The flag that a trace id is random (W3C Trace Context, level 2)."""

LOW_HALF = (1 << 64) - 1
"""The bits of a trace id that the SDK's ratio sampler compares."""


class _Decided(threading.local):
    """Sampler and id generator of a tracer whose next span is decided on already."""

    trace_id: int
    span_id: int
    result: Any

    def __init__(self, ids: Any) -> None:
        self.is_trace_id_random = getattr(ids, "is_trace_id_random", bool)

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def should_sample(self, *_: Any, **__: Any) -> Any:
        return self.result


class Sdk:
    """A tracer of the SDK, taken apart.

    The SDK makes a span to tell that there will be none, in some thirty steps. Here its sampler and its id
    generator are asked as it asks them, once for each call, before there is a span.
    """

    def __init__(self, tracer: Any, sdk: ModuleType) -> None:
        sampling: Any = sys.modules["opentelemetry.sdk.trace.sampling"]  # `sdk` has imported it
        self.should_sample = tracer.sampler.should_sample
        self.generate_trace_id = tracer.id_generator.generate_trace_id
        self.generate_span_id = tracer.id_generator.generate_span_id
        is_random = getattr(tracer.id_generator, "is_trace_id_random", None)
        self.root_flags = _RANDOM if is_random is not None and is_random() else 0
        self.kept_flags = 0 if is_random is None else _RANDOM
        """The flags that a span has of its parent's."""
        self.drop, self.sample = sampling.Decision.DROP, sampling.Decision.RECORD_AND_SAMPLE
        self.bound = _bound(tracer.sampler, sampling)
        """A new trace is sampled when the low half of its id is below this; None: the sampler must be asked."""
        self.dropped, self.sampled = sampling.SamplingResult(self.drop), sampling.SamplingResult(self.sample)
        """What the sampler answers for a new trace, if there is a ``bound``."""
        self._tracer = tracer
        self._made_of = _parts(tracer)
        self._decided = _Decided(tracer.id_generator)
        self._asking_nobody = copy.copy(tracer)
        self._asking_nobody.sampler = self._asking_nobody.id_generator = self._decided
        self._readable = sdk.ReadableSpan
        self._quiet = _quiet(tracer, sdk, sampling)
        self._processors: Any = None
        self._unwatched = False

    @classmethod
    def of(cls, tracer: Any, before: Sdk | None = None) -> Sdk | None:
        """For the SDK's tracer; None for any other, and for one that is switched off or counts what it drops.

        ``before`` is what was made of it before, and is still right unless the tracer has changed.
        """
        sdk = sys.modules.get("opentelemetry.sdk.trace")
        if sdk is None or type(tracer) is not getattr(sdk, "Tracer", None):
            return None
        if os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"):
            return None
        is_enabled = getattr(tracer, "_is_enabled", None)
        if is_enabled is not None and not is_enabled():
            return None
        if before is not None and before._made_of == _parts(tracer):
            return before
        try:
            return cls(tracer, sdk)
        except (AttributeError, KeyError):  # a newer SDK, built otherwise
            return None

    def start(self, name: str, current: Context, trace_id: int, span_id: int, result: Any) -> Span:
        """The SDK's own span, with this id, as its sampler has decided."""
        decided = self._decided
        decided.trace_id, decided.span_id, decided.result = trace_id, span_id, result
        span: Span = self._asking_nobody.start_span(name, current)
        return span

    def unwatched(self) -> bool:
        """Whether nobody looks at a span before its end, and no limit cuts it: then it may be made at its end.

        For those that the sampler samples without attributes of its own.
        """
        if self._quiet is None:
            return False
        processors = self._tracer.span_processor._span_processors
        if processors is not self._processors:
            self._unwatched = all(_handlers(processor) in self._quiet for processor in processors)
            self._processors = processors
        return self._unwatched

    def ended(
        self,
        name: str,
        kind: SpanKind,
        ids: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
        status: Status,
        start_ns: int,
        end_ns: int,
    ) -> None:
        """Hand a span to the processors, as the SDK's own does at its end."""
        tracer = self._tracer
        tracer.span_processor.on_end(
            self._readable(
                name,
                ids,
                parent,
                tracer.resource,
                attributes,
                (),
                (),
                kind,
                tracer.instrumentation_info,
                status,
                start_ns,
                end_ns,
                tracer._instrumentation_scope,
            )
        )


def _parts(tracer: Any) -> list[Any]:
    return [tracer, *(getattr(tracer, name, None) for name in OF_TRACER)]


def _bound(sampler: Any, sampling: Any) -> int | None:
    """Below which id a new trace is sampled, by the samplers whose rule that is."""
    if _follows_its_parent(sampler, sampling):
        sampler = getattr(sampler, "_root", None)
    if sampler is sampling.ALWAYS_ON:
        return LOW_HALF + 1
    if type(sampler) is sampling.TraceIdRatioBased:
        bound: int = sampler.bound
        return bound
    return None


def _follows_its_parent(sampler: Any, sampling: Any) -> bool:
    return type(sampler) in (sampling.ParentBased, sampling.ParentBasedTraceIdRatio)


def _quiet(tracer: Any, sdk: Any, sampling: Any) -> set[Any] | None:
    """The handlers of processors that do nothing before a span's end; None when spans must not be made there."""
    if not _has(tracer, OF_TRACER) or not hasattr(sdk.SpanProcessor, "_on_ending"):
        return None
    several = (sdk.SynchronousMultiSpanProcessor, sdk.ConcurrentMultiSpanProcessor)
    if type(tracer.span_processor) not in several or not hasattr(tracer.span_processor, "_span_processors"):
        return None
    if sdk.ReadableSpan.__init__.__code__.co_varnames[: len(READABLE)] != READABLE:
        return None
    limits = tracer._span_limits
    most, longest = limits.max_span_attributes, limits.max_span_attribute_length
    if longest is not None or (most is not None and most < MOST_ATTRIBUTES):
        return None
    # An attempt's span is sampled because its call's is. So say these samplers; others would have to be asked.
    sampler = tracer.sampler
    if _follows_its_parent(sampler, sampling):
        sampler = getattr(sampler, "_local_parent_sampled", None)
    elif type(sampler) is sampling.TraceIdRatioBased:
        sampler = sampling.ALWAYS_ON
    if sampler is not sampling.ALWAYS_ON:
        return None
    export: Any = sys.modules.get("opentelemetry.sdk.trace.export")
    kinds = (sdk.SpanProcessor,) + (() if export is None else (export.BatchSpanProcessor, export.SimpleSpanProcessor))
    return {(kind.on_start, kind._on_ending) for kind in kinds}


def _handlers(processor: Any) -> tuple[Any, Any]:
    """What a processor runs at a span's start, and just before its end."""
    started, ending = getattr(processor, "on_start", None), getattr(processor, "_on_ending", None)
    return getattr(started, "__func__", None), getattr(ending, "__func__", None)


# ---- the SDK's histograms ----

_METRICS = "opentelemetry.sdk.metrics._internal."
OF_HISTOGRAM = ("_measurement_consumer", "_is_enabled")
OF_CONSUMER = ("_reader_storages", "_sdk_config")
OF_STORAGE = ("_get_or_init_view_instrument_match",)
OF_MATCH = ("_view", "_lock", "_aggregation", "_get_or_create_aggregation")


class _Measured:
    """All that the SDK's aggregations read of a measurement that is no exemplar."""

    __slots__ = ("value",)

    value: float


class Bulk:
    """Hands many values of one series to a histogram of the SDK at once.

    ``record`` does the same for each value by itself: it makes a measurement, cleans its attributes, asks whether it
    is an exemplar, copies and hashes the attributes and looks the series up. Here that is done once for all of them.
    The API has nothing of the kind: no instrument takes counts of buckets, and only counters and gauges are observed.
    """

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._consumer = histogram._measurement_consumer
        self._key = sys.modules[f"{_METRICS}_view_instrument_match"]._hash_attributes
        self._match = sys.modules[f"{_METRICS}_view_instrument_match"]._ViewInstrumentMatch
        self._storage = sys.modules[f"{_METRICS}metric_reader_storage"].MetricReaderStorage
        self._aggregations = f"{_METRICS}aggregation"
        filters = sys.modules[f"{_METRICS}exemplar.exemplar_filter"]
        self._filters = (filters.TraceBasedExemplarFilter, filters.AlwaysOffExemplarFilter)

    @classmethod
    def of(cls, histogram: object) -> Bulk | None:
        """For a histogram of the SDK; None for any other, and for one of an SDK that is built otherwise."""
        instruments = sys.modules.get(f"{_METRICS}instrument")
        consumers = sys.modules.get(f"{_METRICS}measurement_consumer")
        if type(histogram) is not getattr(instruments, "_Histogram", None) or not _has(histogram, OF_HISTOGRAM):
            return None
        consumer = histogram._measurement_consumer  # type: ignore[attr-defined]
        if type(consumer) is not getattr(consumers, "SynchronousMeasurementConsumer", None):
            return None
        if not _has(consumer, OF_CONSUMER):
            return None
        try:
            return cls(histogram)
        except (AttributeError, KeyError):
            return None

    def record(self, values: list[float], attributes: Mapping[str, str]) -> bool:
        """Record these values, none of them in the context of a span; False: nothing is, ``record`` has to do it."""
        consumer = self._consumer
        if not self._histogram._is_enabled() or type(consumer._sdk_config.exemplar_filter) not in self._filters:
            return False
        matches = []
        for storage in consumer._reader_storages.values():
            if type(storage) is not self._storage or not _has(storage, OF_STORAGE):
                return False
            matches += storage._get_or_init_view_instrument_match(self._histogram)
        if not all(type(match) is self._match and _has(match, OF_MATCH) and self._ours(match) for match in matches):
            return False
        measured = _Measured()
        for match in matches:
            keys = match._view._attribute_keys
            kept = {key: value for key, value in attributes.items() if keys is None or key in keys}
            with match._lock:
                aggregate = match._get_or_create_aggregation(self._key(kept), kept).aggregate
                for value in values:
                    measured.value = value
                    aggregate(measured, False)
        return True

    def _ours(self, match: Any) -> bool:
        """Whether a view aggregates by a class of the SDK, and can say which attributes it keeps."""
        return type(match._aggregation).__module__ == self._aggregations and hasattr(match._view, "_attribute_keys")


def _has(owner: object, names: tuple[str, ...]) -> bool:
    return all(hasattr(owner, name) for name in names)
