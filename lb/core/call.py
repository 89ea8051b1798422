"""One logical call as a sequence of actions. Drivers perform them; the rules are here.

::

    begin ──► Attempt ──ended──► Done                     the attempt's status is the call's
      │          ▲         ├───► Failed                   the call has a status of our own
      │          │         ├───► Others                   a hedge still runs: wait for it, begin one more
      │          │         └───► Pause ──resume──► ...    try again after this time
      ▼          │
    Queued ──────┘  resume, when the balancer changed, or a place is free (``line``)
      └─► expired ──► Failed

A driver that gets an `Attempt` sends it and reports its `Outcome`. `Queued` makes it wait for
a change of the balancer, `Pause` for a time; both end early at the deadline (`expired`). While
an attempt runs, a driver asks for a `hedge` each time that `hedge_delay_s` has passed, and asks once whether it is
`overdue`, when its ``attempt_timeout_s`` has passed without a response.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grpc import StatusCode

from lb.core.actions import DONE, Action, Done, Failed, Others, Pause, Queued
from lb.core.attempt import Attempt
from lb.core.doubt import PAUSE_S, attempt_of, in_doubt, without_doubt
from lb.core.hedging import goes_on, next_delay_s
from lb.core.outcome import Origin, Outcome, Retryable, timed_out
from lb.core.retry import Again, GiveUp, decide
from lb.core.shared import Shared, Tally
from lb.core.unpicked import Unpicked
from lb.core.upkeep import Ended, Overdue, Upkeep

__all__ = ["DONE", "Action", "Call", "Done", "Failed", "Others", "Pause", "Queued", "Shared", "Tally"]

_UNSENT_PAUSE_S = 0.01
_UNSENT_PAUSE_MOST_S = 0.5
_MOST_UNSEEN = {Origin.UNPROCESSED: 20, Origin.REFUSED: 1}
"""How many transparent retries a call has, by what led to the last one; after these a retry is like any other.

A server may pass on words that another server said to it, so after mere words there is only one.
"""
_UNSEEN_AT_ONCE = 3
_UNSEEN_PAUSE_S = 0.005
_UNSEEN_PAUSE_MOST_S = 0.25


class Call:
    """What is known of one call. ``deadline`` is an instant on the driver's clock, or None."""

    # What only some calls ever change stands in the class: the others do not pay for it.
    metadata: tuple[tuple[str, str | bytes], ...] = ()  # what the caller sends, for policies that read it
    slept_s = 0.0  # between attempts
    gave_up = ""  # why the last failed attempt was not followed by another
    _hedged = False  # the driver runs attempts beside each other: it does for one request and one response
    _queued: Queued | None = None  # what it waits for: a change, or a place below the concurrency limit
    _why = ""  # for the next attempt
    _unseen = 0  # transparent retries
    _unsent = 0  # attempts that found no connection, while it waits for ready
    _doubt: Outcome | None = None  # the last outcome, while it is in doubt
    _no_hedges = False  # a server said not to try again
    _promised: Again | None = None  # what follows the attempt that was given up for it; it is paid for
    _pushed_back = 0  # how many attempts it had when a server last said by push-back when to retry

    def __init__(self, shared: Shared, deadline: float | None, wait_for_ready: bool | None, now: float) -> None:
        self.shared = shared
        self.rules = rules = shared.rules
        self.attempts: list[Attempt] = []
        self.deadline = deadline
        self.wait_for_ready = rules.wait_for_ready if wait_for_ready is None else wait_for_ready
        self.started_at = now
        self._balancer = shared.balancer

    @property
    def method(self) -> str:
        """``/package.Service/Method``."""
        return self.shared.name

    def uncounted(self) -> None:
        """It is not measured: what its method counts is not counted of it."""
        self.shared = replace(self.shared, tally=Tally(""))

    # ---- before an attempt ----

    def will_send(self, metadata: tuple[Any, ...]) -> None:
        """What the caller sends is known: policies that read it may be asked from now on."""
        self.metadata = metadata

    def begin(self, now: float) -> Action:
        """The first action."""
        self.shared.budget.deposit(now)
        if self.deadline is not None and now >= self.deadline:
            return self.expired(now)
        if self._balancer.line.waiting:  # no call overtakes the line
            return self._join_line()
        picked = self._balancer.pick(self, now)
        if isinstance(picked, Unpicked):
            return self._unpicked(picked)
        self.attempts.append(picked)
        self.shared.tally.attempts += 1
        return picked

    def resume(self, now: float) -> Action:
        """Go on after a pause or a change of the balancer."""
        doubt, self._doubt = self._doubt, None
        if self.deadline is not None and now >= self.deadline:
            if doubt is not None:
                self._judged(doubt, now)
            return self.expired(now)
        if doubt is not None:
            return self._follow(doubt, now)
        attempts = self.attempts
        picked = self._balancer.pick(self, now, len(attempts) + 1, self._why, [a.candidate for a in attempts])
        if isinstance(picked, Unpicked):
            return self._unpicked(picked)
        self._wait_no_more()
        attempts.append(picked)
        self.shared.tally.attempts += 1
        return picked

    def _unpicked(self, picked: Unpicked) -> Action:
        if picked.raised is not None:
            return Failed(StatusCode.INTERNAL, picked.message, picked.raised)
        if picked.full:
            return self._join_line()
        self._wait_no_more()
        if picked.wait or self.wait_for_ready:
            self._queued = Queued(picked.message)
            return self._queued
        return self._unavailable(picked.message)

    def _unavailable(self, message: str) -> Action:
        """There is no endpoint for the next attempt. Then the last attempt's own status says more, if there was one."""
        if self.attempts:
            self.gave_up = message
            return DONE
        return Failed(StatusCode.UNAVAILABLE, message)

    def expired(self, now: float) -> Failed:
        """The deadline passed while no attempt ran."""
        waited = now - self.started_at
        tried = f"; tried {self.tried()}" if self.attempts else ""
        if self._queued is None:
            reason = "between attempts" if self.attempts else "before the first attempt"
        elif self._queued is self._balancer.line.queued:
            reason = self._queued.message
        else:
            reason = self._balancer.unpicked(now).message
        return Failed(StatusCode.DEADLINE_EXCEEDED, f"Deadline Exceeded after {waited:.3f} s: {reason}{tried}")

    def _join_line(self) -> Action:
        line = self._balancer.line
        if self._queued is not line.queued and (refused := line.join()):
            return self._unavailable(refused)
        self._queued = line.queued
        return line.queued

    def _wait_no_more(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None and queued is self._balancer.line.queued:
            self._balancer.line.leave()

    def refused(self) -> Action:
        """It waited in line for as long as the limit lets a call wait."""
        self._wait_no_more()
        return self._unavailable(self._balancer.line.refuse())

    def settled(self) -> None:
        """The call has ended: it waits for nothing any more. Drivers say so whatever the call did before."""
        self._wait_no_more()
        if self._doubt is not None:  # it ends before the news came: as if there were none
            doubt, self._doubt = self._doubt, None
            self._judged(doubt, attempt_of(self.attempts, doubt).ended_at or self.started_at)

    # ---- while an attempt runs ----

    def hedge_delay_s(self) -> float | None:
        """Seconds from an attempt to the next one beside it; None: no hedges for this call (now).

        Who runs attempts beside each other asks for each. The failures of a call that is never asked are not a hedge's.
        """
        self._hedged = True
        return next_delay_s(self.rules.hedging, self.shared.latency) if self._may_hedge() else None

    def hedge(self, now: float, why: str = "no answer yet") -> Action | None:
        """One more attempt beside those that run; None if there is no other endpoint with room or no budget.

        None also while calls wait in line: those go first.
        """
        if not self._may_hedge():
            return None
        attempts = self.attempts
        paid = self._promised is not None
        if self._balancer.line.waiting or (not paid and self.shared.budget.balance(now) < 1):
            return None
        tried = [a.candidate for a in attempts]
        attempt = self._balancer.pick_another(self, now, len(attempts) + 1, f"hedge: {why}", tried)
        if isinstance(attempt, Unpicked):
            return self._unpicked(attempt)
        if attempt is not None:
            if paid:
                self._promised = None
            else:
                self.shared.budget.withdraw(now)
            attempts.append(attempt)
            self.shared.tally.attempts += 1
        return attempt

    def _may_hedge(self) -> bool:
        hedging = self.rules.hedging
        return hedging is not None and not self._no_hedges and len(self.attempts) < hedging.max_attempts

    def overdue(self, attempt: Attempt, now: float, *, replayable: bool = True, running: int = 0) -> Overdue:
        """``attempt_timeout_s`` has passed without a response: whether to give the attempt up now, and what else to do.

        It is, if another may follow (or others run, and another may follow those), or if nothing else would end it: the
        call has no deadline. Otherwise it goes on until the deadline, and the endpoint's breaker hears of it now.
        ``replayable``: the whole request is still at hand. ``running``: how many other attempts of this call run.
        """
        outcome = timed_out(self.rules.retry.attempt_timeout_s)
        choice = self._decide(outcome, now) if replayable else None
        if (isinstance(choice, Again) and self._promise(choice, now, running)) or self.deadline is None:
            return Overdue(outcome, give_up=True)
        raised = choice.error if isinstance(choice, GiveUp) else None
        return Overdue(outcome, self._balancer.silent(attempt, outcome, now), raised)

    def _promise(self, choice: Again, now: float, running: int) -> bool:
        """Whether budget and deadline let another attempt follow. If it is to follow at once, it is paid for."""
        if running:
            return self.shared.budget.balance(now) >= 1
        late = self.deadline is not None and now + choice.delay_s >= self.deadline
        if late or not self.shared.budget.withdraw(now):
            return False
        self._promised = choice
        return True

    # ---- after an attempt ----

    def give_back(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """An attempt ended, and nothing follows: it was answered, lost to another one, or its call is over."""
        return self._balancer.ended(attempt, outcome, now)

    def ended(
        self,
        attempt: Attempt,
        outcome: Outcome,
        now: float,
        *,
        committed: bool,
        replayable: bool = True,
        running: int = 0,
    ) -> Ended:
        """An attempt failed: takes it back, and says what follows, for the call and for the set.

        ``committed``: the caller has seen response headers or a message (gRFC A6).
        ``replayable``: the whole request is still at hand.
        ``running``: how many other attempts of this call have not ended.
        """
        upkeep = self._balancer.ended(attempt, outcome, now)
        return Ended(self._next(outcome, now, committed, replayable, running), upkeep)

    def _next(self, outcome: Outcome, now: float, committed: bool, replayable: bool, running: int) -> Action:
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

    def _follow(self, outcome: Outcome, now: float) -> Action:
        """What follows the last attempt, of which the caller has seen nothing."""
        if self.rules.retry.enabled:
            if outcome.origin is Origin.CLOSING:
                if in_doubt(attempt_of(self.attempts, outcome), now):
                    self._doubt = outcome
                    return Pause(PAUSE_S)
                outcome = self._judged(outcome, now)
            if self._unseen < _MOST_UNSEEN.get(outcome.origin, 0) and (
                self.rules.idempotent or outcome.retryable is Retryable.ALWAYS
            ):
                return self._transparent(outcome, now)
        return self._again(self._judged(outcome, now), now)

    def _beside(self, outcome: Outcome) -> Action:
        """What follows a failure while other attempts run: gRFC A6's rules for hedges."""
        if not goes_on(self.rules.hedging, outcome, idempotent=self.rules.idempotent):
            self.gave_up = f"{outcome.code.name} ends all attempts"
            return DONE
        self.shared.budget.failed()
        pushback_s = outcome.pushback_s or 0.0
        self._no_hedges = self._no_hedges or pushback_s < 0
        return Others(None if self._no_hedges else pushback_s)

    def _transparent(self, outcome: Outcome, now: float) -> Action:
        """No server has looked at it: gRFC A6's transparent retry, which counts for nothing and needs no budget."""
        self._why = f"transparent: {outcome.reason()}"
        self._unseen += 1
        pause_s = _unseen_pause_s(self._unseen)
        return self._pause(pause_s, now) if pause_s else self.resume(now)

    def _again(self, outcome: Outcome, now: float) -> Action:
        """Another attempt by the rules of hedging and retrying, or the end."""
        counted = self._hedges_go_on(outcome)
        if counted:
            self.shared.budget.failed()
            # The next hedge need not wait for its turn (gRFC A6).
            if not outcome.pushback_s and (attempt := self.hedge(now, outcome.reason())) is not None:
                return attempt
        promised, self._promised = self._promised, None
        # What was promised follows that attempt. If another one ends before, only the payment counts for it.
        kept = promised if outcome.origin is Origin.ATTEMPT_TIMEOUT else None
        choice = self._decide(outcome, now) if kept is None else kept
        if not counted and choice.counts:
            self.shared.budget.failed()
        if isinstance(choice, GiveUp):
            return self._exhausted(outcome, choice.why, choice.error)
        delay = choice.delay_s
        if kept is None and self.deadline is not None and now + delay >= self.deadline:
            return self._exhausted(outcome, "the deadline is nearer than the next attempt")
        if promised is None and not self.shared.budget.withdraw(now):
            return self._exhausted(outcome, "the retry budget is used up")
        if outcome.pushback_s is not None:
            self._pushed_back = self._counted_attempts
        self._why = f"retry: {outcome.reason()}"
        if delay <= 0.0:
            return self.resume(now)
        self.slept_s += delay
        return Pause(delay)

    def _pause(self, pause_s: float, now: float) -> Pause:
        """Wait this long, but not beyond the deadline."""
        return Pause(pause_s if self.deadline is None else max(0.0, min(pause_s, self.deadline - now)))

    def _exhausted(self, outcome: Outcome, why: str, raised: Exception | None = None) -> Action:
        """No other attempt follows, because of ``why``."""
        self.gave_up = why
        if outcome.origin is not Origin.ATTEMPT_TIMEOUT:
            return Done(raised) if raised else DONE
        # The attempt's DEADLINE_EXCEEDED would read as the caller's own deadline, which has not passed.
        limit_s = self.rules.retry.attempt_timeout_s
        words = f"no answer within attempt_timeout_s ({limit_s} s), and {why}; tried {self.tried()}"
        return Failed(StatusCode.UNAVAILABLE, words, raised)

    # ---- what the decisions go by ----

    def _judged(self, outcome: Outcome, now: float) -> Outcome:
        """The outcome, without doubt: whether a connection was lost as a status says."""
        if outcome.origin is not Origin.CLOSING:
            return outcome
        attempt = attempt_of(self.attempts, outcome)
        judged = without_doubt(attempt, outcome, now)
        self._balancer.judged(attempt, judged, now)
        return judged

    def _decide(self, outcome: Outcome, now: float) -> Again | GiveUp:
        attempts = self._counted_attempts
        return decide(
            self.rules.retry,
            outcome,
            attempts=attempts,
            step=attempts - self._pushed_back,
            started_at=self.started_at,
            slept_s=self.slept_s,
            idempotent=self.rules.idempotent,
            now=now,
            rng=self._balancer.rng,
        )

    def _hedges_go_on(self, outcome: Outcome) -> bool:
        return self._hedged and goes_on(self.rules.hedging, outcome, idempotent=self.rules.idempotent)

    @property
    def _counted_attempts(self) -> int:
        return len(self.attempts) - self._unseen - self._unsent

    def previous(self, attempt: Attempt) -> int:
        """The number of attempts before this one, as its server is told: without those that were never sent (A6)."""
        return attempt.number - 1 - self._unseen - self._unsent

    def _count(self, outcome: Outcome, now: float) -> None:
        """Tell the throttle of a failure that could have been retried, had the call not been committed (as in core)."""
        if self._balancer.throttle is None or outcome.origin in _MOST_UNSEEN:
            return
        if self._decide(outcome, now).counts or self._hedges_go_on(outcome):
            self.shared.budget.failed()

    def tried(self) -> str:
        """The attempts in words, for messages."""
        return ", ".join(f"{a.endpoint}: {a.outcome.reason() if a.outcome else 'running'}" for a in self.attempts)

    def __repr__(self) -> str:
        return f"<Call {self.method} {self.attempts!r}>"


def _unseen_pause_s(retries: int) -> float:
    """How long to wait before the last of so many transparent retries: the first ones come at once."""
    late = retries - _UNSEEN_AT_ONCE
    return 0.0 if late <= 0 else min(_UNSEEN_PAUSE_S * 2 ** (late - 1), _UNSEEN_PAUSE_MOST_S)
