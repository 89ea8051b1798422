"""One attempt of a call: how it is opened, what it sends, how its end is judged, and how it is given back.

::

    Attempt (core's permit) ──open──► lower call ──headers, watch──► ended ──outcome──► give_back

Everything that carries out calls stands on it: a call without a task (`lb.aio.unary`), the general call
(`lb.aio.calls`), its stream of responses, its hedges, and the blocking call of `lb.sync`. An attempt is given back
once, whatever happens; a second time does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from lb.aio import _grpcio
from lb.aio._grpcio import AioRpcStatus, status_now
from lb.aio.protocols import Carrier, LowerCall, Metadata
from lb.aio.records import log_raised
from lb.aio.response_stream import ResponseStream
from lb.aio.sizes import Counted, Sizes
from lb.core import words
from lb.core.actions import Action
from lb.core.attempt import Attempt
from lb.core.headers import legal
from lb.core.outcome import OK, PUSHBACK_KEY, REPORT_KEY, Origin, Outcome, Retryable, Verdict, classify
from lb.core.upkeep import Upkeep

CANCELLED = classify(grpc.StatusCode.CANCELLED, origin=Origin.CALLER)
# The caller's deadline and core's timer are two clocks: this close together they are the same.
_DEADLINE_SLACK_S = 0.02
# Core counts in nanoseconds, 292 years of them: a deadline beyond that has passed, to core.
_BEYOND_CORE_S = 1e9
_DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]

_NOBODY: Any = None

_log = logging.getLogger("lb.channel")


class LiveAttempt:
    """An `Attempt` with its lower call.

    ``blocking``: it is sent on the connection that blocking calls use.
    """

    __slots__ = ("_carrier", "_sizes", "_timed_out_as", "attempt", "blocking", "lower")

    def __init__(self, carrier: Carrier, attempt: Attempt, *, blocking: bool = False) -> None:
        self._carrier = carrier
        self._sizes: Sizes | None = None
        self.attempt = attempt
        self.blocking = blocking
        self.lower: Any = None
        """The `LowerCall`, once there is one."""
        self._timed_out_as: Any = None
        """The status of one that was ended because ``attempt_timeout_s`` had passed."""

    @property
    def running(self) -> bool:
        """Whether it was not given back yet."""
        return self.attempt.ended_at is None

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because ``attempt_timeout_s`` had passed."""
        return self._timed_out_as is not None

    # ---- its beginning ----

    def open(self) -> None:
        """Make its lower call, unless it has one.

        Raises whatever grpcio raises, when the connection was closed a moment ago.
        """
        if self.lower is not None:
            return
        carrier = self._carrier
        deadline = _grpcio.on_wall_clock(carrier.record.deadline)
        # Waiting for a connection is done by the call, over all endpoints: core must not wait for this one.
        handle = self.attempt.candidate.handle
        lower: Any = handle.call(carrier.method, deadline, carrier.credentials, False, carrier.registered)
        if carrier.channel.measure_sizes:
            self._sizes = Sizes()
            lower = Counted(lower, self._sizes)
        self.lower = lower

    def open_stream(self, ended: Callable[[Any], None]) -> LowerCall:
        """The same for a stream of responses; ``ended`` is called when its status is here."""
        self.open()
        lower = self.lower
        if self._sizes is None:
            lower = ResponseStream(lower, ended)
        else:
            lower = Counted(ResponseStream(lower.uncounted(), ended), self._sizes)
        self.lower = lower
        stream: LowerCall = lower
        return stream

    def headers(self) -> Metadata:
        """The metadata that it sends. Its span begins here, if the call has one."""
        carrier, attempt = self._carrier, self.attempt
        metadata = carrier.metadata
        if attempt.number > 1 and (previous := carrier.record.previous(attempt)):
            metadata = (*metadata, ("grpc-previous-rpc-attempts", str(previous)))
        if carrier.span is not None:
            metadata = carrier.channel.tracer.attempt_started(carrier.span, carrier.record, attempt, metadata)
        return metadata

    def watch(self, since: float) -> None:
        """From ``since`` on its ``attempt_timeout_s`` counts, until its end or its first response."""
        if (overdue := self._carrier.record.shared.overdue) is not None:
            overdue.add(self, since, self._carrier.channel)

    def unwatch(self) -> None:
        """A response came, or it ended."""
        if (overdue := self._carrier.record.shared.overdue) is not None:
            overdue.remove(self)

    def sent(self, lower: Any, size: int | None) -> None:
        """A call of `lb.sync` sends it in its own way, as this lower call; ``size``: its bytes, if they are counted."""
        self.lower = lower
        if size is not None:
            self._sizes = Sizes(size)
        if (overdue := self._carrier.record.shared.overdue) is not None:  # `watch`, without its frame
            overdue.add(self, self.attempt.started_at, self._carrier.channel)

    def received(self, size: int) -> None:
        """So many bytes came past the lower call."""
        assert self._sizes is not None
        self._sizes.received += size

    # ---- meanwhile ----

    def overdue(self) -> None:
        """``attempt_timeout_s`` has passed without a response: core says whether to give it up."""
        carrier = self._carrier
        if not self.running or carrier.done() or self.lower.done():
            return
        channel, record = carrier.channel, carrier.record
        now = time.monotonic()
        rivals = carrier.rivals(self.lower)
        answer = record.overdue(self.attempt, now, replayable=carrier.replayable, running=rivals)
        if answer.give_up:
            self._timed_out_as = AioRpcStatus(_DEADLINE_EXCEEDED, answer.outcome.details, (), "")
            self.lower.cancel("attempt timeout")
            return
        log_raised(channel, answer)
        if answer.upkeep is not None:
            channel.keep_up(answer.upkeep)

    def cancel(self, details: str) -> None:
        """End its lower call, if that runs. It is given back apart."""
        lower = self.lower
        if lower is not None and not lower.done():
            lower.cancel(details)

    # ---- its end ----

    def status(self) -> Any:
        """What it ended with, in the words that users know; in our own if it was given up."""
        return self._timed_out_as or _grpcio.as_with_core_retries(status_now(self.lower))

    def outcome(self, status: Any, now: float) -> Outcome:
        """What came of it, when it did not end OK."""
        code = _grpcio.STATUS_CODES[status.code()]
        details = status.details() or ""
        origin = Origin.PEER
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            deadline = self._carrier.record.deadline
            if self.timed_out:
                origin = Origin.ATTEMPT_TIMEOUT
            elif deadline is not None and not _DEADLINE_SLACK_S < deadline - now < _BEYOND_CORE_S:
                origin = Origin.CALLER
        elif code is grpc.StatusCode.UNAVAILABLE:
            if not _grpcio.of_server(self.lower):
                origin = self._lost(details, now)
        elif code is grpc.StatusCode.INTERNAL and not legal(self._carrier.metadata):
            origin = Origin.CALLER  # core refused to send it
        pushback = None
        for key, value in status.trailing_metadata() or ():
            if key == PUSHBACK_KEY:
                pushback = value if isinstance(value, str) else ""
        return classify(code, origin=origin, pushback=pushback, details=details)

    def _lost(self, details: str, now: float) -> Origin:
        """Who is behind an UNAVAILABLE that no server has sent, by core's words and the connection's fate."""
        attempt = self.attempt
        candidate = attempt.candidate
        stands = candidate.handle.connected(blocking=self.blocking)
        origin = words.origin(details, candidate, started_at=attempt.started_at, ended_at=now, stands=stands)
        if origin is Origin.CLOSING:
            candidate.handle.doubt()
        return origin

    def succeeded(self, status: Any, now: float) -> None:
        """It ended OK: give it back, and pass on the load report that came along."""
        channel = self._carrier.channel
        if channel.balancer.report is not None:
            for key, value in status.trailing_metadata() or ():
                if key == REPORT_KEY:
                    channel.report(self.attempt, value)
        if self.attempt.ended_at is None:  # `give_back`, without its frame
            self._over(self._carrier.record.give_back(self.attempt, OK, now))

    def broken(self, details: str) -> None:
        """Give it back: grpcio could not carry it out, which says nothing of the endpoint."""
        outcome = Outcome(grpc.StatusCode.INTERNAL, Verdict.IGNORED, Retryable.NEVER, Origin.CALLER, details)
        self.give_back(outcome, time.monotonic())

    def failed(self, outcome: Outcome, now: float, *, committed: bool, replayable: bool, running: int) -> Action:
        """It ended so, not OK: give it back, and learn what follows. The arguments are those of `Call.ended`."""
        carrier = self._carrier
        ended = carrier.record.ended(
            self.attempt, outcome, now, committed=committed, replayable=replayable, running=running
        )
        self._over(ended.upkeep)
        return ended.action

    def give_back(self, outcome: Outcome, now: float) -> None:
        """It ended so, or its call has: give it back. Nothing follows."""
        if self.attempt.ended_at is None:
            self._over(self._carrier.record.give_back(self.attempt, outcome, now))

    def _over(self, upkeep: Upkeep | None) -> None:
        """It was given back: its span ends, and nobody watches it any more."""
        attempt, carrier = self.attempt, self._carrier
        channel, record = carrier.channel, carrier.record
        if (overdue := record.shared.overdue) is not None:
            overdue.remove(self)
        if upkeep is not None:
            channel.keep_up(upkeep)
        if attempt.span is not None:
            channel.tracer.attempt_ended(attempt)
        metrics = channel.metrics
        if metrics.on:
            metrics.attempt_ended(record, attempt)
            if (sizes := self._sizes) is not None:
                sizes.over(lambda: metrics.attempt_sizes(record, attempt, sizes.sent, sizes.received))
        self._carrier = _NOBODY  # no cycle stays: core's call ends with the last who holds it

    def __repr__(self) -> str:
        return f"<LiveAttempt {self.attempt!r}>"
