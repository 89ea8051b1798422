"""The instruments of a meter provider, and what they tell when it collects."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from lb._version import __version__
from lb.core.breaker import State
from lb.core.candidate import Connectivity
from lb.telemetry._opentelemetry import Bulk, is_stand_in
from lb.telemetry.counts import REFUSED, RESOLVER_ERRORS, STARTED, TRANSITIONS, Counts, Key

if TYPE_CHECKING:
    from lb.telemetry.metrics import Metrics

LATENCY_BOUNDS_S = tuple(
    n / 100_000
    for n in (
        *(0, 1, 5, 10, 30, 60, 80, 100, 200, 300, 400, 500, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000),
        *(4000, 5000, 6500, 8000, 10_000, 13_000, 16_000, 20_000, 25_000, 30_000, 40_000, 50_000, 65_000, 80_000),
        *(100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000),
    )
)
"""Bucket boundaries of a latency, in seconds (A66)."""

SIZE_BOUNDS = (0, *(1 << n for n in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)))
"""Bucket boundaries of a size, in bytes (A66)."""


FORGET_S = 300.0
"""What a target has counted is told for so long after its last channel was closed; then its series ends."""
# Not the caller's context, and not empty: for an empty one the SDK would look the current one up.
NO_CONTEXT = context.set_value("lb", True, context.Context())

_log = logging.getLogger("lb.telemetry")
_NOT_RECORDED = "durations were not recorded"

Attributes = dict[str, str]


class Histogram:
    """One histogram, and the way that is quickest for many values.

    An SDK may raise anything, and no call may fail by it: it is told in the log.
    """

    def __init__(self, histogram: Any) -> None:
        self._record = histogram.record
        self._bulk = Bulk.of(histogram)

    def record(self, value: float, attributes: Attributes, where: context.Context) -> None:
        """Record a value in the context of a span."""
        try:
            self._record(value, attributes, where)
        except Exception:  # noqa: BLE001
            _log.exception(_NOT_RECORDED)

    def record_all(self, values: list[float], attributes: Attributes) -> None:
        """Record values that are in the context of none."""
        try:
            if self._bulk is None or not self._bulk.record(values, attributes):
                for value in values:
                    self._record(value, attributes, NO_CONTEXT)
        except Exception:  # noqa: BLE001
            _log.exception(_NOT_RECORDED)


class Instruments:
    """The instruments of one meter provider, shared by all channels of the process."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("lb", __version__)

        def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
            made = meter.create_histogram(
                name, unit=unit, description=description, explicit_bucket_boundaries_advisory=bounds
            )
            return Histogram(made)

        def latency(name: str, description: str) -> Histogram:
            return histogram(name, "s", description, LATENCY_BOUNDS_S)

        def count(name: str, unit: str, description: str, *most: int) -> Histogram:
            return histogram(name, unit, description, (1, 2, 3, 4, 5, *most))

        def size(name: str, description: str) -> Histogram:
            return histogram(name, "By", description, SIZE_BOUNDS)

        self.attempt_duration = latency("grpc.client.attempt.duration", "Time from an attempt's start to its end")
        self.call_duration = latency("grpc.client.call.duration", "Time from a call's start to its end")
        self.retry_delay = latency("grpc.client.call.retry_delay", "Time a call had no attempt between two")
        self.retries = count("grpc.client.call.retries", "{retry}", "Retries of a call that had some")
        self.transparent = count(
            "grpc.client.call.transparent_retries", "{transparent_retry}", "Attempts that no server had looked at", 10
        )
        self.sent_size = size("lb.client.attempt.sent_total_message_size", "Bytes of requests before compression")
        self.received_size = size("lb.client.attempt.rcvd_total_message_size", "Bytes of responses, uncompressed")
        self.hedges = count("grpc.client.call.hedges", "{hedge}", "Attempts beside another that had not answered")
        self.pending: deque[tuple[Histogram, float, Attributes, context.Context]] = deque()
        self._channels: dict[int, weakref.ref[Metrics]] = {}
        self._numbers = itertools.count()
        self._before: dict[str, Counter[Key]] = {}
        """What channels that are gone had counted, by target."""
        self._left_at: dict[str, float] = {}
        """When the last channel of a target went."""
        self._left: deque[tuple[int, str, Counts, float]] = deque()
        """Channels that are gone and not counted there yet: a finalizer may run anywhere, and only appends here."""
        self._lock = threading.Lock()

        def counter(name: str, unit: str, description: str) -> None:
            meter.create_observable_counter(name, [partial(self._counted, name)], unit, description)

        counter(STARTED, "{attempt}", "Attempts begun, those that have not ended too")
        counter(TRANSITIONS, "{transition}", "Moves of endpoints' circuit breakers, by the state moved to")
        counter(REFUSED, "{call}", "Calls that found no place below the concurrency limits")
        counter(RESOLVER_ERRORS, "{error}", "Times that the resolver could not read its source")

        def gauge(name: str, observe: Callable[[CallbackOptions], Iterable[Observation]], unit: str, what: str) -> None:
            meter.create_observable_gauge(name, [observe], unit, what)

        gauge("lb.client.resolver.age", self._ages, "s", "Since the resolver's last answer; the oldest of a target's")
        gauge("lb.client.endpoints", self._endpoints, "{endpoint}", "Endpoints by state, of all channels to a target")
        gauge("lb.client.panic", self._panics, "{channel}", "Channels in panic: also open breakers' endpoints are used")
        gauge("lb.client.retry_budget", self._budgets, "{retry}", "Retries to be had now, of all channels to a target")

    @staticmethod
    def where(span: Any) -> context.Context:
        """The context of a duration, for exemplars: where a sampled call or attempt is found.

        ``span`` may also be None, or the headers of a call without a span.
        """
        if span is None or type(span) is tuple or not span.get_span_context().trace_flags.sampled:
            return NO_CONTEXT
        return trace.set_span_in_context(span, NO_CONTEXT)

    def join(self, channel: Metrics) -> Callable[[], object]:
        """Observe a channel until it is closed or forgotten; returns what ends that."""
        number = next(self._numbers)
        self._channels[number] = weakref.ref(channel)
        gone = weakref.finalize(channel, self._gone, number, channel.target, channel.counts)
        gone.atexit = False
        return gone

    def _living(self) -> dict[int, Metrics]:
        # A copy, and no list: making one allocates, and a finalizer that runs then takes channels out (`_gone`).
        found = {number: reference() for number, reference in self._channels.copy().items()}
        return {number: channel for number, channel in found.items() if channel is not None}

    def flush(self) -> None:
        """Hand what is queued to the SDK. From any thread."""
        pending = self.pending
        alone: dict[tuple[Histogram, int], tuple[Attributes, list[float]]] = {}
        with contextlib.suppress(IndexError):
            while True:
                histogram, value, attributes, where = pending.popleft()
                if where is not NO_CONTEXT:
                    histogram.record(value, attributes, where)
                    continue
                series = alone.get((histogram, id(attributes)))
                if series is None:
                    series = alone[histogram, id(attributes)] = (attributes, [])
                series[1].append(value)
        for (histogram, _), (attributes, values) in alone.items():
            histogram.record_all(values, attributes)

    def _gone(self, number: int, target: str, counts: Counts) -> None:
        self._left.append((number, target, counts, time.monotonic()))
        self._channels.pop(number, None)

    def _sums(self) -> dict[str, Counter[Key]]:
        """All counts by target: of the channels there are, and of those that went not long ago."""
        with self._lock:
            living = self._living()
            while self._left:
                number, target, counts, left_at = self._left.popleft()
                living.pop(number, None)
                self._before.setdefault(target, Counter()).update(counts.all())
                self._left_at[target] = left_at
            here = {channel.target for channel in living.values()}
            now = time.monotonic()
            for target in [t for t, left_at in self._left_at.items() if t not in here and now - left_at > FORGET_S]:
                del self._before[target], self._left_at[target]
            sums = {target: counts.copy() for target, counts in self._before.items()}
        for channel in living.values():
            sums.setdefault(channel.target, Counter()).update(channel.counts.all())
        return sums

    def _counted(self, name: str, _: CallbackOptions) -> Iterable[Observation]:
        self.flush()  # the histograms are read after this
        for target, counts in self._sums().items():
            for (instrument, attribute, value), number in counts.items():
                if instrument == name:
                    label = {attribute: value} if attribute else {}
                    yield Observation(number, {"grpc.target": target, **label})

    def _ages(self, _: CallbackOptions) -> Iterable[Observation]:
        """Of several channels to a target the oldest answer counts."""
        now = time.monotonic()
        ages: dict[str, float] = {}
        for channel in self._living().values():
            if channel.answered_at is not None:
                ages[channel.target] = max(ages.get(channel.target, 0.0), now - channel.answered_at)
        for target, age in ages.items():
            yield Observation(age, {"grpc.target": target})

    def _endpoints(self, _: CallbackOptions) -> Iterable[Observation]:
        sums: dict[tuple[str, str], int] = {}
        for channel in self._living().values():
            for state in (*(state.value for state in Connectivity), "breaker open"):
                sums.setdefault((channel.target, state), 0)
            for candidate in channel.balancer.candidates:
                sums[channel.target, candidate.connectivity.value] += 1
                if candidate.connectivity is Connectivity.READY and candidate.breaker.state is not State.CLOSED:
                    sums[channel.target, "breaker open"] += 1
        for (target, state), number in sums.items():
            yield Observation(number, {"grpc.target": target, "lb.state": state})

    def _panics(self, _: CallbackOptions) -> Iterable[Observation]:
        now = time.monotonic()
        sums: dict[str, int] = {}
        for channel in self._living().values():
            panics = bool(channel.balancer.admission(now).panic)
            sums[channel.target] = sums.get(channel.target, 0) + panics
        for target, number in sums.items():
            yield Observation(number, {"grpc.target": target})

    def _budgets(self, _: CallbackOptions) -> Iterable[Observation]:
        now = time.monotonic()
        sums: dict[str, float] = {}
        for channel in self._living().values():
            sums[channel.target] = sums.get(channel.target, 0.0) + channel.budget(now)
        for target, balance in sums.items():
            yield Observation(balance, {"grpc.target": target})


_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()


def of(provider: MeterProvider) -> Instruments:
    """The instruments of this provider."""
    found = _instruments.get(provider)
    if found is None:
        found = _instruments[provider] = Instruments(provider)
    return found


def of_process() -> Instruments | None:
    """The instruments of the process's own provider; None while there is none."""
    provider = metrics.get_meter_provider()
    return None if is_stand_in(provider) else of(provider)
