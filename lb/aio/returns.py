"""What a channel does when an attempt is given back, or its response begins: it tells the balancer, and acts on it."""

from __future__ import annotations

import logging
import time

from lb.aio.connections import Connections
from lb.aio.home import Home
from lb.aio.waiting import Line
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import State
from lb.core.candidate import Candidate
from lb.core.outcome import Outcome
from lb.telemetry.metrics import Metrics

_log = logging.getLogger("lb.channel")


class Returns:
    """Takes the attempts of one channel back. From any thread."""

    def __init__(
        self, target: str, balancer: Balancer, metrics: Metrics, home: Home, connections: Connections, line: Line
    ) -> None:
        self._target = target
        self._balancer = balancer
        self._metrics = metrics
        self._home = home
        self._connections = connections
        self._line = line

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """It has ended: closes the connection of an endpoint that left the set after its last attempt."""
        candidate = attempt.candidate
        try:
            self._balancer.ended(attempt, outcome, now)
        except Exception:  # noqa: BLE001  # the hook of a user's policy may raise anything
            _log.exception("%s: the policy %s failed", self._target, self._balancer.policy.name)
        if candidate.breaker.last is not None:
            self._breaker_moved(candidate, now)
        if candidate.retired and candidate.closable:
            self._home.in_loop(self._connections.close, candidate)
        if self._balancer.waiting:
            # A call that was told to wait and is not in line yet finds the place by itself (`Line.place`).
            self._home.in_loop(_wake_first, self._line)

    def reported(self, attempt: Attempt, value: bytes) -> None:
        """A server's load report came along: hand it to the policy, if that reads them."""
        try:
            self._balancer.reported(attempt, value, time.monotonic())
        except Exception:  # noqa: BLE001  # what a server sends may be anything
            _log.exception("%s: the load report of %s", self._target, attempt.endpoint_id)

    def answered(self, attempt: Attempt) -> None:
        """A stream's first response came."""
        now = time.monotonic()
        self._balancer.answered(attempt, now)
        if attempt.candidate.breaker.last is not None:
            self._breaker_moved(attempt.candidate, now)

    def silent(self, attempt: Attempt, now: float) -> None:
        """It had no response for its ``attempt_timeout_s``; the balancer knows."""
        if attempt.candidate.breaker.last is not None:
            self._breaker_moved(attempt.candidate, now)

    def _breaker_moved(self, candidate: Candidate, now: float) -> None:
        """Log the move that an attempt which ended or answered ``now`` has caused, if it has. Not under a lock."""
        move = candidate.breaker.last
        if move is None or move.at != now or move.after is State.HALF_OPEN:
            return
        self._metrics.breaker_moved(move)
        where = f"{self._target}: {candidate.endpoint}"
        if move.after is State.OPEN:
            _log.info("%s: breaker open for %.1f s: %s; %s", where, move.open_s, move.reason, candidate.last_error)
        else:
            _log.info("%s: breaker closed: %s", where, move.reason)


def _wake_first(line: Line) -> None:
    line.next()
