"""Which endpoint answers far worse than the others: the answers of each against those of all others.

A broken key store answers UNAUTHENTICATED, an old build UNIMPLEMENTED, a wrong database NOT_FOUND: such a code
does not say whether the server or the caller is at fault. But if a policy spreads calls, all endpoints get the same
questions, and one that answers badly what the others answer well is broken. An answer is *good* if it is OK, and *bad*
by `Outcome.bad`.

**Far below.** An endpoint is suspected as long as its share of good answers is below ``ratio`` (a half) of the
others' share, both counted from the same moment: one of its own bad answers. When all endpoints begin to answer
NOT_FOUND, both shares fall together. A suspicion that does not hold ends, and the next bad answer begins another one.

**Not by chance.** If it did not matter where a call goes, the good answers of this endpoint would be a
random part of all good answers: *Fisher's exact test*, one-sided, is the probability of this few or fewer. It is made
at each bad answer, so the k-th test of a suspicion must fall below ``LEVEL / (k * (k + 1))``, which is ``LEVEL`` in
all, however many tests are made (a union bound). A suspicion may begin at any call, so wrong verdicts are at most
``LEVEL`` of an endpoint's calls: one in a million. Calls at the same moment are often alike, so a suspicion lasts at
least ``LEAST_S``.

**Not by the turn.** A worker that makes two calls for each job, over two endpoints in turn, sends all first calls
to one and all second ones to the other. To rule such callers out, the turn is moved: once chance alone is
less likely than ``ODD``, the suspicion begins again, and after each further bad answer the turn goes on from a
random place (the picker's ``turn``).

How soon: if all others answer well it takes 5 of its calls as one of ten endpoints, 11 as one of three, 15 as one of
two (some more if the turn is moved). If the others answer 70 % well, it takes 20 to 70. These are *its own* calls, so
with a small weight it takes longer.

**Again.** An endpoint that was out in the last ``AGAIN_S`` is likely to be still broken: a probe may have succeeded by
chance. So the level is ``LEVEL_AGAIN``.

A good answer is only counted; all else is done when a bad one comes.
"""

from __future__ import annotations

from math import exp, lgamma

from lb.core.candidate import Candidate
from lb.core.evidence import Suspicion

LEVEL = 1e-6
AGAIN_S = 20.0
LEVEL_AGAIN = 1e-3
LEAST = 5
"""Fewer answers of an endpoint decide nothing."""
LEAST_S = 0.1
ODD = 0.01


class Comparison:
    """The answers of one channel's endpoints.

    The balancer writes two fields: it counts good answers in ``good``, and ``ratio`` goes by its policy.
    """

    __slots__ = ("bad", "good", "ratio")

    def __init__(self, ratio: float) -> None:
        """``ratio``: below this part of the others' share an endpoint is suspected; 0: none ever is."""
        self.good = 0
        self.bad = 0
        self.ratio = ratio

    @property
    def answers(self) -> int:
        """All answers so far."""
        return self.good + self.bad

    def count_bad(self, candidate: Candidate) -> None:
        """Count a bad answer, and do no more."""
        self.bad += 1
        candidate.evidence.bad += 1

    def answered_badly(self, candidate: Candidate, now: float, *, in_turn: bool) -> str:
        """Count a bad answer of a call that a CLOSED breaker admitted; why the breaker should open, empty if not.

        ``in_turn``: the picker can move its turn, so the evidence has to hold while it is moved.
        """
        self.count_bad(candidate)
        if not self.ratio:
            return ""
        evidence = candidate.evidence
        suspicion = evidence.suspicion
        if suspicion is None or suspicion.generation != candidate.breaker.generation:
            self._suspect(candidate, 1, now)
            return ""
        good, bad = candidate.load.samples - suspicion.good, evidence.bad - suspicion.bad
        others_good = self.good - suspicion.all_good - good
        others = others_good + self.bad - suspicion.all_bad - bad
        if not others:
            return ""
        own = good + bad
        if good * others >= self.ratio * others_good * own:
            self._suspect(candidate, 1, now)
            return ""
        likely = chance(good, bad, others_good, others - others_good)
        if now - evidence.opened_at < AGAIN_S:
            level = LEVEL_AGAIN
        elif in_turn and not suspicion.moves_turn:
            if likely < ODD:
                self._suspect(candidate, 0, now).moves_turn = True
            return ""
        elif own < LEAST or now - suspicion.since < LEAST_S:
            return ""
        else:
            level = LEVEL
        suspicion.tests += 1
        if likely * suspicion.tests * (suspicion.tests + 1) > level:
            return ""
        evidence.suspicion = None
        return f"{good} of {own} calls were answered well here, {others_good} of {others} elsewhere"

    def _suspect(self, candidate: Candidate, counted: int, now: float) -> Suspicion:
        """Begin another suspicion, in which the newest bad answer is ``counted`` (1) or not (0)."""
        candidate.evidence.suspicion = suspicion = Suspicion(
            candidate.load.samples,
            candidate.evidence.bad - counted,
            self.good,
            self.bad - counted,
            candidate.breaker.generation,
            now,
        )
        return suspicion

    def __repr__(self) -> str:
        return f"<Comparison {self.good} good, {self.bad} bad>"


def chance(good: int, bad: int, others_good: int, others_bad: int) -> float:
    """How likely ``good`` or fewer good answers are, if it does not matter who answers (Fisher's exact test).

    That is the lower tail of the hypergeometric distribution, by its largest term and the ratios of the next ones.
    """
    if not good + bad or not others_good + others_bad:
        return 1.0
    term = exp(
        _log_choose(good + others_good, good)
        + _log_choose(bad + others_bad, bad)
        - _log_choose(good + others_good + bad + others_bad, good + bad)
    )
    total = 0.0
    while term > total * 1e-9:
        total += term
        # One good answer less here, one more elsewhere.
        term *= good * others_bad / ((others_good + 1.0) * (bad + 1.0))
        good, bad, others_good, others_bad = good - 1, bad + 1, others_good + 1, others_bad - 1
    return min(total, 1.0)


def _log_choose(of: int, some: int) -> float:
    return lgamma(of + 1) - lgamma(some + 1) - lgamma(of - some + 1)
