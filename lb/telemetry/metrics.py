"""Metrics, by the names of gRFC A66 (calls and attempts) and A96 (retries), through the OpenTelemetry *API* alone.

docs/metrics.md lists the instruments, with their attributes and what they count.

What keeps it off a call's way: counts are plain integers which the SDK fetches when it collects; a duration
or a size is put into a queue, and the SDK's work on it (some 11 us each) is done for 64 at once, or when it
collects. Attribute dicts are made once, instants are those that the core has taken anyway. Without a meter provider a
call pays one comparison.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from grpc import StatusCode
from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from lb.core.balancer import Attempt, Balancer
from lb.core.breaker import State
from lb.core.call import Call, Tally
from lb.core.candidate import Connectivity
from lb.core.outcome import Origin

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

_AT_ONCE = 64
_OK = StatusCode.OK
# Not the caller's context, and not empty: for an empty one the SDK would look the current one up.
_NO_CONTEXT = context.set_value("lb", True, context.Context())

_log = logging.getLogger("lb.telemetry")

Attributes = dict[str, str]


class Instruments:
    """The instruments of one meter provider, shared by all channels of the process."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("lb")

        def latency(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=LATENCY_BOUNDS_S
            ).record

        def count(name: str, unit: str, description: str, *most: int) -> Any:
            bounds = (1, 2, 3, 4, 5, *most)
            return meter.create_histogram(
                name, unit=unit, description=description, explicit_bucket_boundaries_advisory=bounds
            ).record

        def size(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, unit="By", description=description, explicit_bucket_boundaries_advisory=SIZE_BOUNDS
            ).record

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
        self.pending: deque[tuple[Any, float, Attributes, context.Context]] = deque()
        self._channels: dict[int, weakref.ref[Metrics]] = {}
        self._before: dict[tuple[str, str], int] = {}
        """What channels that are gone had started, by method and target."""
        started = "Attempts begun, those that have not ended too"
        meter.create_observable_counter("grpc.client.attempt.started", [self._started], "{attempt}", started)
        meter.create_observable_gauge("lb.client.endpoints", [self._endpoints], "{endpoint}", "Endpoints by state")
        meter.create_observable_gauge("lb.client.retry_budget", [self._budgets], "{retry}", "Retries to be had now")

    def join(self, channel: Metrics) -> None:
        """Observe a channel, as long as it lives; what it has counted stays."""
        self._channels[id(channel)] = weakref.ref(channel)
        weakref.finalize(channel, self._gone, id(channel), channel.target, channel.tallies).atexit = False

    def _living(self) -> Iterable[Metrics]:
        for reference in list(self._channels.values()):
            channel = reference()
            if channel is not None:
                yield channel

    def flush(self) -> None:
        """Hand what is queued to the SDK. From any thread."""
        pending = self.pending
        try:
            while True:
                record, value, attributes, where = pending.popleft()
                record(value, attributes, where)
        except IndexError:
            pass
        except Exception:  # noqa: BLE001  # an SDK may raise anything, and no call may fail by it
            _log.exception("a duration was not recorded")

    def _gone(self, channel: int, target: str, tallies: dict[str, Tally]) -> None:
        self._channels.pop(channel, None)
        for label, tally in tallies.items():
            self._before[label, target] = self._before.get((label, target), 0) + tally.attempts

    def _started(self, _: CallbackOptions) -> Iterable[Observation]:
        self.flush()  # the histograms are read after this
        sums = dict(self._before)
        for channel in self._living():
            for label, tally in list(channel.tallies.items()):
                sums[label, channel.target] = sums.get((label, channel.target), 0) + tally.attempts
        for (label, target), attempts in sums.items():
            yield Observation(attempts, {"grpc.method": label, "grpc.target": target})

    def _endpoints(self, _: CallbackOptions) -> Iterable[Observation]:
        sums: dict[tuple[str, str], int] = {}
        for channel in self._living():
            for state in (*(state.value for state in Connectivity), "breaker open"):
                sums.setdefault((channel.target, state), 0)
            for candidate in channel.balancer.candidates:
                sums[channel.target, candidate.connectivity.value] += 1
                if candidate.connectivity is Connectivity.READY and candidate.breaker.state is not State.CLOSED:
                    sums[channel.target, "breaker open"] += 1
        for (target, state), number in sums.items():
            yield Observation(number, {"grpc.target": target, "lb.state": state})

    def _budgets(self, _: CallbackOptions) -> Iterable[Observation]:
        now = time.monotonic()
        sums: dict[str, float] = {}
        for channel in self._living():
            sums[channel.target] = sums.get(channel.target, 0.0) + channel.budget(now)
        for target, balance in sums.items():
            yield Observation(balance, {"grpc.target": target})


_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()


class Metrics:
    """The listener of one channel that measures. ``on`` says whether anybody wants it."""

    _instruments: Instruments

    def __init__(self, target: str, balancer: Balancer, budget: Callable[[float], float]) -> None:
        self.on = False
        self.target = target
        self.balancer = balancer
        self.budget = budget
        self.tallies: dict[str, Tally] = {}
        self._ok: dict[str, Attributes] = {}
        self._others: dict[tuple[str, StatusCode], Attributes] = {}

    def tally(self, method: str, registered: Collection[str]) -> Tally:
        """Where the attempts of a method are counted."""
        label = method.lstrip("/") if method in registered else "other"
        return self.tallies.setdefault(label, Tally(label))

    def look(self) -> None:
        """Begin to measure, if a meter provider was set up since."""
        provider = metrics.get_meter_provider()
        # The API's own are stand-ins for none.
        if not self.on and not type(provider).__module__.startswith("opentelemetry.metrics"):
            self.use(provider)

    def use(self, provider: MeterProvider) -> None:
        """Measure, with the instruments of this provider."""
        found = _instruments.get(provider)
        if found is None:
            found = _instruments[provider] = Instruments(provider)
        self._instruments = found
        found.join(self)
        self.on = True

    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        """An attempt ended."""
        outcome, ended_at = attempt.outcome, attempt.ended_at
        assert outcome is not None
        assert ended_at is not None
        label = call.settings.tally.label
        attributes = self._ok.get(label) if outcome.code is _OK else None
        where = _NO_CONTEXT if attempt.span is None else _context(attempt.span)
        self._instruments.pending.append(
            (
                self._instruments.attempt_duration,
                ended_at - attempt.started_at,
                attributes or self._attributes(label, outcome.code),
                where,
            )
        )

    def attempt_sizes(self, call: Call, attempt: Attempt, sent: int, received: int) -> None:
        """An attempt ended; so many bytes of messages it handed to core, and took from it."""
        outcome, instruments = attempt.outcome, self._instruments
        assert outcome is not None
        attributes = self._attributes(call.settings.tally.label, outcome.code)
        where = _NO_CONTEXT if attempt.span is None else _context(attempt.span)
        if outcome.origin is Origin.UNSENT:
            sent = 0
        instruments.pending.append((instruments.sent_size, sent, attributes, where))
        instruments.pending.append((instruments.received_size, received, attributes, where))

    def call_ended(self, call: Call, code: StatusCode, span: Any) -> None:
        """A call has its final status."""
        instruments = self._instruments
        attempts = call.attempts
        label = call.settings.tally.label
        ended_at = attempts[0].ended_at if len(attempts) == 1 else None
        attributes = self._ok.get(label) if code is _OK else None
        pending = instruments.pending
        where = _NO_CONTEXT if span is None else _context(span)
        pending.append(
            (
                instruments.call_duration,
                (time.monotonic() if ended_at is None else ended_at) - call.started_at,
                attributes or self._attributes(label, code),
                where,
            )
        )
        if len(attempts) > 1:
            self._repeated(call, label, where)
        if len(pending) >= _AT_ONCE:
            instruments.flush()

    def _repeated(self, call: Call, label: str, where: context.Context) -> None:
        instruments = self._instruments
        attributes = {"grpc.method": label, "grpc.target": self.target}
        whys = [attempt.why.partition(":")[0] for attempt in call.attempts[1:]]
        hedges, transparent = whys.count("hedge"), whys.count("transparent")
        for record, number in (
            (instruments.hedges, hedges),
            (instruments.transparent, transparent),
            (instruments.retries, len(whys) - hedges - transparent),
            (instruments.retry_delay, call.slept_s),
        ):
            if number:
                instruments.pending.append((record, number, attributes, where))

    def _attributes(self, label: str, code: StatusCode) -> Attributes:
        found = self._others.get((label, code))
        if found is None:
            found = {"grpc.method": label, "grpc.target": self.target, "grpc.status": code.name}
            self._others[label, code] = found
            if code is _OK:
                self._ok[label] = found
        return found


def _context(span: Any) -> context.Context:
    """For exemplars: where a sampled call is found."""
    # A call without a span of its own may have the headers that stand for one.
    return trace.set_span_in_context(span) if type(span) is not tuple and span.is_recording() else _NO_CONTEXT
