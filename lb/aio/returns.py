"""What a channel does when an attempt is given back, or its response begins: it tells the balancer, and acts on it."""

from __future__ import annotations

import logging
import time

from lb.aio.connections import Connections
from lb.aio.home import Home
from lb.aio.waiting import Line
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import State, Transition
from lb.core.candidate import Candidate
from lb.core.upkeep import Upkeep
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

    def keep_up(self, upkeep: Upkeep) -> None:
        """Do what core says is to be done for the set after an attempt."""
        candidate = upkeep.candidate
        if upkeep.raised is not None:
            _log.error("%s: the policy %s failed", self._target, self._balancer.policy.name, exc_info=upkeep.raised)
        if upkeep.move is not None:
            self._breaker_moved(candidate, upkeep.move)
        if upkeep.closable:
            self._home.in_loop(self._connections.close, candidate)
        if upkeep.place:
            # A call that was told to wait and is not in line yet finds the place by itself (`Line.place`).
            self._home.in_loop(_wake_first, self._line)

    def reported(self, attempt: Attempt, value: bytes) -> None:
        """A server's load report came along: hand it to the policy, if that reads them."""
        try:
            self._balancer.reported(attempt, value, time.monotonic())
        except Exception:  # noqa: BLE001  # what a server sends may be anything
            _log.exception("%s: cannot read the load report of %s", self._target, attempt.endpoint_id)

    def answered(self, attempt: Attempt) -> None:
        """A stream's first response came."""
        upkeep = self._balancer.answered(attempt, time.monotonic())
        if upkeep is not None:
            self.keep_up(upkeep)

    def _breaker_moved(self, candidate: Candidate, move: Transition) -> None:
        """Log the move. Not under a lock."""
        self._metrics.breaker_moved(move)
        where = f"{self._target}: {candidate.endpoint}"
        if move.after is State.OPEN:
            _log.info("%s: breaker open for %.1f s: %s; %s", where, move.open_s, move.reason, candidate.last_error)
        else:
            _log.info("%s: breaker closed: %s", where, move.reason)


def _wake_first(line: Line) -> None:
    line.next()
