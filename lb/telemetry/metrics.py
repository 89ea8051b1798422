"""Metrics, by the names of gRFC A66 (calls and attempts) and A96 (retries), through the OpenTelemetry API.

docs/metrics.md lists the instruments, with their attributes and what they count.

What keeps it off a call's way: counts are plain integers which the SDK fetches when it collects; a duration
or a size is put into a queue, and the SDK's work on it is done for 128 at once, or when it collects (see
`lb.telemetry._opentelemetry.Bulk`). Attribute dicts are made once, instants are those that the core has taken anyway.
Without a meter provider a call pays one comparison, and a process that does not use OpenTelemetry does not import it
here, either.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Transition
from lb.core.call import Call, Tally
from lb.core.outcome import Origin
from lb.telemetry.counts import Counts

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider

    from lb.telemetry.instruments import Instruments

_AT_ONCE = 128
_MOST_SERIES = 4096
_OK = StatusCode.OK
_METRICS = "opentelemetry.metrics"

Attributes = dict[str, str]


def _instruments() -> ModuleType:
    from lb.telemetry import instruments  # imports OpenTelemetry

    return instruments


class Metrics:
    """The listener of one channel that measures. ``on`` says whether anybody wants it."""

    _instruments: Instruments
    """Set when ``on`` is."""

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
        if _METRICS in sys.modules:
            _instruments()  # here, so that no call is held by the import

    def tally(self, method: str, registered: Collection[str]) -> Tally:
        """Where the attempts of a method are counted."""
        label = method.lstrip("/") if method in registered else "other"
        return self.counts.tallies.setdefault(label, Tally(label))

    def resolver_answered(self, now: float) -> None:
        """The resolver's source was read. From any thread."""
        self.answered_at = now

    def resolver_failed(self) -> None:
        """It could not be read."""
        self.counts.resolver_errors += 1

    def breaker_moved(self, move: Transition) -> None:
        """A breaker opened or closed. From any thread."""
        with self._moves_lock:
            self.counts.moves[move.after] += 1

    def look(self) -> None:
        """Begin to measure, if a meter provider was set up since."""
        if self.on or not (_METRICS in sys.modules or os.environ.get("OTEL_PYTHON_METER_PROVIDER")):
            return
        instruments = _instruments().of_process()
        if instruments is not None:
            self._join(instruments)

    def use(self, provider: MeterProvider) -> None:
        """Measure, with the instruments of this provider."""
        self._join(_instruments().of(provider))

    def _join(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._leave()
        self._leave = instruments.join(self)
        self.on = True

    def close(self) -> None:
        """The channel is closed: nothing of it is observed any more, though somebody may still hold it."""
        self._leave()

    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        """An attempt ended."""
        outcome, ended_at = attempt.outcome, attempt.ended_at
        assert outcome is not None
        assert ended_at is not None
        label = call.shared.tally.label
        if not label:  # suppressed
            return
        if self._by_endpoint:
            attributes: Attributes | None = self._attributes(label, outcome.code, attempt.endpoint_id)
        else:
            attributes = self._ok.get(label) if outcome.code is _OK else None
        where = self._instruments.where(attempt.span)
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
        label = call.shared.tally.label
        if not label:
            return
        attributes = self._attributes(label, outcome.code, attempt.endpoint_id if self._by_endpoint else "")
        where = self._instruments.where(attempt.span)
        if outcome.origin is Origin.UNSENT:
            sent = 0
        instruments.pending.append((instruments.sent_size, sent, attributes, where))
        instruments.pending.append((instruments.received_size, received, attributes, where))

    def call_ended(self, call: Call, code: StatusCode, span: Any) -> None:
        """A call has its final status."""
        instruments = self._instruments
        attempts = call.attempts
        label = call.shared.tally.label
        if not label:
            return
        ended_at = attempts[0].ended_at if len(attempts) == 1 else None
        attributes = self._ok.get(label) if code is _OK else None
        pending = instruments.pending
        where = instruments.where(span)
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

    def _repeated(self, call: Call, label: str, where: Context) -> None:
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
