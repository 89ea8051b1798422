"""The names of OpenTelemetry that are not promised are where `lb` looks for them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, metrics
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import lb.telemetry
from tests.support import doors
from tests.telemetry.kit import NO_SDK

ROOT = Path(lb.telemetry.__file__).parent
otel = doors.opentelemetry()
FENCE = ROOT / "_opentelemetry.py"


def test_of_the_api() -> None:
    """The key of ``suppress_instrumentation()``, a composite propagator's parts, its own meter providers."""
    key = context._SUPPRESS_INSTRUMENTATION_KEY
    assert otel.suppressed(context.set_value(key, True, context.Context()))
    assert not otel.suppressed(context.Context())
    assert [type(part) for part in CompositePropagator([W3CBaggagePropagator()])._propagators] == [W3CBaggagePropagator]
    found = get_global_textmap()
    assert isinstance(found, CompositePropagator)
    assert [type(part) for part in found._propagators] == [TraceContextTextMapPropagator, W3CBaggagePropagator]
    assert otel.by_the_standard()
    assert otel.is_stand_in(metrics.NoOpMeterProvider())
    assert otel.is_stand_in(metrics.get_meter_provider())


def test_of_the_sdk() -> None:
    """What a tracer is made of, who its processors are, what a sampler's children do, and how a span is made."""
    sdk: Any = pytest.importorskip("opentelemetry.sdk.trace", reason=NO_SDK)
    sampling: Any = pytest.importorskip("opentelemetry.sdk.trace.sampling", reason=NO_SDK)
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("lb")
    assert [name for name in otel.OF_TRACER if not hasattr(tracer, name)] == []
    assert tracer.span_processor._span_processors == ()
    provider.add_span_processor(processor := sdk.SpanProcessor())
    assert tracer.span_processor._span_processors == (processor,)
    assert hasattr(sdk.SpanProcessor, "_on_ending")
    sampler = sampling.ParentBasedTraceIdRatio(0.5)
    assert sampler._root.bound == 1 << 63
    assert sampler._local_parent_sampled is sampling.ALWAYS_ON
    assert tuple(inspect.signature(sdk.ReadableSpan.__init__).parameters) == otel.READABLE
    assert {"max_span_attributes", "max_span_attribute_length"} <= set(vars(tracer._span_limits))


def test_of_the_sdks_metrics() -> None:
    """Where a histogram's values go."""
    metrics: Any = pytest.importorskip("opentelemetry.sdk.metrics", reason=NO_SDK)
    export: Any = pytest.importorskip("opentelemetry.sdk.metrics.export", reason=NO_SDK)
    provider = metrics.MeterProvider([export.InMemoryMetricReader()], shutdown_on_exit=False)
    histogram = provider.get_meter("lb").create_histogram("x")
    assert [name for name in otel.OF_HISTOGRAM if not hasattr(histogram, name)] == []
    consumer = histogram._measurement_consumer
    assert [name for name in otel.OF_CONSUMER if not hasattr(consumer, name)] == []
    (storage,) = consumer._reader_storages.values()
    assert [name for name in otel.OF_STORAGE if not hasattr(storage, name)] == []
    (match,) = storage._get_or_init_view_instrument_match(histogram)
    assert [name for name in otel.OF_MATCH if not hasattr(match, name)] == []
    assert hasattr(match._view, "_attribute_keys")
    assert hasattr(consumer._sdk_config, "exemplar_filter")
    bulk = otel.Bulk.of(histogram)
    assert bulk is not None
    assert bulk.record([1.0], {})


def test_it_is_read_nowhere_else() -> None:
    """No other file of `lb` reads a private name of OpenTelemetry's, nor imports its SDK."""
    known = {"_propagators", "_root", "_local_parent_sampled", "_span_processors", "_on_ending", "_SUPPRESS"}
    names = (*otel.OF_TRACER, *otel.OF_HISTOGRAM, *otel.OF_CONSUMER, *otel.OF_STORAGE, *otel.OF_MATCH)
    known |= {name for name in names if name.startswith("_")} - {"_lock"}
    for path in ROOT.parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opentelemetry"):
                assert "sdk" not in (node.module or ""), path
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path
                assert "._" not in (node.module or ""), path
            elif isinstance(node, ast.Attribute) and path != FENCE:
                assert node.attr not in known, f"{path}:{node.lineno}"
