"""What the end of an attempt means for its endpoint. All of it is decided here, in this order:

1. **The table** (`lb.core.outcome`) has a verdict for each way to end.
2. **Two rules about time** overrule it, and make a FAILURE of what is none by the table:

   - *unanswered*: the caller's own deadline passed, and there was no response for ``unanswered_s``;
   - *slow*: it took ``slow_call_s``, whatever came of it.

3. **The breaker gets its permit back**, in the way of the first line that applies:

   =========== ============================================ ====================================================
   name        applies when                                 the breaker
   =========== ============================================ ====================================================
   late        a hedge won in half of the time, and no      counts a failure in a row, but none in the share
               rule about time applied
   refuses all it refused this call and, for ``refused_s``  opens
               and four of its latencies, all before it
   in doubt    its connection may have been closing: that   waits for `Judgement.judged`
               is not known yet
   bad answer  the server answered, but not with OK         counts the verdict, and opens when the others
                                                            answer far better (`lb.core.comparison`)
   any other   none of these applies                        counts the verdict
   =========== ============================================ ====================================================

   While the breaker is not CLOSED, each of these is the end of a probe, or comes too late to count
   (`lb.core.breaker`). A probe that was answered badly keeps the endpoint out for a few seconds only.

Beside the breaker, an end says how much the endpoint takes: see `Judgement._learn_room`.

A call that ends OK in good time is a success, and nothing else: `Balancer.ended` gives its permit back by itself, since
that is what nearly all calls come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from grpc import StatusCode

from lb.core.attempt import Attempt
from lb.core.breaker import REFUSED, Breaker, State, Transition
from lb.core.candidate import Candidate
from lb.core.comparison import AGAIN_S, Comparison
from lb.core.concurrency import StreamLimit
from lb.core.held import Held
from lb.core.members import Members
from lb.core.outcome import OK, Origin, Outcome, Verdict
from lb.core.policies.base import Picker

_PROBED_AGAIN_S = 9.0
"""An endpoint that answers its probes, but with failures, is probed again after this many seconds at most ..."""
_BLAMED_AGAIN_S = 3.0
"""... and after this many, when it was blamed for bad answers: now and then a healthy one answers badly, too ..."""
_USUAL_RATE = 40.0
"""... while there are this many calls a second for each endpoint that is out; with fewer calls, by as much later."""
_REFUSED_LATENCIES = 4
"""An endpoint that has refused everything for this many of its latencies is no longer at work on an earlier call."""


class Judgement:
    """The judge of one channel's endpoints. Each question returns whether other endpoints may be admitted by now."""

    __slots__ = (
        "_members",
        "_refusals",
        "_refused_s",
        "_rng",
        "_unanswered_s",
        "comparison",
        "held",
        "slow_s",
    )

    def __init__(self, breaker: Breaker, members: Members, rng: Random) -> None:
        self._members = members
        self._rng = rng
        self.slow_s = inf if breaker.slow_call_s is None else breaker.slow_call_s
        self._unanswered_s = inf if breaker.unanswered_s is None else breaker.unanswered_s
        self._refused_s = inf if breaker.refused_s is None else breaker.refused_s
        self._refusals = breaker.consecutive_failures or inf
        self.comparison = Comparison(0.0)
        self.held = Held()

    # ---- what is asked ----

    def ended(
        self,
        attempt: Attempt,
        outcome: Outcome,
        took_s: float,
        now: float,
        picker: Picker | None,
        pool: Sequence[Candidate],
    ) -> bool:
        """An attempt ended after ``took_s`` seconds, or had its first response then. Not OK, or slow."""
        self._learn_room(attempt, outcome, now, pool)
        verdict, why = self._overruled(attempt, outcome, took_s)
        if why:
            attempt.candidate.last_error = why
        return self._give_back(attempt, outcome, verdict, now, picker)

    def judged(
        self, attempt: Attempt, outcome: Outcome, now: float, picker: Picker | None, pool: Sequence[Candidate]
    ) -> bool:
        """An attempt that was in doubt when it ended is known to have ended so."""
        self._learn_room(attempt, outcome, now, pool)
        if outcome.verdict is Verdict.FAILURE:
            attempt.candidate.last_error = outcome.reason()
        return self._give_back(attempt, outcome, outcome.verdict, now, picker)

    def silent(self, attempt: Attempt, outcome: Outcome, now: float) -> bool:
        """A running attempt has waited too long for a response. It counts as ``outcome``, and by that alone."""
        self._learn_room(attempt, outcome, now, ())
        attempt.candidate.last_error = outcome.reason()
        moved = self._give_back(attempt, outcome, outcome.verdict, now, None)
        attempt.generation = REFUSED  # its end decides nothing at the breaker any more
        return moved

    def answered(self, attempt: Attempt, ran_s: float, now: float) -> bool:
        """The first response of a stream came after ``ran_s`` seconds.

        That is all that a probe had to show: its end may be hours away, and the endpoint would stay out for as long.
        """
        verdict = Verdict.FAILURE if ran_s >= self.slow_s else Verdict.SUCCESS
        move = attempt.candidate.breaker.release(attempt.generation, verdict, now, self._rng)
        return self._note_move(attempt, move)

    # ---- the decisions, in the order in which they are made ----

    def _learn_room(self, attempt: Attempt, outcome: Outcome, now: float, pool: Sequence[Candidate]) -> None:
        """How much the endpoint takes.

        A server's error keeps its place for a while (`Held`). A limit that adapts shrinks by refusals and time-outs;
        streams refused on a connection that stands show how many of them it takes (`StreamLimit`).
        """
        candidate, origin = attempt.candidate, outcome.origin
        if outcome is not OK and origin in (Origin.PEER, Origin.REFUSED):
            self.held.keep(candidate, attempt.started_at, now, pool)
        limit = candidate.limit
        if limit is not None and (outcome.pushback_s is not None or origin is Origin.ATTEMPT_TIMEOUT):
            limit.overloaded()
        if origin is Origin.REFUSED and attempt.started_at > candidate.lost_at:
            if not isinstance(limit, StreamLimit):
                limit = candidate.limit = StreamLimit(limit)
            limit.refused(candidate.running, now)

    def _overruled(self, attempt: Attempt, outcome: Outcome, took_s: float) -> tuple[Verdict, str]:
        """The verdict of the table, or of the rules about time; and what failed, in words, if anything did.

        A hung endpoint shows in nothing but its callers' deadlines and cancellations, and these are nobody's fault
        by the table.
        """
        if outcome.verdict is Verdict.FAILURE:
            return Verdict.FAILURE, outcome.reason()
        expired = outcome.origin is Origin.CALLER and outcome.code is StatusCode.DEADLINE_EXCEEDED
        if expired and attempt.answered_at is None and took_s >= self._unanswered_s:
            return Verdict.FAILURE, f"no answer in {took_s:.1f} s, when the caller's deadline passed"
        if took_s >= self.slow_s:
            return Verdict.FAILURE, f"slower than {self.slow_s:g} s"
        return outcome.verdict, ""

    def _give_back(
        self, attempt: Attempt, outcome: Outcome, verdict: Verdict, now: float, picker: Picker | None
    ) -> bool:
        """Give the breaker its permit back, by the table in 3."""
        candidate, breaker, permit = attempt.candidate, attempt.candidate.breaker, attempt.generation
        move: Transition | None = None
        if outcome.origin is Origin.LATE and verdict is Verdict.IGNORED:
            candidate.last_error = "hedged calls were answered much sooner by other endpoints"
            move = breaker.late(permit, now, self._rng)
        elif verdict is not Verdict.FAILURE and outcome.refused and self._refuses_all(candidate, now):
            candidate.last_error = outcome.reason()
            move = breaker.open_now(permit, now, self._rng, "it refuses all calls")
        elif outcome.origin is Origin.CLOSING:
            pass  # until it is `judged`
        elif outcome.bad:
            if permit == breaker.generation and breaker.state is State.CLOSED:
                move = self._compare(attempt, outcome, verdict, now, picker)
            else:
                move = self._answered_badly_while_out(attempt, outcome, verdict, now)
        else:
            move = breaker.release(permit, verdict, now, self._rng)
        return self._note_move(attempt, move)

    def _refuses_all(self, candidate: Candidate, now: float) -> bool:
        """Whether it has refused calls for long, this one too, and done nothing else. (Of a probe one is enough.)

        It answers at once, and so it looks like the least loaded one of all. An endpoint that is merely full answers
        what it has taken within a few of its latencies.
        """
        if candidate.breaker.state is not State.CLOSED:
            return True
        evidence = candidate.evidence
        answers = candidate.load.samples + evidence.bad
        if not evidence.refusals or evidence.refused_after != answers:
            evidence.refusals, evidence.refused_after, evidence.refusing_since = 0, answers, now
        evidence.refusals += 1
        long_s = max(self._refused_s, _REFUSED_LATENCIES * candidate.load.latency_s)
        return evidence.refusals >= self._refusals and now - evidence.refusing_since >= long_s

    def _compare(
        self, attempt: Attempt, outcome: Outcome, verdict: Verdict, now: float, picker: Picker | None
    ) -> Transition | None:
        """A bad answer, while the breaker is CLOSED: the endpoint is blamed when the others answer far better."""
        candidate, breaker = attempt.candidate, attempt.candidate.breaker
        turn = getattr(picker, "turn", None)
        reason = self.comparison.answered_badly(candidate, now, in_turn=turn is not None)
        suspicion = candidate.evidence.suspicion
        if turn is not None and suspicion is not None and suspicion.moves_turn:
            turn(self._rng)
        move = breaker.release(attempt.generation, verdict, now, self._rng)
        if move is None and reason:
            candidate.last_error = outcome.reason()
            longest_s = self._longest_s(candidate, now, _BLAMED_AGAIN_S)
            move = breaker.open_now(attempt.generation, now, self._rng, reason, blamed=True, longest_s=longest_s)
        return move

    def _answered_badly_while_out(
        self, attempt: Attempt, outcome: Outcome, verdict: Verdict, now: float
    ) -> Transition | None:
        """A bad answer that is a probe's, or of an attempt from before the breaker moved."""
        candidate, breaker, permit = attempt.candidate, attempt.candidate.breaker, attempt.generation
        self.comparison.count_bad(candidate)
        if breaker.blamed:  # which only a good answer ends
            verdict = Verdict.FAILURE
            candidate.last_error = outcome.reason()
        elif verdict is Verdict.IGNORED and self.comparison.ratio:
            verdict = Verdict.SUCCESS  # it answers; whether badly, is for the comparison to say
        if permit == breaker.generation:
            longest_s = self._longest_s(candidate, now, _BLAMED_AGAIN_S if breaker.blamed else _PROBED_AGAIN_S)
            return breaker.release(permit, verdict, now, self._rng, longest_s)
        if verdict is Verdict.FAILURE and breaker.state is State.CLOSED and _just_closed_by(attempt, now):
            reason = breaker.blamed or "the stream whose first message closed it failed"
            longest_s = self._longest_s(candidate, now, _BLAMED_AGAIN_S)
            return breaker.open_now(breaker.generation, now, self._rng, reason, blamed=True, longest_s=longest_s)
        return None

    def _longest_s(self, candidate: Candidate, now: float, again_s: float) -> float:
        """How long an endpoint stays out at most, whose probe has just failed, but was answered.

        Such a probe costs one call its answer, or a retry. So there may be one every few seconds, as long as that
        is a small part of all calls: at `_USUAL_RATE` one in 300 or so, and one in 100 of an endpoint that was blamed.
        """
        evidence = candidate.evidence
        answers = self.comparison.answers - evidence.opened_after
        if not answers:
            return inf
        out = sum(c.breaker.state is not State.CLOSED for c in self._members.candidates.values())
        return again_s * max(1.0, _USUAL_RATE * out * (now - evidence.opened_at) / answers)

    def _note_move(self, attempt: Attempt, move: Transition | None) -> bool:
        """Remember when the breaker opened. Whether it moved, or a probe gave its place back.

        (A call that was let through in panic, with the permit 0, decides nothing.)
        """
        candidate = attempt.candidate
        if move is None:
            return attempt.generation != REFUSED and candidate.breaker.state is not State.CLOSED
        if move.after is State.OPEN:
            candidate.evidence.opened_at = move.at
            candidate.evidence.opened_after = self.comparison.answers
        return True

    def __repr__(self) -> str:
        return f"<Judgement {self.comparison!r} {self.held!r}>"


def _just_closed_by(attempt: Attempt, now: float) -> bool:
    """Whether its first response has just closed the breaker. (Its end shows that this was too soon.)"""
    return (
        attempt.answered_at is not None
        and attempt.breaker_state is not State.CLOSED
        and attempt.generation == attempt.candidate.breaker.generation - 1
        and now - attempt.answered_at < AGAIN_S
    )
