"""Many values that are recorded at once are in the SDK what each recorded by itself would be."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from lb.telemetry.instruments import NO_CONTEXT, Histogram, Instruments
from tests.support import doors
from tests.telemetry.kit import NO_SDK

otel = doors.opentelemetry()
metrics: Any = pytest.importorskip("opentelemetry.sdk.metrics", reason=NO_SDK)
export: Any = pytest.importorskip("opentelemetry.sdk.metrics.export", reason=NO_SDK)
view: Any = pytest.importorskip("opentelemetry.sdk.metrics.view", reason=NO_SDK)

DELTA = {metrics.Histogram: export.AggregationTemporality.DELTA}
SERIES = [
    ({"grpc.method": "a.B/C", "grpc.target": "x", "grpc.status": "OK"}, [0.001, 0.02, 0.02, 3.0, 0.0]),
    ({"grpc.method": "a.B/D", "grpc.target": "x", "grpc.status": "OK"}, [0.5]),
    ({"grpc.method": "a.B/C", "grpc.target": "x", "grpc.status": "UNAVAILABLE"}, [1e-9, 100.0]),
]
VIEWS = {
    "no view": [],
    "some attributes": [view.View(instrument_name="lb.test", attribute_keys={"grpc.method"})],
    "no attributes": [view.View(instrument_name="lb.test", attribute_keys=set())],
    "other bounds": [
        view.View(instrument_name="lb.test", aggregation=view.ExplicitBucketHistogramAggregation((0.1, 1.0)))
    ],
    "exponential": [
        view.View(instrument_name="lb.test", aggregation=view.ExponentialBucketHistogramAggregation(max_size=4))
    ],
    "a sum": [view.View(instrument_name="lb.test", aggregation=view.SumAggregation())],
    "the last": [view.View(instrument_name="lb.test", aggregation=view.LastValueAggregation())],
    "dropped": [view.View(instrument_name="lb.test", aggregation=view.DropAggregation())],
    "two": [
        view.View(instrument_name="lb.test", name="one"),
        view.View(instrument_name="lb.test", name="two", attribute_keys={"grpc.status"}),
    ],
}


def made(provider: Any) -> Any:
    """The histogram of the test."""
    return provider.get_meter("lb").create_histogram(
        "lb.test", unit="s", explicit_bucket_boundaries_advisory=(0.01, 0.1, 1.0)
    )


def collected(reader: Any) -> list[dict[str, Any]]:
    """What a reader has now, but for its instants."""
    data = reader.get_metrics_data()
    found = [
        {"metric": metric.name, "unit": metric.unit, "data": type(metric.data).__name__}
        | {name: value for name, value in vars(point).items() if not name.endswith("time_unix_nano")}
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]
    return sorted(found, key=lambda point: (point["metric"], str(point["attributes"])))


@pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_all_at_once_is_one_by_one(views: list[Any], temporality: dict[Any, Any]) -> None:
    """For each way to aggregate, over several collections, and for two readers."""
    seen = []
    for at_once in (True, False):
        readers = [export.InMemoryMetricReader(preferred_temporality=temporality), export.InMemoryMetricReader()]
        provider = metrics.MeterProvider(readers, shutdown_on_exit=False, views=views)
        histogram = made(provider)
        bulk = otel.Bulk.of(histogram)
        assert bulk is not None
        told = []
        for part in (SERIES, SERIES[1:], []):
            for attributes, values in part:
                if at_once:
                    assert bulk.record(values, attributes)
                else:
                    for value in values:
                        histogram.record(value, attributes, NO_CONTEXT)
            told.append([collected(reader) for reader in readers])
        seen.append(told)
    assert seen[0] == seen[1]


def test_a_limit_of_series_holds() -> None:
    """What is beyond it goes into the SDK's own series for that."""
    seen = []
    for at_once in (True, False):
        reader = export.InMemoryMetricReader()
        views = [view.View(instrument_name="lb.test", aggregation_cardinality_limit=2)]
        histogram = made(metrics.MeterProvider([reader], shutdown_on_exit=False, views=views))
        bulk = otel.Bulk.of(histogram)
        assert bulk is not None
        for attributes, values in SERIES:
            if at_once:
                assert bulk.record(values, attributes)
            else:
                for value in values:
                    histogram.record(value, attributes, NO_CONTEXT)
        seen.append(collected(reader))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


def test_a_reader_that_comes_later_gets_them() -> None:
    """From then on."""
    provider = metrics.MeterProvider(shutdown_on_exit=False)
    bulk = otel.Bulk.of(made(provider))
    assert bulk is not None
    assert bulk.record([1.0], {})
    provider.add_metric_reader(reader := export.InMemoryMetricReader())
    assert bulk.record([2.0, 3.0], {})
    (point,) = collected(reader)
    assert (point["count"], point["sum"]) == (2, 5.0)


def test_where_each_value_may_be_an_exemplar_it_is_recorded_by_itself() -> None:
    """Nothing is recorded at once then, and nothing is lost."""
    reader = export.InMemoryMetricReader()
    always = metrics.AlwaysOnExemplarFilter()
    histogram = made(metrics.MeterProvider([reader], shutdown_on_exit=False, exemplar_filter=always))
    bulk = otel.Bulk.of(histogram)
    assert bulk is not None
    assert not bulk.record([1.0], {})
    assert collected(reader) == []
    Histogram(histogram).record_all([1.0, 2.0], {"a": "b"})
    (point,) = collected(reader)
    assert (point["count"], len(point["exemplars"])) == (2, 2)


def test_an_aggregation_of_somebodys_own_gets_whole_measurements() -> None:
    """It may read all of them."""
    got = []

    class Own(view.Aggregation):  # type: ignore[misc]  # of the SDK, which may not be there
        def _create_aggregation(self, *arguments: Any) -> Any:
            inner = view.SumAggregation()._create_aggregation(*arguments)

            class Summing(type(inner)):  # type: ignore[misc]
                def aggregate(self, measurement: Any, *rest: Any) -> None:
                    got.append((measurement.value, dict(measurement.attributes)))

            inner.__class__ = Summing
            return inner

    reader = export.InMemoryMetricReader()
    views = [view.View(instrument_name="lb.test", aggregation=Own())]
    histogram = made(metrics.MeterProvider([reader], shutdown_on_exit=False, views=views))
    Histogram(histogram).record_all([1.0, 2.0], {"a": "b"})
    assert got == [(1.0, {"a": "b"}), (2.0, {"a": "b"})]


def test_histograms_of_others_record_one_by_one() -> None:
    """The API's own, and somebody's whose class only derives from the SDK's."""
    assert otel.Bulk.of(made(NoOpMeterProvider())) is None
    histogram = made(metrics.MeterProvider(shutdown_on_exit=False))
    assert otel.Bulk.of(histogram) is not None
    histogram.__class__ = type("Own", (type(histogram),), {})
    assert otel.Bulk.of(histogram) is None


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("_view_instrument_match", "", "_hash_attributes"),
        ("_view_instrument_match", "_ViewInstrumentMatch", "_get_or_create_aggregation"),
        ("metric_reader_storage", "MetricReaderStorage", "_get_or_init_view_instrument_match"),
        ("instrument", "_Synchronous", "_is_enabled"),
    ],
)
def test_an_sdk_that_lacks_a_name_records_one_by_one(
    monkeypatch: pytest.MonkeyPatch, module: str, owner: str, name: str
) -> None:
    """Nothing raises: what is inside the SDK comes and goes."""
    histogram = made(metrics.MeterProvider([export.InMemoryMetricReader()], shutdown_on_exit=False))
    found: Any = sys.modules[f"opentelemetry.sdk.metrics._internal.{module}"]
    monkeypatch.delattr(getattr(found, owner) if owner else found, name)
    bulk = otel.Bulk.of(histogram)
    assert bulk is None or not bulk.record([1.0], {})


def test_what_calls_record_goes_at_once() -> None:
    """The instruments of `lb` take that way."""
    instruments = Instruments(metrics.MeterProvider(shutdown_on_exit=False))
    histograms = [found for found in vars(instruments).values() if isinstance(found, Histogram)]
    assert len(histograms) == 8
    assert all(doors.recorded_in_bulk(found) for found in histograms)
