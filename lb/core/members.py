"""The endpoints of one channel: which are in the set, and which are connected.

::

    resolver ──update──►  candidates  ──left the set, attempts run──►  leaving ──last attempt ended──► closed
    watchers ──set_connectivity──►  ▲                                      │
                                    └────────────── came back ─────────────┘

An endpoint whose key stays keeps its `Candidate`, and with it its connection, its breaker and what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lb.core.breaker import Breaker
from lb.core.candidate import Candidate, Connectivity
from lb.core.concurrency import ConcurrencyLimit, StreamLimit
from lb.core.endpoint import Endpoint, Resolution

_READY = Connectivity.READY


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update did: the new endpoints, in the order in which to connect; and those to be closed now."""

    added: list[Candidate]
    closable: list[Candidate]


class Members:
    """The set, and what the resolver and the connections said of it last."""

    __slots__ = (
        "_breaker",
        "_limit",
        "_weights",
        "candidates",
        "leaving",
        "resolution",
        "resolver_error",
        "resolver_failing_since",
    )

    def __init__(self, breaker: Breaker, limit: ConcurrencyLimit | None) -> None:
        self._breaker = breaker
        self._limit = limit
        self._weights: Mapping[str, int] = {}
        self.candidates: dict[tuple[str, str], Candidate] = {}
        """Those in the set, by their endpoints' keys."""
        self.leaving: dict[tuple[str, str], Candidate] = {}
        """Those that left it, and on which attempts still run."""
        self.resolution: Resolution | None = None
        """The set as the resolver told it; None before its first answer."""
        self.resolver_error = ""
        """What the resolver complained of since its last answer."""
        self.resolver_failing_since: float | None = None

    def update(self, resolution: Resolution) -> Changes:
        """Take over a new set. Endpoints whose key stays keep connection, breaker and load.

        So do those that left and come back while attempts on them run: it is the same process, and a second record
        of it would let in as many calls again.
        """
        old = self.candidates
        new: dict[tuple[str, str], Candidate] = {}
        added = []
        kept = 0
        for endpoint in resolution.endpoints:
            key = endpoint.key
            if key in new:
                continue  # named twice
            candidate = old.get(key)
            if candidate is not None:
                kept += 1
            elif self.leaving and (candidate := self.leaving.pop(key, None)) is not None:
                candidate.retired = False
            if self._weights and endpoint.id in self._weights:
                endpoint = replace(endpoint, weight=self._weights[endpoint.id])
            if candidate is None:
                candidate = self._new(endpoint)
                added.append(candidate)
            elif candidate.endpoint is not endpoint and candidate.endpoint != endpoint:
                candidate.endpoint = endpoint
                candidate.weight = max(1, endpoint.weight)
            new[key] = candidate
        self.candidates = new
        closable = self._retire_missing(old) if kept < len(old) else []
        self.resolution = resolution
        self.resolver_error = ""
        self.resolver_failing_since = None
        return Changes(added, closable)

    def _new(self, endpoint: Endpoint) -> Candidate:
        limit = None if self._limit is None else self._limit.new_state()
        return Candidate(endpoint, self._breaker.new_state(), limit)

    def _retire_missing(self, old: Mapping[tuple[str, str], Candidate]) -> list[Candidate]:
        """Retire those that are no longer in the set. Returns the ones without a running attempt."""
        closable = []
        for key, candidate in old.items():
            if key not in self.candidates:
                candidate.retired = True
                if candidate.closable:
                    closable.append(candidate)
                else:
                    self.leaving[key] = candidate
        return closable

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """Let these weights hold, by endpoint id, whatever the resolver says; the rest is as it says."""
        self._weights = dict(weights)
        if self.resolution is not None:
            error, failing_since = self.resolver_error, self.resolver_failing_since
            self.update(self.resolution)
            self.resolver_error, self.resolver_failing_since = error, failing_since

    def resolver_failed(self, message: str, now: float) -> None:
        """The resolver cannot read its source. What it said last still holds."""
        self.resolver_error = message
        if self.resolver_failing_since is None:
            self.resolver_failing_since = now

    def set_connectivity(
        self, candidate: Candidate, state: Connectivity, now: float, trouble: str = "", *, unserved: bool = False
    ) -> bool:
        """A connection changed. True when the resolver should look again: see `Balancer.set_connectivity`."""
        look_up = candidate.connectivity is _READY and state is not _READY
        if look_up:
            candidate.lost_at = now
            if isinstance(candidate.limit, StreamLimit):  # it was that connection's
                candidate.limit = candidate.limit.own
        candidate.connectivity = state
        candidate.unserved = unserved
        if state is _READY:
            if candidate.ready_since is None:
                candidate.ready_since = now
            candidate.failing_since = None
            candidate.trouble = ""
        elif state is Connectivity.TRANSIENT_FAILURE and candidate.failing_since is None:
            candidate.failing_since = now
            look_up = True
        if state is not _READY and state is not Connectivity.IDLE:  # an idle one is as warm as it was
            candidate.ready_since = None
        if trouble:
            candidate.trouble = trouble
        return look_up

    def sleep(self, now: float) -> bool:
        """Make all IDLE, unless an attempt runs; whether it did."""
        if any(candidate.running for candidate in self.candidates.values()):
            return False
        for candidate in self.candidates.values():
            self.set_connectivity(candidate, Connectivity.IDLE, now)
            candidate.failing_since = None  # after a sleep it is tried again: it may have recovered long ago
            candidate.trouble = ""
        return True

    def nobody_serves(self) -> bool:
        """Whether no endpoint knows the service whose health is watched, as far as all were heard of."""
        candidates = self.candidates.values()
        return any(c.unserved for c in candidates) and all(
            c.unserved or c.failing_since is not None for c in candidates
        )

    def forget_policy(self) -> None:
        """Drop what the present policy recorded of each endpoint."""
        for candidate in (*self.candidates.values(), *self.leaving.values()):
            candidate.stats = None

    def state(self) -> Connectivity:
        """The whole set's connectivity, by gRPC's aggregation rule.

        READY if any is; else CONNECTING, if any connects for the first time or nothing is
        resolved yet; else IDLE, if any is; else TRANSIENT_FAILURE.
        """
        if self.resolution is None:
            return Connectivity.CONNECTING
        best = Connectivity.TRANSIENT_FAILURE
        for candidate in self.candidates.values():
            if candidate.connectivity is _READY:
                return _READY
            if candidate.failing_since is None:
                if candidate.connectivity is Connectivity.CONNECTING:
                    best = Connectivity.CONNECTING
                elif best is not Connectivity.CONNECTING:
                    best = Connectivity.IDLE
        return best

    def __repr__(self) -> str:
        return f"<Members {len(self.candidates)}, {len(self.leaving)} leaving, {self.state().name}>"
