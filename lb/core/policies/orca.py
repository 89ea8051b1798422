"""Weights that the servers report: gRPC's ``weighted_round_robin`` (gRFC A58, reports as in A51).

The trailing metadata of a call may say how busy its server is. From that, the weight of an endpoint is
``qps / (utilization + eps / qps * error_penalty)``: the calls a second that it could answer when fully used. Calls
are then distributed as by `WeightedRoundRobin`, with weights that are updated every ``update_s``.

A weight counts as at least a hundredth and at most ten times the mean, as in gRPC's core: an endpoint without
calls makes no reports, so a weight near 0 would never change. A report that comes with an error is
not read: an endpoint that fails at once has little to do, and would get more calls for it.

The reports of an endpoint count from ``blackout_s`` after the first one (since it connected, or since a gap),
and each for ``expiry_s``. An endpoint without a weight gets the mean of the others. While fewer than two
have one, the registry's weights are used. (A58 uses equal weights, which the registry's are unless they were set.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, log2
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.orca import decode
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.weighted_round_robin import Schedule, by_weights

FULL = 65_535
"""The largest weight; the others are whole parts of it, as in gRPC's scheduler."""

LEAST_PART, MOST_PART = 0.01, 10.0
"""A weight counts as at least and at most this many times the mean, as in gRPC's scheduler: no endpoint starves."""


class Reported:
    """What an endpoint reported."""

    __slots__ = ("last_at", "since", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.since = inf
        """Since when it reports without a gap."""
        self.last_at = -inf

    def __repr__(self) -> str:
        return f"<Reported {self.weight:.1f} at {self.last_at:.3f}, since {self.since:.3f}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orca:
    """Shares by the load that servers report with their answers: gRPC's ``weighted_round_robin`` (gRFC A58, A51).

    An endpoint's weight is ``qps / (utilization + eps / qps * error_penalty)``. Servers report with `LoadReport`.

    Args:
        blackout_s: a new endpoint's reports count after this many seconds, >= 0.
        expiry_s: a weight is forgotten after this many seconds without a report, > 0.
        update_s: seconds between two updates of the shares, >= 0.1.
        error_penalty: how much errors count, >= 0. With 0 they do not count.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    name: ClassVar[str] = "orca"
    spreads: ClassVar[bool] = True
    blackout_s: float = 10.0
    expiry_s: float = 180.0
    update_s: float = 1.0
    error_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks.number("Orca.blackout_s", self.blackout_s)
        checks.number("Orca.expiry_s", self.expiry_s, above=True)
        checks.number("Orca.update_s", self.update_s, least=0.1)
        checks.number("Orca.error_penalty", self.error_penalty)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> OrcaPicker:
        """A picker that goes on where ``previous`` was."""
        return OrcaPicker(self, candidates, previous if isinstance(previous, OrcaPicker) else None)

    def report(self, candidate: Candidate, report: bytes, now: float) -> None:
        """Take in a report. One that cannot be read, or says nothing about the load, changes nothing."""
        try:
            load = decode(report)
        except ValueError:
            return
        used = load.application_utilization or load.cpu_utilization
        if used <= 0 or load.qps <= 0:
            return
        known: Reported | None = candidate.stats
        if known is None:
            known = candidate.stats = Reported()
        if known.since == inf or now - known.last_at >= self.expiry_s:
            known.since = now
        ready_since = candidate.ready_since
        if ready_since is not None and ready_since > known.since:
            known.since = now  # it has connected again
        known.weight = load.qps / (used + load.eps / load.qps * self.error_penalty)
        known.last_at = now

    def weight_of(self, candidate: Candidate, now: float) -> float:
        """The reported weight that may be used now; 0 when there is none."""
        known: Reported | None = candidate.stats
        if known is None or now - known.last_at >= self.expiry_s:
            return 0.0
        ready_since = candidate.ready_since
        if now - known.since < self.blackout_s or (ready_since is not None and ready_since > known.last_at):
            return 0.0
        return known.weight


class OrcaPicker:
    """A weighted round robin whose weights are renewed."""

    __slots__ = ("_candidates", "_current", "_others", "_reporting", "_settings", "_shares", "_update_at", "inner")

    def __init__(self, settings: Orca, candidates: Sequence[Candidate], previous: OrcaPicker | None) -> None:
        """Use ``Orca.picker``. Weights that ``previous`` read a moment ago are not read again."""
        self._settings = settings
        self._candidates = tuple(candidates)
        self._shares: dict[Candidate, int] = {} if previous is None else previous._shares
        """The weights to go by, as of the last update; none while fewer than two have reported."""
        self._others: int = 1 if previous is None else previous._others
        """The weight of those without one."""
        self._reporting: int = 0 if previous is None else previous._reporting
        """How many had reported by then."""
        self._update_at: float = -inf if previous is None else previous._update_at
        self._current = False
        self.inner: Schedule | None = None if previous is None else previous.inner

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the schedule. O(1) on average, but for the first after ``update_s``, which is O(n)."""
        inner = self.inner
        if inner is None or not self._current or now >= self._update_at:
            if now >= self._update_at:
                self._update(now)
            shares, others, candidates = self._shares, self._others, self._candidates
            weights = [shares.get(c, others) for c in candidates] if shares else [c.weight for c in candidates]
            inner = self.inner = by_weights(candidates, weights, self.inner)
            self._current = True
        return inner.pick(call, now, rng)

    def turn(self, rng: Random) -> None:
        """Go on from a random place."""
        if self.inner is not None:
            self.inner.turn(rng)

    def _update(self, now: float) -> None:
        """Read what was reported. Changes of the set until the next time go by that."""
        weight_of = self._settings.weight_of
        known = {c: weight for c in self._candidates if (weight := weight_of(c, now))}
        self._update_at = now + self._settings.update_s
        self._reporting = len(known)
        self._shares = {}
        if len(known) < 2:
            return
        mean = sum(known.values()) / len(known)
        least, most = mean * LEAST_PART, mean * MOST_PART
        # The scale is a power of two, so that it does not change all weights with the largest of them.
        scale = FULL / 2.0 ** ceil(log2(min(max(known.values()), most)))
        self._shares = {c: int(min(max(weight, least), most) * scale) or 1 for c, weight in known.items()}
        self._others = int(mean * scale) or 1

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by reported load; the reports of {self._reporting} of {len(self._candidates)} count so far"
