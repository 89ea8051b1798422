"""One logical call as a sequence of actions. Drivers perform them; the rules are here.

::

    begin ──► Attempt ──ended──► Done                     the attempt's status is the call's
      │          ▲         ├───► Failed                   the call's own status
      │          │         ├───► Others                   a hedge still runs: wait for it, begin one more
      │          │         └───► Pause ──resume──► ...    try again after so long
      ▼          │
    Queued ──────┘  resume, when the balancer changed, or a place is free (``line``)
      └─► expired ──► Failed

A driver that gets an `Attempt` sends it and reports its `Outcome`; `Queued` makes it wait for
a change of the balancer, `Pause` for a time; both end early at the deadline (`expired`). While
an attempt runs, a driver asks for a `hedge` each time `hedge_delay_s` has passed, and once, when its
``attempt_timeout_s`` has passed without a response, whether it is `overdue`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, overload

from grpc import StatusCode

from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.budget import BudgetState
from lb.core.hedging import Hedging
from lb.core.outcome import Origin, Outcome, Retryable, classify
from lb.core.quantile import Quantile
from lb.core.retry import Again, GiveUp, Retry, decide
from lb.core.throttle import ThrottleState
from lb.core.unpicked import FULL, Unpicked
from lb.core.words import lost_in_time

_UNSENT_PAUSE_S = 0.01
_UNSENT_PAUSE_MOST_S = 0.5
_MOST_UNSEEN = {Origin.UNPROCESSED: 20, Origin.REFUSED: 1}
"""Transparent retries of one call, by what led to the last one; after these a retry is as any other.

Words alone may be passed on from behind a server: so only one follows them.
"""
_UNSEEN_AT_ONCE = 3
_UNSEEN_PAUSE_S = 0.005
_UNSEEN_PAUSE_MOST_S = 0.25
_DOUBT_S = 0.005
_DOUBT_MOST_S = 0.1
"""How long after a call's status the report that its connection was lost may still arrive."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait ``delay_s`` seconds, then ``resume``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """Wait until the balancer changed, then ``resume``. ``message`` says for what.

    ``line_s``: wait in the channel's line for a place below the concurrency limit, at most for so
    many seconds; then ``refused``.
    """

    message: str
    line_s: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The call ends with a status of our own."""

    code: StatusCode
    details: str


class Done:
    """The call ends with the status of its last attempt."""


@dataclass(frozen=True, slots=True)
class Others:
    """Another attempt of this call still runs: what it brings decides.

    Meanwhile ask for the next hedge after ``delay_s`` seconds; None: for no more.
    """

    delay_s: float | None


DONE = Done()
Action = Attempt | Pause | Queued | Failed | Done | Others


@dataclass(slots=True)
class Tally:
    """What was counted of one method, or of several that go by one ``label`` in the metrics."""

    label: str
    attempts: int = 0
    """How many were started."""


@dataclass(frozen=True, slots=True)
class Method:
    """What all calls of one method share.

    ``name`` is ``/package.Service/Method``; ``idempotent`` says that it may run twice without harm.
    ``timeout_s`` bounds each call besides the caller's own timeout, ``default_timeout_s`` is that of a call that
    gives none. ``hedging`` needs ``idempotent``,
    and a ``latency`` unless it has a fixed delay. ``overdue`` belongs to the driver: its watch over the attempts
    of a method that has an ``attempt_timeout_s``; else None.
    """

    name: str
    idempotent: bool
    balancer: Balancer
    retry: Retry
    budget: BudgetState | ThrottleState
    hedging: Hedging | None = None
    latency: Quantile | None = None
    timeout_s: float | None = None
    default_timeout_s: float | None = None
    wait_for_ready: bool | None = None
    tally: Tally = field(default_factory=lambda: Tally(""))
    overdue: Any = None


class Call:
    """What is known of one call: its attempts, its deadline, and what may still be done.

    ``deadline`` is an instant on the driver's clock, or None.
    """

    # What a call that succeeds at once never sets stands here once, not in each of them.
    _why = ""
    slept_s = 0.0
    """How long it has waited between attempts."""
    _unseen = 0
    _unsent = 0
    _in_line = False
    _doubt: Outcome | None = None
    _no_hedges = False
    _promised: Again | None = None
    """What follows the attempt that was given up for it; the budget is charged already."""
    _pushed_back = 0
    """How many attempts it had when a server last said by push-back when to retry."""
    hedged = False
    """Whether the driver runs attempts beside each other: it does for one request and one response."""
    error: Exception | None = None
    """What a user's retry strategy raised; the driver tells it in its log."""
    gave_up = ""
    """Why the last failed attempt was not followed by another."""
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    """What the caller sends, for policies that read it."""

    def __init__(self, method: Method, deadline: float | None, wait_for_ready: bool | None, now: float) -> None:
        self.settings = method
        self._balancer = method.balancer
        self.attempts: list[Attempt] = []
        self._queued = False  # read of every call, and an attribute of the class is dear to read
        self.deadline = deadline
        self.wait_for_ready = method.wait_for_ready if wait_for_ready is None else wait_for_ready
        self.started_at = now

    @property
    def method(self) -> str:
        """``/package.Service/Method``."""
        return self.settings.name

    def begin(self, now: float) -> Action:
        """The first action."""
        self.settings.budget.deposit(now)
        if self.deadline is not None and now >= self.deadline:
            return self.expired(now)
        if self._balancer.waiting:  # nobody goes past the line
            return self._line(f"{self._balancer.target}: {FULL}")
        picked = self._balancer.pick(self, now)
        if type(picked) is Attempt:
            self.attempts.append(picked)
            self.settings.tally.attempts += 1
            return picked
        assert isinstance(picked, Unpicked)
        return self._unpicked(picked)

    def resume(self, now: float) -> Action:
        """Go on after a pause or a change of the balancer."""
        if self._doubt is not None:
            doubt, self._doubt = self._doubt, None
            self._queued = False
            if self.deadline is None or now < self.deadline:
                return self._follow(doubt, now)
            self._judged(doubt, now)
        if self.deadline is not None and now >= self.deadline:
            return self.expired(now)
        attempts = self.attempts
        if attempts:
            picked = self._balancer.pick(self, now, len(attempts) + 1, self._why, [a.candidate for a in attempts])
        else:
            picked = self._balancer.pick(self, now)
        if type(picked) is Attempt:
            if self._queued:
                self._queued = False
                self.leave_line()
            attempts.append(picked)
            self.settings.tally.attempts += 1
            return picked
        assert isinstance(picked, Unpicked)
        return self._unpicked(picked)

    def _unpicked(self, picked: Unpicked) -> Action:
        attempts = self.attempts
        if picked.full:
            return self._line(picked.message)
        self.leave_line()
        if picked.wait or self.wait_for_ready:
            self._queued = True
            return Queued(picked.message)
        if attempts:
            # The last attempt's own status says more than "no endpoint can be reached".
            self.gave_up = picked.message
            return DONE
        return Failed(StatusCode.UNAVAILABLE, picked.message)

    def _line(self, message: str) -> Action:
        limit = self._balancer.limit  # None: it is the server's own, which was learnt; core has no bound there, either
        if not self._in_line:
            waiting = self._balancer.waiting
            if limit is not None and waiting >= limit.queue:
                return self._refuse(f"{message} and {waiting} calls wait already")
            self._in_line = True
            self._balancer.waiting = waiting + 1
        self._queued = True
        return Queued(message, inf if limit is None else limit.queue_s)

    def leave_line(self) -> None:
        """It no longer waits for a place. Drivers say so of a call that ends, whatever it did before."""
        if self._in_line:
            self._in_line = False
            self._balancer.waiting -= 1
        if self._doubt is not None:  # it ends before the news came: as without them
            doubt, self._doubt = self._doubt, None
            self._judged(doubt, self._attempt_of(doubt).ended_at or self.started_at)

    def refused(self) -> Action:
        """It waited in line for as long as the limit lets a call wait."""
        self.leave_line()
        return self._refuse(f"{self._balancer.target}: no endpoint fell below its concurrency limit in time")

    def _refuse(self, message: str) -> Action:
        self._balancer.counts.refused += 1
        if self.attempts:
            self.gave_up = message
            return DONE
        return Failed(StatusCode.UNAVAILABLE, message)

    # ---- hedging ----

    def hedge_delay_s(self) -> float | None:
        """Seconds from an attempt to the next one beside it; None: no hedges for this call (now)."""
        hedging = self.settings.hedging
        if hedging is None or self._no_hedges or len(self.attempts) >= hedging.max_attempts:
            return None
        if hedging.delay_s is not None:
            return hedging.delay_s
        latency = self.settings.latency
        if latency is None or latency.value_s is None:
            return None
        return max(latency.value_s, hedging.least_delay_s)

    def hedge(self, now: float, why: str = "no answer yet") -> Attempt | None:
        """One more attempt beside those that run.

        None when there is no other endpoint with room, no budget (unless it is paid for already), or calls in line:
        those go first.
        """
        hedging, attempts = self.settings.hedging, self.attempts
        if hedging is None or self._no_hedges or len(attempts) >= hedging.max_attempts:
            return None
        paid = self._promised is not None
        if self._balancer.waiting or (not paid and self.settings.budget.balance(now) < 1):
            return None
        attempt = self._balancer.pick_another(
            self, now, len(attempts) + 1, f"hedge: {why}", [a.candidate for a in attempts]
        )
        if attempt is not None:
            if paid:
                self._promised = None
            else:
                self.settings.budget.withdraw(now)
            attempts.append(attempt)
            self.settings.tally.attempts += 1
        return attempt

    def _may_lose(self, outcome: Outcome) -> bool:
        """Whether a hedged call goes on with other attempts after this outcome."""
        hedging = self.settings.hedging
        if outcome.origin is Origin.CALLER:
            return False
        return (
            outcome.retryable is Retryable.ALWAYS
            or outcome.code is StatusCode.UNAVAILABLE  # also with "do not retry": see `_beside`
            or (outcome.retryable is Retryable.IF_IDEMPOTENT and self.settings.idempotent)
            or (hedging is not None and outcome.code in hedging.non_fatal)
        )

    # ---- while an attempt runs ----

    def overdue(self, attempt: Attempt, now: float, *, replayable: bool = True, running: int = 0) -> bool:
        """``attempt_timeout_s`` has passed without a response: whether the attempt is to be given up now.

        It is, when another may follow (or others run, and another may follow those). If none may, giving up could
        only fail the call early: the attempt goes on until the call's deadline, and the endpoint's breaker is told
        already. Without a deadline nothing else would end a call to an endpoint that hangs: it is given up, too.

        ``replayable``: the whole request is still at hand. ``running``: how many other attempts of this call run.
        """
        limit_s = self.settings.retry.attempt_timeout_s
        details = f"no response within the attempt's timeout of {limit_s:g} s"
        outcome = classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.ATTEMPT_TIMEOUT, details=details)
        if (replayable and self._promise(outcome, now, running)) or self.deadline is None:
            return True
        self._balancer.silent(attempt, outcome, now)
        return False

    def _promise(self, outcome: Outcome, now: float, running: int) -> bool:
        """Whether another attempt may follow this outcome. If it is to follow at once, it is paid for."""
        choice = self._decide(outcome, now)
        if isinstance(choice, GiveUp):
            self.error = choice.error
            return False
        if running:
            return self.settings.budget.balance(now) >= 1
        if self.deadline is not None and now + choice.delay_s >= self.deadline:
            return False
        if not self.settings.budget.withdraw(now):
            return False
        self._promised = choice
        return True

    # ---- after an attempt ----

    def ended(
        self, outcome: Outcome, now: float, *, committed: bool, replayable: bool = True, running: int = 0
    ) -> Action:
        """What follows a failed attempt (already given back to the balancer).

        ``committed``: the caller has seen response headers or a message (gRFC A6).
        ``replayable``: the whole request is still at hand.
        ``running``: how many other attempts of this call have not ended.
        """
        if running:
            return self._beside(self._judged(outcome, now))
        if committed or not replayable:
            outcome = self._judged(outcome, now)
            self._count(outcome, now)
            why = "the response had begun" if committed else "the request stream cannot be resent"
            return self._exhausted(outcome, why)
        if self.wait_for_ready and outcome.origin is Origin.UNSENT:
            # It asked to wait for a connection, and this one was gone before anything was sent.
            self._unsent += 1
            self._why = f"wait for ready: {outcome.reason()}"
            return self._pause(min(_UNSENT_PAUSE_S * len(self.attempts), _UNSENT_PAUSE_MOST_S), now)
        return self._follow(outcome, now)

    def _pause(self, pause_s: float, now: float) -> Pause:
        """So long, but not beyond the deadline."""
        return Pause(pause_s if self.deadline is None else max(0.0, min(pause_s, self.deadline - now)))

    def _follow(self, outcome: Outcome, now: float) -> Action:
        """What follows the last attempt, of which nothing was shown."""
        if self.settings.retry.enabled:
            if outcome.origin is Origin.CLOSING:
                judged = self._judged(outcome, now, may_wait=True)
                if judged is None:
                    self._doubt = outcome
                    self._queued = True  # should the call end meanwhile: see `leave_line`
                    return Pause(_DOUBT_S)
                outcome = judged
            if self._unseen < _MOST_UNSEEN.get(outcome.origin, 0) and (
                self.settings.idempotent or outcome.retryable is Retryable.ALWAYS
            ):
                return self._transparent(outcome, now)
        return self._again(self._judged(outcome, now), now)

    def _beside(self, outcome: Outcome) -> Action:
        """What follows a failure while other attempts run: gRFC A6's rules for hedges."""
        if not self._may_lose(outcome):
            return self._give_up(f"{outcome.code.name} ends all attempts")
        self._failed()
        pushback_s = outcome.pushback_s
        if pushback_s is not None and pushback_s < 0:
            self._no_hedges = True
        return Others(None if self._no_hedges else pushback_s or 0.0)

    def _transparent(self, outcome: Outcome, now: float) -> Action:
        """No server has looked at it: gRFC A6's transparent retry, outside of count and budget."""
        self._why = f"transparent: {outcome.reason()}"
        self._unseen += 1
        late = self._unseen - _UNSEEN_AT_ONCE
        if late <= 0:
            return self.resume(now)
        return self._pause(min(_UNSEEN_PAUSE_S * 2 ** (late - 1), _UNSEEN_PAUSE_MOST_S), now)

    def _attempt_of(self, outcome: Outcome) -> Attempt:
        return next((a for a in reversed(self.attempts) if a.outcome is outcome), self.attempts[-1])

    @overload
    def _judged(self, outcome: Outcome, now: float) -> Outcome: ...

    @overload
    def _judged(self, outcome: Outcome, now: float, *, may_wait: bool) -> Outcome | None: ...

    def _judged(self, outcome: Outcome, now: float, *, may_wait: bool = False) -> Outcome | None:
        """The outcome, without doubt: whether a connection was lost as a status says. None: not known yet.

        The news of a loss may come a little later than the status.
        """
        if outcome.origin is not Origin.CLOSING:
            return outcome
        attempt = self._attempt_of(outcome)
        ended_at = now if attempt.ended_at is None else attempt.ended_at
        lost = lost_in_time(attempt.candidate, attempt.started_at, ended_at)
        if not lost and may_wait and now < ended_at + _DOUBT_MOST_S:
            return None
        origin = Origin.UNPROCESSED if lost else Origin.PEER
        judged = classify(outcome.code, origin=origin, details=outcome.details)
        self._balancer.judged(attempt, judged, now)
        return judged

    def _again(self, outcome: Outcome, now: float) -> Action:
        """Another attempt by the rules of hedging and retrying, or the end."""
        counted = self.hedged and self._may_lose(outcome)
        if counted:
            self._failed()
            if not outcome.pushback_s:
                # The next hedge need not wait for its turn (gRFC A6).
                attempt = self.hedge(now, outcome.reason())
                if attempt is not None:
                    return attempt
        promised, self._promised = self._promised, None
        # What was promised follows that attempt. If another one ends before, only the payment counts for it.
        choice = promised if promised and outcome.origin is Origin.ATTEMPT_TIMEOUT else self._decide(outcome, now)
        if not counted and (isinstance(choice, Again) or choice.counts):
            self._failed()
        if type(choice) is GiveUp:
            self.error = choice.error
            return self._exhausted(outcome, choice.why)
        assert isinstance(choice, Again)
        delay = choice.delay_s
        if choice is not promised and self.deadline is not None and now + delay >= self.deadline:
            return self._exhausted(outcome, "the deadline is nearer than the next attempt")
        if promised is None and not self.settings.budget.withdraw(now):
            return self._exhausted(outcome, "the retry budget is used up")
        if outcome.pushback_s is not None:
            self._pushed_back = self._counted_attempts
        self._why = f"retry: {outcome.reason()}"
        if delay <= 0.0:
            return self.resume(now)
        self.slept_s += delay
        return Pause(delay)

    @property
    def _uncounted(self) -> int:
        """How many attempts no server has looked at."""
        return self._unseen + self._unsent

    @property
    def _counted_attempts(self) -> int:
        return len(self.attempts) - self._uncounted

    def previous(self, attempt: Attempt) -> int:
        """How many attempts a server is told of as made before this one, which begins (gRFC A6).

        Transparent retries, and attempts that a call which waits for ready could not send, are none.
        """
        return attempt.number - 1 - self._uncounted

    def _decide(self, outcome: Outcome, now: float) -> Again | GiveUp:
        attempts = self._counted_attempts
        return decide(
            self.settings.retry,
            outcome,
            attempts=attempts,
            step=attempts - self._pushed_back,
            started_at=self.started_at,
            slept_s=self.slept_s,
            idempotent=self.settings.idempotent,
            now=now,
            rng=self._balancer.rng,
        )

    def _failed(self) -> None:
        """A failure that gRFC A6's throttle counts."""
        if self._balancer.throttle is not None:
            self._balancer.throttle.failed()

    def _count(self, outcome: Outcome, now: float) -> None:
        """Let the throttle know of a failure that could be retried, had the call not been committed (as core does)."""
        if self._balancer.throttle is None or outcome.origin in _MOST_UNSEEN:
            return
        choice = self._decide(outcome, now)
        if isinstance(choice, Again) or choice.counts or (self.hedged and self._may_lose(outcome)):
            self._failed()

    def expired(self, now: float) -> Failed:
        """The deadline passed while no attempt ran."""
        waited = now - self.started_at
        tried = f"; tried {self.tried()}" if self.attempts else ""
        if self._in_line:
            reason = f"{self._balancer.target}: {FULL}"
        elif self._queued:
            reason = self._balancer.unpicked(now).message
        else:
            reason = "between attempts" if self.attempts else "before the first attempt"
        return Failed(StatusCode.DEADLINE_EXCEEDED, f"Deadline Exceeded after {waited:.3f} s: {reason}{tried}")

    def tried(self) -> str:
        """The attempts in words, for messages."""
        return ", ".join(f"{a.endpoint}: {a.outcome.reason() if a.outcome else 'running'}" for a in self.attempts)

    def _exhausted(self, outcome: Outcome, why: str) -> Action:
        """No other attempt follows, because of ``why``."""
        if outcome.origin is Origin.ATTEMPT_TIMEOUT:
            # The attempt's DEADLINE_EXCEEDED would read as the caller's own deadline, which has not passed.
            self.gave_up = why
            limit_s = self.settings.retry.attempt_timeout_s
            words = f"no answer within attempt_timeout_s ({limit_s} s), and {why}; tried {self.tried()}"
            return Failed(StatusCode.UNAVAILABLE, words)
        return self._give_up(why)

    def _give_up(self, why: str) -> Done:
        self.gave_up = why
        return DONE

    def __repr__(self) -> str:
        return f"<Call {self.method} {self.attempts!r}>"
