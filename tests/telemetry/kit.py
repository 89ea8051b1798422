"""What a channel's spans and metrics are recorded by in tests; a test that makes one is skipped without the SDK."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.aio.kit import UU, Kind
from tests.support import doors

NO_SDK = "needs the OpenTelemetry SDK (extra: services)"


class Ids:
    """Ids that follow each other, so that two runs have the same."""

    def __init__(self, *, random: bool = True) -> None:
        self._random = random
        self._trace_ids = itertools.count(0xA000)
        self._span_ids = itertools.count(0xB000)

    def generate_trace_id(self) -> int:
        """See the SDK."""
        return next(self._trace_ids)

    def generate_span_id(self) -> int:
        """See the SDK."""
        return next(self._span_ids)

    def is_trace_id_random(self) -> bool:
        """See the SDK."""
        return self._random


class Recording:
    """Spans of an SDK of the test's own; the global one is not touched."""

    def __init__(self, sampler: Any = None, ids: Any = None) -> None:
        sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=NO_SDK)
        export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=NO_SDK)
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=NO_SDK)
        self._exporter = memory.InMemorySpanExporter()
        self.provider = sdk.TracerProvider(sampler=sampler, id_generator=ids, shutdown_on_exit=False)
        self.provider.add_span_processor(export.SimpleSpanProcessor(self._exporter))

    def of(self, channel: Any) -> None:
        """Record the channel's spans here."""
        doors.engine(channel).tracer.use(self.provider.get_tracer("lb"))

    @property
    def spans(self) -> list[Any]:
        """The ended spans, by their start."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    @property
    def call(self) -> Any:
        """The one call's span."""
        (span,) = [span for span in self.spans if span.name.startswith("Sent.")]
        return span

    @property
    def attempts(self) -> list[Any]:
        """The attempts' spans."""
        return [span for span in self.spans if span.name.startswith("Attempt.")]

    @contextmanager
    def span(self, name: str) -> Iterator[Any]:
        """A span of the caller's."""
        with self.provider.get_tracer("test").start_as_current_span(name) as span:
            yield span


class Measured:
    """A meter provider of the test's own; the global one is not touched."""

    def __init__(self, **settings: Any) -> None:
        sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason=NO_SDK)
        export = pytest.importorskip("opentelemetry.sdk.metrics.export", reason=NO_SDK)
        self._reader = export.InMemoryMetricReader()
        self.provider = sdk.MeterProvider([self._reader], shutdown_on_exit=False, **settings)

    def of(self, channel: Any) -> None:
        """Measure the channel here."""
        doors.engine(channel).metrics.use(self.provider)

    def points(self, name: str) -> list[Any]:
        """The data points of one instrument, collected now."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def point(self, name: str) -> Any:
        """The only one."""
        (point,) = self.points(name)
        return point


def registered(channel: Any, kind: Kind = UU) -> Any:
    """The multicallable as a generated stub makes it."""
    return getattr(channel, kind.name)(kind.method, _registered_method=True)
