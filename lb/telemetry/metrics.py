"""Metrics, by the names of gRFC A66 (calls and attempts) and A96 (retries), through the OpenTelemetry *API* alone.

docs/metrics.md lists the instruments, with their attributes and what they count.

What keeps it off a call's way: counts are plain integers which the SDK fetches when it collects; a duration
or a size is put into a queue, and the SDK's work on it (some 11 us each) is done for 64 at once, or when it
collects. Attribute dicts are made once, instants are those that the core has taken anyway. Without a meter provider a
call pays one comparison.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from grpc import StatusCode
from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from lb._version import __version__
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import State, Transition
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
FORGET_S = 300.0
"""What a target has counted is told for so long after its last channel was closed; then its series ends."""
_MOST_SERIES = 4096
_OK = StatusCode.OK
# Not the caller's context, and not empty: for an empty one the SDK would look the current one up.
_NO_CONTEXT = context.set_value("lb", True, context.Context())

_log = logging.getLogger("lb.telemetry")

STARTED = "grpc.client.attempt.started"
TRANSITIONS = "lb.client.breaker.transitions"
REFUSED = "lb.client.limit.refused"
RESOLVER_ERRORS = "lb.client.resolver.errors"

Attributes = dict[str, str]
Key = tuple[str, str, str]


class Instruments:
    """The instruments of one meter provider, shared by all channels of the process."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("lb", __version__)

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
        meter.create_observable_gauge("lb.client.resolver.age", [self._ages], "s", "Since the resolver's last answer")
        meter.create_observable_gauge("lb.client.endpoints", [self._endpoints], "{endpoint}", "Endpoints by state")
        meter.create_observable_gauge("lb.client.retry_budget", [self._budgets], "{retry}", "Retries to be had now")

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
        try:
            while True:
                record, value, attributes, where = pending.popleft()
                record(value, attributes, where)
        except IndexError:
            pass
        except Exception:  # noqa: BLE001  # an SDK may raise anything, and no call may fail by it
            _log.exception("a duration was not recorded")

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

    def _budgets(self, _: CallbackOptions) -> Iterable[Observation]:
        now = time.monotonic()
        sums: dict[str, float] = {}
        for channel in self._living().values():
            sums[channel.target] = sums.get(channel.target, 0.0) + channel.budget(now)
        for target, balance in sums.items():
            yield Observation(balance, {"grpc.target": target})


class Counts:
    """What one channel has counted. Kept when the channel is gone, so it knows nothing of the channel itself."""

    def __init__(self, balancer: Balancer) -> None:
        self.tallies: dict[str, Tally] = {}
        self.moves: Counter[State] = Counter()
        self._of_core = balancer.counts
        self._limited = balancer.limit is not None

    def all(self) -> dict[Key, int]:
        """Every count, under its instrument, and an attribute with its value."""
        found = {(STARTED, "grpc.method", label): tally.attempts for label, tally in self.tallies.copy().items()}
        for state, number in self.moves.copy().items():
            found[TRANSITIONS, "lb.state", state.value] = number
        if self._limited:
            found[REFUSED, "", ""] = self._of_core.refused
        found[RESOLVER_ERRORS, "", ""] = self._of_core.resolver_errors
        return found


_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()


class Metrics:
    """The listener of one channel that measures. ``on`` says whether anybody wants it."""

    _instruments: Instruments

    def __init__(
        self, target: str, balancer: Balancer, budget: Callable[[float], float], *, by_endpoint: bool = False
    ) -> None:
        self.on = False
        self.target = target
        self.balancer = balancer
        self.budget = budget
        self.answered_at: float | None = None
        """When the resolver's source was last read; None: it has not been, or its answer does not age."""
        self.counts = Counts(balancer)
        self._by_endpoint = by_endpoint
        self._leave: Callable[[], object] = lambda: None
        self._moves_lock = threading.Lock()
        self._ok: dict[str, Attributes] = {}
        self._others: dict[tuple[str, StatusCode, str], Attributes] = {}

    def tally(self, method: str, registered: Collection[str]) -> Tally:
        """Where the attempts of a method are counted."""
        label = method.lstrip("/") if method in registered else "other"
        return self.counts.tallies.setdefault(label, Tally(label))

    def breaker_moved(self, move: Transition) -> None:
        """A breaker opened or closed. From any thread."""
        with self._moves_lock:
            self.counts.moves[move.after] += 1

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
        self._leave()
        self._leave = found.join(self)
        self.on = True

    def close(self) -> None:
        """The channel is closed: nothing of it is observed any more, though somebody may still hold it."""
        self._leave()

    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        """An attempt ended."""
        outcome, ended_at = attempt.outcome, attempt.ended_at
        assert outcome is not None
        assert ended_at is not None
        label = call.settings.tally.label
        if not label:  # suppressed
            return
        if self._by_endpoint:
            attributes: Attributes | None = self._attributes(label, outcome.code, attempt.endpoint_id)
        else:
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
        label = call.settings.tally.label
        if not label:
            return
        attributes = self._attributes(label, outcome.code, attempt.endpoint_id if self._by_endpoint else "")
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
        if not label:
            return
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

    def _attributes(self, label: str, code: StatusCode, endpoint: str = "") -> Attributes:
        found = self._others.get((label, code, endpoint))
        if found is None:
            found = {"grpc.method": label, "grpc.target": self.target, "grpc.status": code.name}
            if endpoint:
                found["lb.endpoint.id"] = endpoint
                if len(self._others) >= _MOST_SERIES:  # instances come and go
                    self._others.clear()
            self._others[label, code, endpoint] = found
            if code is _OK and not endpoint:
                self._ok[label] = found
        return found


def _context(span: Any) -> context.Context:
    """For exemplars: where a sampled call is found."""
    # A call without a span of its own may have the headers that stand for one.
    return trace.set_span_in_context(span) if type(span) is not tuple and span.is_recording() else _NO_CONTEXT
