"""The set of endpoints of one channel, and the choice among them.

::

    resolver ──update──►  candidates  ──►  admitted  ──policy──►  picker ──pick──► Attempt
    watchers ─connectivity─►  ▲                                                      │
                              └───────── load · breaker · last error ◄────ended──────┘

*Which endpoints are admitted*, in this order (the one rule that combines what is known):

1. those the resolver names (Consul's health has already left out the critical ones);
2. of these the READY ones: a call is only sent where a connection stands, so that "never
   found a connection" is known and not guessed. With ``health=`` an endpoint that says
   NOT_SERVING on gRPC's health watch is not READY (gRFC A17), and those that do not know the
   service are used only while no other one is READY: then its name is probably wrong;
3. of these the ones whose breaker admits, as far as the pool can do without the others
   (`lb.core.ejection`): the last endpoint is never refused (*panic*);
4. of these the ones with a weight above 0. When there are none, weights do not count.

Among the admitted the policy chooses. An endpoint at its concurrency limit is passed over for
one that has room; when none has, the call waits in a short line, or is refused.

The picker is a snapshot over that list. It is rebuilt at the next pick after something
changed, so a burst of changes costs one rebuild, and endpoints that stay keep their state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random

from grpc import StatusCode

from lb.core.breaker import REFUSED, Breaker, State, Transition
from lb.core.candidate import Candidate, Connectivity
from lb.core.comparison import AGAIN_S, Comparison
from lb.core.concurrency import ConcurrencyLimit, StreamLimit
from lb.core.ejection import Ejection
from lb.core.endpoint import Endpoint, Resolution
from lb.core.outcome import OK, Origin, Outcome, Verdict
from lb.core.policies.base import CallInfo, Picker, Policy
from lb.core.pulse import BEAT_S, Pulse
from lb.core.throttle import ThrottleState

READY = Connectivity.READY
_DRAWS = 4
"""So often a policy is asked for an endpoint that was not tried, before one is drawn."""
_SHOWN = 5
"""So many endpoints, or reasons, are named in a message."""
_ANSWERS = 4
"""Who refuses everything for as long as so many of its answers take has nothing under way that will be one."""
_AGAIN_S = 9.0
"""Who answers its probes, but fails, is asked again after so many seconds at most ..."""
_BLAMED_AGAIN_S = 3.0
"""... and who was blamed for bad answers after so many: now and then a healthy one answers badly, too ..."""
_USUAL_RATE = 40.0
"""... while each endpoint that is left out has so many calls a second for it; with fewer calls, by as much later."""
_HELD_S = 1.0
"""A quick error keeps its place for so many seconds at most."""
_LOOKED_AT = 8
"""The latency of an endpoint without good answers is taken from the first so many others."""
FULL = "every endpoint is at its concurrency limit"
RESOLVER_GRACE_S = 1.0
"""How long calls wait for a first answer of a resolver that reports errors; then they fail (or wait for ready)."""
# Reading a member of an enum costs more than reading a global, and these stand on the hot path.
_CLOSED = State.CLOSED
_SUCCESS, _FAILURE, _IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
_LATE, _CLOSING, _PEER = Origin.LATE, Origin.CLOSING, Origin.PEER
_REFUSED = Origin.REFUSED

Ended = Callable[[Candidate, Outcome, float, float], object]
"""A policy's optional hook: candidate, outcome, duration in seconds, now."""


class Attempt:
    """One try of one call on one endpoint; also the permit that its outcome gives back."""

    __slots__ = (
        "answered_at",
        "breaker_state",
        "candidate",
        "ended_at",
        "generation",
        "number",
        "outcome",
        "span",
        "started_at",
        "why",
    )

    def __init__(self, candidate: Candidate, generation: int, number: int, why: str, now: float) -> None:
        self.candidate = candidate
        self.generation = generation
        self.number = number
        """1 is the first of its call."""
        self.why = why
        """Why there is another attempt: a retry or a hedge, and what led to it; empty for the first."""
        self.started_at = now
        """Monotonic seconds, as all instants here."""
        self.answered_at: float | None = None
        """When a stream's first response came; its latency ends there."""
        self.ended_at: float | None = None
        self.outcome: Outcome | None = None
        """How it ended; None while it runs."""
        self.breaker_state = candidate.breaker.state
        """Its endpoint's breaker's, when it began."""
        self.span: object = None  # belongs to the telemetry listener

    @property
    def endpoint(self) -> Endpoint:
        """Where it went."""
        return self.candidate.endpoint

    @property
    def endpoint_id(self) -> str:
        """The id of the instance it went to."""
        return self.candidate.endpoint.id

    @property
    def address(self) -> str:
        """The address it went to."""
        return self.candidate.endpoint.address

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; None while it runs."""
        return None if self.ended_at is None else self.ended_at - self.started_at

    def __repr__(self) -> str:
        ended = "running" if self.outcome is None else self.outcome.reason()
        return f"<Attempt {self.number} on {self.endpoint}: {ended}{self.why and f'; {self.why}'}>"


@dataclass(frozen=True, slots=True)
class Unpicked:
    """There is nothing to pick. ``wait``: that may pass by itself; else calls should fail.

    ``full``: every admitted endpoint is at its concurrency limit.
    """

    message: str
    wait: bool
    full: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update did: who is new, in the order in which to connect, and whose connection can be closed now."""

    added: Sequence[Candidate]
    closable: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Admission:
    """Which endpoints may be picked at one moment.

    ``panic``: breakers do not count as they should, for too few could be used; why, in words, and empty when they do.
    ``recheck_at`` is the instant from which an open breaker may admit again, ``inf`` when there is none.
    """

    pool: Sequence[Candidate]
    panic: str
    recheck_at: float

    def refusal(self, candidate: Candidate, now: float) -> str:
        """Why a candidate is not picked; empty when it is."""
        if candidate.connectivity is not READY:
            state = candidate.connectivity.value
            return f"not connected ({state}{f': {candidate.trouble}' if candidate.trouble else ''})"
        if candidate in self.pool:
            return ""
        if candidate.unserved:
            return "it does not know the service whose health is watched"
        if not candidate.breaker.admits(now):
            if candidate.breaker.state is State.HALF_OPEN:
                return "breaker half-open, a probe is out"
            left = (candidate.breaker.retry_at or now) - now
            why = "; ".join(filter(None, (candidate.breaker.blamed, candidate.last_error))) or "failures"
            return f"breaker open for {left:.1f} s more ({why})"
        return "weight 0"


def _troubles(failing: Sequence[Candidate]) -> str:
    """Why these have no connection, each reason once with those it holds for."""
    reasons: dict[str, list[Candidate]] = {}
    for candidate in failing:
        reasons.setdefault(candidate.trouble or "no connection", []).append(candidate)
    shown = []
    for reason, those in list(reasons.items())[:_SHOWN]:
        names = ", ".join(str(candidate.endpoint) for candidate in those[:_SHOWN])
        shown.append(f"{names}{_more(len(those))}: {reason}")
    left = sum(len(those) for those in list(reasons.values())[_SHOWN:])
    return "; ".join(shown) + (f"; and {left} more" if left else "")


def _more(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""


@dataclass(slots=True)
class Counts:
    """What a channel has met since it was made. An object of its own: metrics keep it when the channel is gone."""

    refused: int = 0
    """Calls that found no place below the concurrency limits, in line or in time; they count themselves."""
    resolver_errors: int = 0
    """How often the resolver could not read its source."""


class Balancer:
    """Owns the candidates and the picker. Not thread-safe: the driver calls it from one place."""

    __slots__ = (  # with more than 30 attributes a dictionary is slower
        "__weakref__",
        "_admits_at",
        "_breaker",
        "_candidates",
        "_comparison",
        "_dirty",
        "_ejection",
        "_ended",
        "_endpoints",
        "_held",
        "_in_order",
        "_leaving",
        "_picker",
        "_pool",
        "_previous",
        "_recheck_at",
        "_refusals",
        "_refused_s",
        "_resolver_failing_since",
        "_serial",
        "_slow_s",
        "_unanswered_s",
        "_weights",
        "counts",
        "limit",
        "needs_metadata",
        "policy",
        "pulse",
        "report",
        "resolution",
        "resolver_error",
        "rng",
        "target",
        "throttle",
        "waiting",
    )

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
        self.waiting = 0
        """How many calls wait in line for a place below the concurrency limit; they count themselves."""
        self.counts = Counts()
        self.limit = limit
        self.throttle = throttle
        self._ejection = ejection or Ejection()
        self._slow_s = inf if breaker.slow_call_s is None else breaker.slow_call_s
        self._refused_s = inf if breaker.refused_s is None else breaker.refused_s
        self._refusals = breaker.consecutive_failures or inf
        self._unanswered_s = inf if breaker.unanswered_s is None else breaker.unanswered_s
        self._weights: dict[str, int] = {}
        self.resolution: Resolution | None = None
        self.resolver_error = ""
        self._resolver_failing_since: float | None = None
        self._breaker = breaker
        self._candidates: dict[tuple[str, str], Candidate] = {}
        self._leaving: dict[tuple[str, str], Candidate] = {}
        """Retired, and in use still."""
        self._picker: Picker | None = None
        self._previous: Picker | None = None
        self._pool: list[Candidate] = []
        self._endpoints: list[Endpoint] = []
        self._dirty = True
        self._recheck_at = inf
        """When the picker is to be looked at: an open breaker may admit, or a place that is held becomes free."""
        self._admits_at = inf
        self._held: list[tuple[float, int, Candidate]] = []
        """Places that quick errors keep, a heap by the instant until when."""
        self._serial = count()
        self._comparison = Comparison(0.0)
        self.pulse = Pulse()
        """For how long the driver was held; it puts its own here."""
        self._take_policy(policy)

    # ---- what the resolver and the connections say ----

    def update(self, resolution: Resolution) -> Changes:
        """Take over a new set. Endpoints whose key stays keep connection, breaker and load.

        So do those that left and come back while attempts on them run: it is the same process, and a second record
        of it would let in as many calls again.
        """
        old = self._candidates
        fresh: dict[tuple[str, str], Candidate] = {}
        added = []
        kept = 0
        for endpoint in resolution.endpoints:
            key = endpoint.key
            if key in fresh:
                continue  # named twice
            candidate = old.get(key)
            if candidate is not None:
                kept += 1
            elif self._leaving and (candidate := self._leaving.pop(key, None)) is not None:
                candidate.retired = False
            if self._weights and endpoint.id in self._weights:
                endpoint = replace(endpoint, weight=self._weights[endpoint.id])
            if candidate is None:
                limit = None if self.limit is None else self.limit.new_state()
                candidate = Candidate(endpoint, self._breaker.new_state(), limit)
                added.append(candidate)
            elif candidate.endpoint is not endpoint and candidate.endpoint != endpoint:
                candidate.endpoint = endpoint
                candidate.weight = max(1, endpoint.weight)
            fresh[key] = candidate
        closable = []
        if kept < len(old):
            for key, candidate in old.items():
                if key not in fresh:
                    candidate.retired = True
                    if candidate.closable:
                        closable.append(candidate)
                    else:
                        self._leaving[key] = candidate
        if not self._in_order:
            # Whoever is connected first gets all calls that wait by then: not the same one from every client.
            self.rng.shuffle(added)
        self._candidates = fresh
        self.resolution = resolution
        self.resolver_error = ""
        self._resolver_failing_since = None
        self._dirty = True
        return Changes(added, closable)

    def resolver_failed(self, message: str, now: float) -> None:
        """The resolver can not read its source. What it said last stands; without that, calls wait a moment only."""
        self.resolver_error = message
        self.counts.resolver_errors += 1
        if self._resolver_failing_since is None:
            self._resolver_failing_since = now

    def set_connectivity(
        self, candidate: Candidate, state: Connectivity, now: float, trouble: str = "", *, unserved: bool = False
    ) -> bool:
        """A connection changed. ``trouble`` says why it failed, if it did.

        ``unserved``: it stands, and the endpoint does not know the service whose health is watched.

        Drivers report the loss of a connection also when another one stands by then.

        True when the resolver should look again, since other instances may be known by now: a connection was
        lost, or making one begins to fail.
        """
        look_up = candidate.connectivity is READY and state is not READY
        if look_up:
            candidate.lost_at = now
            if isinstance(candidate.limit, StreamLimit):  # it was that connection's
                candidate.limit = candidate.limit.own
        candidate.connectivity = state
        candidate.unserved = unserved
        if state is READY:
            if candidate.ready_since is None:
                candidate.ready_since = now
            candidate.failing_since = None
            candidate.trouble = ""
        elif state is Connectivity.TRANSIENT_FAILURE and candidate.failing_since is None:
            candidate.failing_since = now
            look_up = True
        if state is not READY and state is not Connectivity.IDLE:  # an idle one is as warm as it was
            candidate.ready_since = None
        if trouble:
            candidate.trouble = trouble
        self._dirty = True
        return look_up

    def nobody_serves(self) -> bool:
        """Whether no endpoint knows the service whose health is watched, as far as all were heard of."""
        candidates = self._candidates.values()
        return any(c.unserved for c in candidates) and all(
            c.unserved or c.failing_since is not None for c in candidates
        )

    def sleep(self, now: float) -> bool:
        """All connections are about to be closed for want of calls: from now on none is picked.

        False, and nothing is changed, when an attempt runs. One step, so that threads may pick meanwhile.
        """
        if any(candidate.running for candidate in self._candidates.values()):
            return False
        for candidate in self._candidates.values():
            self.set_connectivity(candidate, Connectivity.IDLE, now)
            candidate.failing_since = None  # who wakes up finds out anew: it may be back since long ago
            candidate.trouble = ""
        return True

    def change_policy(self, policy: Policy) -> None:
        """Choose by another policy from the next pick on."""
        self._take_policy(policy)
        self._previous = None
        self._pool = []
        for candidate in (*self._candidates.values(), *self._leaving.values()):
            candidate.stats = None  # the old policy's
        self._dirty = True

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next pick on these weights hold, by endpoint id, whatever the resolver says.

        The mapping replaces the one before; an empty one gives the resolver its word back.
        """
        self._weights = dict(weights)
        if self.resolution is not None:
            failing_since, error = self._resolver_failing_since, self.resolver_error
            self.update(self.resolution)
            self._resolver_failing_since, self.resolver_error = failing_since, error

    def _take_policy(self, policy: Policy) -> None:
        self.policy = policy
        self.needs_metadata: bool = getattr(policy, "needs_metadata", False)
        """Whether a pick must wait until the call's metadata is known."""
        self._in_order: bool = getattr(policy, "in_order", False)
        compares = self._breaker.opens and getattr(policy, "spreads", False)
        self._comparison.ratio = (self._breaker.good_ratio or 0.0) if compares else 0.0
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
        if self._dirty or now >= self._recheck_at:
            self._rebuild(now)
        picker = self._picker
        if picker is None:
            return self.unpicked(now)
        candidate: Candidate = picker.pick(call, now, self.rng)  # type: ignore[assignment]  # made from our candidates
        try:
            retired = candidate.retired
        except AttributeError:
            raise TypeError(f"pick() returned {candidate!r}; expected one of the picker's candidates") from None
        if retired:
            raise LookupError(f"pick() returned {candidate.endpoint.id}, which is gone; expected one of the candidates")
        if tried and candidate in tried:
            candidate = self._elsewhere(call, now, tried) or candidate
        limit = candidate.limit
        # `Candidate.running`, written out: a property costs every call a frame.
        if (
            limit is not None
            and (running := candidate.in_flight - candidate.held) >= limit.limit
            and not limit.grows(running, now)
        ):
            roomy = self._with_room(tried)
            if roomy is None:
                return Unpicked(f"{self.target}: {FULL}", wait=True, full=True)
            candidate = roomy
        return self._admit(candidate, now, number, why)

    def pick_another(
        self, call: CallInfo | None, now: float, number: int, why: str, tried: Sequence[Candidate]
    ) -> Attempt | None:
        """An attempt beside those that run, on an endpoint that was not tried; None when there is none."""
        if self._dirty or now >= self._recheck_at:
            self._rebuild(now)
        candidate = self._elsewhere(call, now, tried)
        return None if candidate is None else self._admit(candidate, now, number, why)

    def _admit(self, candidate: Candidate, now: float, number: int, why: str) -> Attempt:
        breaker = candidate.breaker
        generation = breaker.generation if breaker.state is _CLOSED else breaker.acquire(now)
        attempt = Attempt(candidate, generation, number, why, now)
        if generation and attempt.breaker_state is not _CLOSED:
            self._dirty = True  # a probe's place is taken now: the next pick goes elsewhere
        candidate.in_flight += 1
        candidate.picks += 1
        return attempt

    def answered(self, attempt: Attempt, now: float) -> None:
        """A stream's first response came.

        That is all its probe had to show: its end may be hours away, and the endpoint would stay out for as long.
        """
        attempt.answered_at = now
        if attempt.breaker_state is not _CLOSED:
            late = self.pulse.ran_s(attempt.started_at, now) >= self._slow_s
            verdict = _FAILURE if late else _SUCCESS
            if attempt.candidate.breaker.release(attempt.generation, verdict, now, self.rng) is not None:
                self._dirty = True

    def silent(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """An attempt had no response for so long that it counts as ``outcome``, though it goes on.

        That was its one outcome: what it ends with decides nothing at the breaker any more.
        """
        candidate, generation = attempt.candidate, attempt.generation
        if attempt.ended_at is not None:  # meanwhile
            return
        attempt.generation = REFUSED
        candidate.last_error = outcome.reason()
        if candidate.limit is not None:
            candidate.limit.overloaded()
        move = candidate.breaker.release(generation, outcome.verdict, now, self.rng)
        if move is not None or (generation and candidate.breaker.state is not _CLOSED):
            self._moved(candidate, move)

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> Candidate | None:
        """Give an attempt back with its outcome, at its true end.

        Returns the candidate when it is retired and this was its last attempt: close its connection.
        A policy's hook is called last and may raise; all else is done by then.
        """
        candidate = attempt.candidate
        attempt.outcome = outcome
        attempt.ended_at = now
        candidate.in_flight -= 1
        verdict = outcome.verdict
        answered_at = attempt.answered_at
        took_s = (now if answered_at is None else answered_at) - attempt.started_at
        if took_s >= BEAT_S:  # what held the driver says nothing of the endpoint
            took_s = self.pulse.ran_s(attempt.started_at, attempt.started_at + took_s)
        limit = candidate.limit
        if outcome is OK:  # an error is quick, and says nothing of how long an answer takes
            self._comparison.good += 1
            candidate.load.observe(took_s, now)
            if self.throttle is not None:
                self.throttle.succeeded()
            if limit is not None:
                limit.observe(took_s, candidate.in_flight - candidate.held + 1)
        else:
            if outcome.origin is _PEER or outcome.origin is _REFUSED:
                self._hold(candidate, attempt.started_at, now)
            if verdict is _FAILURE:
                candidate.last_error = outcome.reason()
            if limit is not None and (outcome.pushback_s is not None or outcome.origin is Origin.ATTEMPT_TIMEOUT):
                limit.overloaded()
            if outcome.origin is _REFUSED and attempt.started_at > candidate.lost_at:
                if not isinstance(limit, StreamLimit):
                    limit = candidate.limit = StreamLimit(limit)
                limit.refused(candidate.running, now)
            if (
                outcome.origin is Origin.CALLER
                and outcome.code is StatusCode.DEADLINE_EXCEEDED
                and answered_at is None
                and took_s >= self._unanswered_s
            ):
                verdict = _FAILURE
                candidate.last_error = f"no answer in {took_s:.1f} s, when the caller's deadline passed"
        if took_s >= self._slow_s and verdict is not _FAILURE:
            # Too slow is a failure of its own, whatever came of it: a hung endpoint shows in nothing
            # but its callers' deadlines. An attempt that lost a race after that long is no exception.
            verdict = _FAILURE
            candidate.last_error = f"slower than {self._slow_s:g} s"
        generation, breaker = attempt.generation, candidate.breaker
        if outcome is OK:
            move = breaker.release(generation, verdict, now, self.rng)
        elif verdict is _IGNORED and outcome.origin is _LATE:
            candidate.last_error = "answers came from elsewhere, much sooner"
            move = breaker.late(generation, now, self.rng)
        elif (
            verdict is not _FAILURE
            and (outcome.pushback_s is not None or outcome.origin is _REFUSED)
            and self._refuses_all(candidate, now)
        ):
            candidate.last_error = outcome.reason()
            move = breaker.refused(generation, now, self.rng)
        elif outcome.origin is _CLOSING:
            move = None  # the permit is given back when that is `judged`
        elif outcome.bad:
            move = self._answered_badly(attempt, outcome, verdict, now)
        else:
            move = breaker.release(generation, verdict, now, self.rng)
        # It moved, or an ignored probe gave its place back. (A call let through in panic, 0, decides nothing.)
        if move is not None or (generation and breaker.state is not _CLOSED):
            self._moved(candidate, move)
        closable = candidate.retired and candidate.closable
        if closable:
            self._leaving.pop(candidate.endpoint.key, None)
        if self._ended is not None:
            self._ended(candidate, outcome, took_s, now)
        return candidate if closable else None

    def judged(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """What an attempt that ended with a doubtful outcome (``CLOSING``) has been found to be."""
        attempt.outcome = outcome
        candidate, breaker = attempt.candidate, attempt.candidate.breaker
        if outcome.verdict is _FAILURE:
            candidate.last_error = outcome.reason()
        if outcome.bad:
            self._hold(candidate, attempt.started_at, now)
            move = self._answered_badly(attempt, outcome, outcome.verdict, now)
        else:
            move = breaker.release(attempt.generation, outcome.verdict, now, self.rng)
        if move is not None or (attempt.generation and breaker.state is not _CLOSED):
            self._moved(candidate, move)

    def _moved(self, candidate: Candidate, move: Transition | None) -> None:
        """Who is admitted has changed: a breaker has made this move, or a probe's place is free."""
        self._dirty = True
        if move is not None and move.after is State.OPEN:
            candidate.opened = move.at, self._comparison.answers

    def _answered_badly(self, attempt: Attempt, outcome: Outcome, verdict: Verdict, now: float) -> Transition | None:
        """Give back an attempt that a server answered badly; the breaker's move, if it makes one."""
        candidate, generation, rng = attempt.candidate, attempt.generation, self.rng
        breaker = candidate.breaker
        if generation != breaker.generation or breaker.state is not _CLOSED:
            self._comparison.count_bad(candidate)
            if breaker.blamed:
                verdict = _FAILURE
                candidate.last_error = outcome.reason()
            elif verdict is _IGNORED and self._comparison.ratio:
                verdict = _SUCCESS  # it answers; whether badly, is for the comparison to say
            if generation == breaker.generation:
                again_s = _BLAMED_AGAIN_S if breaker.blamed else _AGAIN_S
                return breaker.release(generation, verdict, now, rng, self._longest_s(candidate, now, again_s))
            if verdict is _FAILURE and breaker.state is _CLOSED and self._closed_by(attempt, now):
                reason = breaker.blamed or "the stream whose first message closed it failed"
                longest_s = self._longest_s(candidate, now, _BLAMED_AGAIN_S)
                return breaker.blame(breaker.generation, now, rng, reason, longest_s)
            return None
        turn = getattr(self._picker, "turn", None)
        reason = self._comparison.answered_badly(candidate, now, in_turn=turn is not None)
        if turn is not None and candidate.suspicion is not None and candidate.suspicion.moves_turn:
            turn(rng)
        move = breaker.release(generation, verdict, now, rng)
        if move is None and reason:
            candidate.last_error = outcome.reason()
            move = breaker.blame(generation, now, rng, reason, self._longest_s(candidate, now, _BLAMED_AGAIN_S))
        return move

    def _closed_by(self, attempt: Attempt, now: float) -> bool:
        """Whether its first response has just closed the breaker. (Its end shows that this was too soon.)"""
        breaker = attempt.candidate.breaker
        return (
            attempt.answered_at is not None
            and attempt.breaker_state is not _CLOSED
            and attempt.generation == breaker.generation - 1
            and now - attempt.answered_at < AGAIN_S
        )

    def _longest_s(self, candidate: Candidate, now: float, again_s: float) -> float:
        """How long an endpoint stays out whose probe has just failed, but was answered.

        Such a probe costs one call its answer, or a retry. So there may be one every few seconds, as long as that
        is a small part of all calls: at `_USUAL_RATE` one in 300 or so, and one in 100 of who was blamed.
        """
        since, answers = candidate.opened
        answers = self._comparison.answers - answers
        if not answers:
            return inf
        out = sum(c.breaker.state is not _CLOSED for c in self._candidates.values())
        return again_s * max(1.0, _USUAL_RATE * out * (now - since) / answers)

    def _hold(self, candidate: Candidate, started_at: float, now: float) -> None:
        """A server's error came: its place counts as taken for as long as a good answer takes.

        Else who fails at once looks like the least loaded one, and policies that go by load would prefer it.
        """
        load = candidate.load
        if load.samples:
            usual_s = load.latency_s
        else:
            usual_s = max((c.load.latency_s for c in self._pool[:_LOOKED_AT]), default=0.0)
        until = started_at + min(usual_s, _HELD_S)
        if until > now:
            candidate.in_flight += 1
            candidate.held += 1
            heappush(self._held, (until, next(self._serial), candidate))
            self._recheck_at = min(self._recheck_at, until)

    def _let_go(self, now: float) -> None:
        """Free the places whose time is over."""
        held = self._held
        while held and held[0][0] <= now:
            candidate = heappop(held)[2]
            candidate.in_flight -= 1
            candidate.held -= 1

    def _refuses_all(self, candidate: Candidate, now: float) -> bool:
        """It has refused one more call: whether it did nothing else for so long (a refused probe is enough).

        It answers at once, and so it looks like the least loaded one of all. One that is merely full answers what
        it has taken within a few of its latencies.
        """
        if candidate.breaker.state is not _CLOSED:
            return True
        answers = candidate.load.samples + candidate.bad
        if not candidate.refusals or candidate.refused_after != answers:
            candidate.refusals, candidate.refused_after, candidate.refusing_since = 0, answers, now
        candidate.refusals += 1
        long_s = max(self._refused_s, _ANSWERS * candidate.load.latency_s)
        return candidate.refusals >= self._refusals and now - candidate.refusing_since >= long_s

    def admission(self, now: float) -> Admission:
        """Which endpoints are admitted, by the rule at the top of this file. Changes nothing."""
        ready = [c for c in self._candidates.values() if c.connectivity is READY and not c.unserved]
        if not ready:
            ready = [c for c in self._candidates.values() if c.connectivity is READY]
        refusing = [c for c in ready if c.breaker.state is not _CLOSED and not c.breaker.admits(now)]
        recheck_at = min((c.breaker.retry_at or inf for c in refusing), default=inf)
        known = sum(c.was_ready for c in self._candidates.values()) if refusing else 0
        pool, panic = self._ejection.pool(ready, refusing, known)
        pool = [c for c in pool if c.endpoint.weight > 0] or pool
        return Admission(pool, panic, recheck_at)

    def _rebuild(self, now: float) -> None:
        if self._held:
            self._let_go(now)
            if not self._dirty and now < self._admits_at:
                self._recheck_at = min(self._admits_at, self._held[0][0] if self._held else inf)
                return
        admission = self.admission(now)
        self._dirty = False
        self._admits_at = admission.recheck_at
        self._recheck_at = min(self._admits_at, self._held[0][0] if self._held else inf)
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

    def _with_room(self, tried: Sequence[Candidate]) -> Candidate | None:
        """An admitted endpoint below its concurrency limit, untried if there is one; None when all are full."""
        found = None
        for pool in self._by_preference():
            start = int(self.rng.random() * len(pool))
            for at in range(start - len(pool), start):  # all of them, from a random one on
                candidate = pool[at]
                if candidate.limit is None or candidate.running < candidate.limit.limit:
                    if candidate not in tried:
                        return candidate
                    found = found or candidate
        return found

    def _by_preference(self) -> Sequence[Sequence[Candidate]]:
        """Where to look for another endpoint: among those that the picker ``prefers``, then among all admitted."""
        prefers: Sequence[Candidate] | None = getattr(self._picker, "prefers", None)
        return (self._pool,) if prefers is None else (prefers, self._pool)

    def _elsewhere(self, call: CallInfo | None, now: float, tried: Sequence[Candidate]) -> Candidate | None:
        """An admitted endpoint with room that was not tried yet; None when there is none.

        The policy is asked when asking has no effect on later picks (``repeatable`` pickers: those
        that look at load do best here, too). A sequence is meant for first attempts: a retry that takes
        a turn of it would send the next ones to the same broken endpoint more often. Then it is the
        less loaded of two, drawn by weight.
        """
        picker = self._picker
        if getattr(picker, "repeatable", False):
            assert picker is not None
            for _ in range(_DRAWS):
                candidate: Candidate = picker.pick(call, now, self.rng)  # type: ignore[assignment]  # as in pick
                if candidate not in tried and (candidate.limit is None or candidate.running < candidate.limit.limit):
                    return candidate
        for pool in self._by_preference():
            others = [c for c in pool if c not in tried and (c.limit is None or c.running < c.limit.limit)]
            if others:
                one, two = self.rng.choices(others, [c.weight for c in others], k=2)
                return two if two.in_flight * one.weight < one.in_flight * two.weight else one
        return None

    def unpicked(self, now: float) -> Unpicked:
        """Why there is nothing to pick, when there is nothing."""
        if self.resolution is None:
            why = f": {self.resolver_error}" if self.resolver_error else ""
            # A source that can not be read for a while is away: calls should say so, as gRPC's do.
            since = self._resolver_failing_since
            wait = since is None or now < since + RESOLVER_GRACE_S
            return Unpicked(f"{self.target} is not resolved yet{why}", wait)
        if not self._candidates:
            note = self.resolution.note or "the resolver knows none"
            return Unpicked(f"{self.target} has no endpoint: {note}", wait=False)
        failing = [c for c in self._candidates.values() if c.failing_since is not None]
        if len(failing) < len(self._candidates):
            return Unpicked(f"{self.target}: connecting to {len(self._candidates)} endpoint(s)", wait=True)
        return Unpicked(f"{self.target}: no endpoint can be reached: {_troubles(failing)}", wait=False)

    # ---- looking at it ----

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
    def candidates(self) -> Sequence[Candidate]:
        """All endpoints of the set, picked or not."""
        return list(self._candidates.values())

    @property
    def leaving(self) -> Sequence[Candidate]:
        """Endpoints that are no longer in the set, on which attempts still run."""
        return list(self._leaving.values())

    def state(self) -> Connectivity:
        """The whole set's connectivity, by gRPC's aggregation rule.

        READY if any is; else CONNECTING, if any connects for the first time or nothing is
        resolved yet; else IDLE, if any is; else TRANSIENT_FAILURE.
        """
        if self.resolution is None:
            return Connectivity.CONNECTING
        if not self._candidates:
            return Connectivity.TRANSIENT_FAILURE
        best = Connectivity.TRANSIENT_FAILURE
        for candidate in self._candidates.values():
            if candidate.connectivity is READY:
                return READY
            if candidate.failing_since is None:
                if candidate.connectivity is Connectivity.CONNECTING:
                    best = Connectivity.CONNECTING
                elif best is not Connectivity.CONNECTING:
                    best = Connectivity.IDLE
        return best

    def __repr__(self) -> str:
        return f"<Balancer {self.target} {self.policy.name} {len(self._pool)} of {len(self._candidates)} admitted>"
