"""The choice among the endpoints of one channel.

::

    Members ──admit──►  pool  ──policy──►  picker  ──pick──►  Attempt
       ▲                 ▲                                       │
    resolver,            └── breakers ◄── Judgement ◄───ended────┘
    connections

`lb.core.members` holds the set, `lb.core.admission` has the rule for which endpoints may be picked, the policy's
picker chooses one, and `lb.core.judgement` decides what an attempt's end means for its endpoint. An endpoint at its
concurrency limit is passed over for one that has room; when none has, the call waits in a short line, or is refused.

The picker is a snapshot over the pool. It is rebuilt at the next pick after something changed, so a burst of changes
costs one rebuild.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from random import Random

from lb.core.admission import Admission, admit
from lb.core.attempt import Attempt
from lb.core.breaker import Breaker, State
from lb.core.candidate import Candidate, Connectivity
from lb.core.concurrency import ConcurrencyLimit
from lb.core.ejection import Ejection
from lb.core.elsewhere import untried, with_room
from lb.core.endpoint import Endpoint, Resolution
from lb.core.judgement import Judgement
from lb.core.line import Line
from lb.core.members import Changes, Members
from lb.core.outcome import OK, Outcome, Verdict
from lb.core.policies.base import CallInfo, Picker, Policy
from lb.core.pulse import BEAT_S, Pulse
from lb.core.throttle import ThrottleState
from lb.core.unpicked import Unpicked, none_ready
from lb.core.upkeep import Upkeep

# Reading a member of an enum takes longer than reading a global, and every call does it.
_CLOSED, _SUCCESS = State.CLOSED, Verdict.SUCCESS

Ended = Callable[[Candidate, Outcome, float, float], object]
"""A policy's optional hook: candidate, outcome, duration in seconds, now."""


class Balancer:
    """Owns the endpoints of one channel and the picker over them. Not thread-safe."""

    def __init__(
        self,
        target: str,
        policy: Policy,
        breaker: Breaker,
        rng: Random,
        *,
        ejection: Ejection | None = None,
        limit: ConcurrencyLimit | None = None,
        throttle: ThrottleState | None = None,
    ) -> None:
        self.target = target
        self.rng = rng
        self.line = Line(target, limit)
        """The calls that wait for a place below the concurrency limit."""
        self.throttle = throttle
        self.pulse = Pulse()
        """For how long the driver was held (`go_by`)."""
        self._good_ratio = (breaker.good_ratio or 0.0) if breaker.opens else 0.0
        self._ejection = Ejection() if ejection is None else ejection
        self._members = Members(breaker, limit)
        self._judgement = Judgement(breaker, self._members, rng)
        self._comparison = self._judgement.comparison
        self._held = self._judgement.held
        self._slow_s = self._judgement.slow_s
        self._picker: Picker | None = None
        self._previous: Picker | None = None
        self._pool: list[Candidate] = []
        self._endpoints: list[Endpoint] = []
        self._dirty = True
        """Whether something changed since the picker was made."""
        self._admits_at = inf
        """When an open breaker may admit again."""
        self._recheck_at = inf
        """The same, or sooner: when a place that is held becomes free."""
        self._take_policy(policy)

    def go_by(self, pulse: Pulse) -> None:
        """From now on this is the driver's pulse. Until then it counts as never held."""
        self.pulse = pulse

    # ---- what the resolver and the connections say ----

    def update(self, resolution: Resolution) -> Changes:
        """Take over a new set. Endpoints whose key stays keep connection, breaker and load."""
        changes = self._members.update(resolution)
        if not self._in_order:
            # All calls that wait by then go to the endpoint that is connected first: not the same one in every client.
            self.rng.shuffle(changes.added)
        self._dirty = True
        return changes

    def resolver_failed(self, message: str, now: float) -> None:
        """The resolver cannot read its source. What it said last still holds; else calls wait for a moment only."""
        self._members.resolver_failed(message, now)

    def set_connectivity(
        self, candidate: Candidate, state: Connectivity, now: float, trouble: str = "", *, unserved: bool = False
    ) -> bool:
        """A connection changed. ``trouble`` says why it failed, if it did.

        ``unserved``: it stands, and the endpoint does not know the service whose health is watched.

        Drivers report the loss of a connection also when another one stands by then.

        True when the resolver should look again, since other instances may be known by now: a connection was
        lost, or making one begins to fail.
        """
        self._dirty = True
        return self._members.set_connectivity(candidate, state, now, trouble, unserved=unserved)

    def nobody_serves(self) -> bool:
        """Whether no endpoint knows the service whose health is watched, as far as all were heard of."""
        return self._members.nobody_serves()

    def sleep(self, now: float) -> bool:
        """All connections are about to be closed, since there are no calls: from now on no endpoint is picked.

        False, and nothing is changed, when an attempt runs. It is one step, so that threads may pick meanwhile.
        """
        slept = self._members.sleep(now)
        self._dirty = self._dirty or slept
        return slept

    # ---- what the user changes ----

    def change_policy(self, policy: Policy) -> None:
        """Choose by another policy from the next pick on."""
        self._take_policy(policy)
        self._members.forget_policy()
        self._previous = None
        self._pool = []
        self._dirty = True

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next pick on these weights hold, by endpoint id, whatever the resolver says.

        The mapping replaces the one before; without an id in it, the resolver's weight holds.
        """
        self._members.change_weights(weights)
        self._dirty = True

    def _take_policy(self, policy: Policy) -> None:
        self.policy = policy
        self.needs_metadata: bool = getattr(policy, "needs_metadata", False)
        """Whether a pick must wait until the call's metadata is known."""
        self._in_order: bool = getattr(policy, "in_order", False)
        self._comparison.ratio = self._good_ratio if getattr(policy, "spreads", False) else 0.0
        self._ended: Ended | None = getattr(policy, "ended", None)
        self.report: Callable[[Candidate, bytes, float], object] | None = getattr(policy, "report", None)
        """Takes a server's load report (the trailer ``endpoint-load-metrics-bin``); None: the policy reads none."""

    # ---- picking ----

    def pick(
        self,
        call: CallInfo | None,
        now: float,
        number: int = 1,
        why: str = "",
        tried: Sequence[Candidate] = (),
    ) -> Attempt | Unpicked:
        """Choose an endpoint and admit an attempt on it, or say why there is none.

        ``tried`` are the endpoints that this call already went to; they are avoided while
        others are admitted. Every attempt must be given back by ``ended``.
        """
        try:
            if self._dirty or now >= self._recheck_at:
                self._rebuild(now)
            picker = self._picker
            if picker is None:
                return self.unpicked(now)
            candidate: Candidate = picker.pick(call, now, self.rng)  # type: ignore[assignment]  # one of ours
            try:
                retired = candidate.retired
            except AttributeError:
                raise TypeError(f"pick() returned {candidate!r}; expected one of the picker's candidates") from None
            if retired:
                gone = candidate.endpoint.id
                raise LookupError(f"pick() returned {gone}, which is gone; expected one of the candidates")
            if tried and candidate in tried:
                candidate = untried(self._picker, self._pool, call, now, tried, self.rng) or candidate
            limit = candidate.limit
            # `Candidate.running`, written out: a property costs every call a frame.
            if (
                limit is not None
                and (running := candidate.in_flight - candidate.held) >= limit.limit
                and not limit.grows(running, now)
            ):
                roomy = with_room(picker, self._pool, tried, self.rng)
                if roomy is None:
                    return self.line.full
                candidate = roomy
            return self._admit(candidate, now, number, why)
        except Exception as error:  # noqa: BLE001  # a user's policy may raise anything
            return self._broken(error)

    def pick_another(
        self, call: CallInfo | None, now: float, number: int, why: str, tried: Sequence[Candidate]
    ) -> Attempt | Unpicked | None:
        """An attempt beside those that run, on an endpoint that was not tried; None when there is none."""
        try:
            if self._dirty or now >= self._recheck_at:
                self._rebuild(now)
            candidate = untried(self._picker, self._pool, call, now, tried, self.rng)
        except Exception as error:  # noqa: BLE001  # as above
            return self._broken(error)
        return None if candidate is None else self._admit(candidate, now, number, why)

    def _broken(self, error: Exception) -> Unpicked:
        return Unpicked(f"the policy {self.policy.name} failed: {error!r}", wait=False, raised=error)

    # ---- an attempt's life ----

    def _admit(self, candidate: Candidate, now: float, number: int, why: str) -> Attempt:
        breaker = candidate.breaker
        generation = breaker.generation if breaker.state is _CLOSED else breaker.acquire(now)
        attempt = Attempt(candidate, generation, number, why, now)
        if generation and attempt.breaker_state is not _CLOSED:
            self._dirty = True  # a probe's place is taken now: the next pick goes elsewhere
        candidate.in_flight += 1
        candidate.picks += 1
        return attempt

    def reported(self, attempt: Attempt, value: bytes, now: float) -> None:
        """A server's load report came with an answer. Hands it to the policy, if that reads them; it may raise."""
        if self.report is not None:
            self.report(attempt.candidate, value, now)

    def answered(self, attempt: Attempt, now: float) -> Upkeep | None:
        """A stream's first response came."""
        attempt.answered_at = now
        if attempt.breaker_state is not _CLOSED:
            ran_s = self.pulse.ran_s(attempt.started_at, now)
            if self._judgement.answered(attempt, ran_s, now):
                self._dirty = True
        return self._upkeep(attempt.candidate, now)

    def silent(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """An attempt has waited too long for a response and counts as ``outcome``, although it goes on.

        That is its only outcome for the breaker: its later end decides nothing there.
        """
        if attempt.ended_at is None and self._judgement.silent(attempt, outcome, now):  # else it has ended meanwhile
            self._dirty = True
        return self._upkeep(attempt.candidate, now)

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """Give an attempt back with its outcome, at its true end. Returns what is to be done; None: nothing."""
        candidate = attempt.candidate
        attempt.outcome = outcome
        attempt.ended_at = now
        candidate.in_flight -= 1
        answered_at = attempt.answered_at
        took_s = (now if answered_at is None else answered_at) - attempt.started_at
        if took_s >= BEAT_S:  # what held the driver says nothing of the endpoint
            took_s = self.pulse.ran_s(attempt.started_at, attempt.started_at + took_s)
        if outcome is OK:  # an error is quick, and says nothing of how long an answer takes
            self._comparison.good += 1
            candidate.load.observe(took_s, now)
            if self.throttle is not None:
                self.throttle.succeeded()
            limit = candidate.limit
            if limit is not None:
                limit.observe(took_s, candidate.in_flight - candidate.held + 1, now)
        if outcome is OK and took_s < self._slow_s:  # a success, and no more: the judgement's first line, written out
            breaker, generation = candidate.breaker, attempt.generation
            move = breaker.release(generation, _SUCCESS, now, self.rng)
            if move is not None or (generation and breaker.state is not _CLOSED):
                self._dirty = True
        else:
            if self._judgement.ended(attempt, outcome, took_s, now, self._picker, self._pool):
                self._dirty = True
            self._recheck_at = min(self._recheck_at, self._held.next_at)
        closable = candidate.retired and candidate.closable
        if closable:
            self._members.leaving.pop(candidate.endpoint.key, None)
        raised = None
        if self._ended is not None:
            try:
                self._ended(candidate, outcome, took_s, now)
            except Exception as error:  # noqa: BLE001  # the hook of a user's policy may raise anything
                raised = error
        # Most attempts end where nothing is to be done: they need not ask (a frame of each call).
        if closable or raised is not None or self.line.waiting or candidate.breaker.last is not None:
            return self._upkeep(candidate, now, closable=closable, raised=raised)
        return None

    def _upkeep(
        self, candidate: Candidate, now: float, *, closable: bool = False, raised: Exception | None = None
    ) -> Upkeep | None:
        move = candidate.breaker.last
        if move is not None and (move.at != now or move.after is State.HALF_OPEN):
            move = None  # an earlier one, or one that a pick has made
        if closable or raised is not None or self.line.waiting or move is not None:
            return Upkeep(candidate, closable, move, self.line.waiting > 0, raised)
        return None

    def judged(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """What an attempt that ended with a doubtful outcome (``CLOSING``) has been found to be."""
        attempt.outcome = outcome
        if self._judgement.judged(attempt, outcome, now, self._picker, self._pool):
            self._dirty = True
        self._recheck_at = min(self._recheck_at, self._held.next_at)

    # ---- the picker ----

    def admission(self, now: float) -> Admission:
        """Which endpoints may be picked, by the rule in `lb.core.admission`. Changes nothing.

        Another thread may ask (an exporter of metrics): it sees the set before or after a change.
        """
        return admit(list(self._members.candidates.values()), self._ejection, now)

    def _rebuild(self, now: float) -> None:
        self._held.free(now)
        if not self._dirty and now < self._admits_at:
            self._recheck_at = min(self._admits_at, self._held.next_at)
            return
        admission = self.admission(now)
        self._dirty = False
        self._admits_at = admission.recheck_at
        self._recheck_at = min(self._admits_at, self._held.next_at)
        pool = list(admission.pool)
        if not pool:
            self._picker = None
            self._pool = []
            return
        endpoints = [c.endpoint for c in pool]
        if self._picker is None or pool != self._pool or endpoints != self._endpoints:
            self._picker = None
            self._dirty = True  # should the policy raise, it is asked again at the next pick
            picker = self.policy.picker(pool, self._previous)
            if not callable(getattr(picker, "pick", None)):
                raise TypeError(f"picker() returned {picker!r}; expected an object with pick(call, now, rng)")
            self._dirty = False
            self._picker = self._previous = picker
            self._pool = pool
            self._endpoints = endpoints

    # ---- looking at it ----

    def unpicked(self, now: float) -> Unpicked:
        """Why there is nothing to pick, when there is nothing."""
        return none_ready(self.target, self._members, now)

    def rule(self) -> str:
        """How the latest pick was made, in the policy's words; empty before the first one, or when it has none."""
        explain = getattr(self._picker, "explain", None)
        if explain is None:
            return ""
        try:
            return str(explain())
        except Exception as error:  # noqa: BLE001 - a user's code, asked while looking for what is wrong
            return f"explain() failed: {error!r}"

    @property
    def resolution(self) -> Resolution | None:
        """The set as the resolver told it last; None before its first answer."""
        return self._members.resolution

    @property
    def resolver_error(self) -> str:
        """What the resolver complains of now; empty when all is well."""
        return self._members.resolver_error

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All endpoints of the set, picked or not."""
        return list(self._members.candidates.values())

    @property
    def leaving(self) -> Sequence[Candidate]:
        """Endpoints that are no longer in the set, on which attempts still run."""
        return list(self._members.leaving.values())

    def state(self) -> Connectivity:
        """The whole set's connectivity, by gRPC's aggregation rule."""
        return self._members.state()

    def __repr__(self) -> str:
        of = len(self._members.candidates)
        return f"<Balancer {self.target} {self.policy.name} {len(self._pool)} of {of} admitted>"
