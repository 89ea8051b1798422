"""The balancer's record of one endpoint: what policies read and what outcomes change."""

from __future__ import annotations

import enum
from math import inf
from typing import Any

from lb.core.breaker import BreakerState
from lb.core.concurrency import LimitState, StreamLimit
from lb.core.endpoint import Endpoint
from lb.core.evidence import Evidence
from lb.core.load import Load


class Connectivity(enum.Enum):
    """gRPC's connectivity states, of one endpoint or of the whole channel."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    TRANSIENT_FAILURE = "transient failure"
    SHUTDOWN = "shutdown"


class Candidate:
    """One endpoint's state in one channel.

    The balancer and its parts write to it; but ``stats`` is the policy's, and ``handle`` the driver's.
    """

    __slots__ = (
        "breaker",
        "connectivity",
        "endpoint",
        "evidence",
        "failing_since",
        "handle",
        "held",
        "in_flight",
        "last_error",
        "limit",
        "load",
        "lost_at",
        "picks",
        "ready_since",
        "retired",
        "stats",
        "trouble",
        "unserved",
        "weight",
    )

    def __init__(self, endpoint: Endpoint, breaker: BreakerState, limit: LimitState | None = None) -> None:
        self.endpoint = endpoint
        self.breaker = breaker
        self.limit: LimitState | StreamLimit | None = limit
        """How many attempts may run on it at once; None: any number."""
        self.stats: Any = None
        """The policy's own record of this endpoint."""
        self.ready_since: float | None = None
        """Since when it is connected; None while it is not."""
        self.weight = max(1, endpoint.weight)
        self.connectivity = Connectivity.IDLE
        self.in_flight = 0
        """Attempts on it that have not ended, and ``held``: what policies go by."""
        self.held = 0
        """Places that quick errors keep for as long as a good answer takes, so that it does not look idle."""
        self.evidence = Evidence()
        """What speaks against it, beside its breaker's counts: the judgement's record."""
        self.picks = 0
        self.load = Load()
        self.last_error = ""
        self.trouble = ""
        """Why there is no connection, while there is none."""
        self.failing_since: float | None = None
        """Since when connecting fails. It stays set through CONNECTING until READY: an endpoint that
        fails, waits and tries again counts as failing all the time (gRPC's sticky TRANSIENT_FAILURE)."""
        self.lost_at = -inf
        """When its connection was lost for the last time."""
        self.unserved = False
        """It is connected, and its health service does not know the service that is watched."""
        self.retired = False
        """No longer in the set; its connection closes when the last attempt on it ended."""
        self.handle: Any = None
        """The driver's subchannel."""

    def lost_between(self, since: float, until: float, *, stands: bool) -> bool:
        """Whether its connection was lost in that time. ``stands``: the driver sees it connected at this moment."""
        if self.connectivity is Connectivity.READY and not stands:
            return True  # a moment ago: the report of that has not come yet
        return since <= self.lost_at <= until

    @property
    def closable(self) -> bool:
        """Whether nobody needs its connection any more."""
        return self.retired and not self.running

    @property
    def running(self) -> int:
        """Attempts on it that have not ended."""
        return self.in_flight - self.held

    @property
    def was_ready(self) -> bool:
        """Whether it was ever connected."""
        return self.connectivity is Connectivity.READY or self.lost_at > -inf

    def __repr__(self) -> str:
        return (
            f"<Candidate {self.endpoint.id} weight={self.endpoint.weight} {self.connectivity.name}"
            f" {self.breaker!r} in_flight={self.running}{' retired' if self.retired else ''}>"
        )
