"""Who answers far worse than the others: one endpoint's answers against those of all others.

A broken key store answers UNAUTHENTICATED, an old build UNIMPLEMENTED, a wrong database NOT_FOUND: no such code
says by itself who is at fault. But where a policy spreads calls, all endpoints are asked the same, and one that
answers badly what the others answer well is broken. An answer is *good* when it is OK, and *bad* by `Outcome.bad`.

**Far below.** An endpoint is suspected as long as its share of good answers is below ``ratio`` (a half) of the
others' share, both counted from the same moment: one of its own bad answers. When everybody begins to answer NOT_FOUND
both shares fall together. A suspicion that does not hold ends, and the next bad answer begins another one.

**Not by chance.** If it did not matter where a call goes, the good answers of this endpoint would be a
random part of all: *Fisher's exact test*, one-sided, is the chance of so few or fewer. It is made at each of its bad
answers, so the k-th test of a suspicion must fall below ``LEVEL / (k * (k + 1))``, which is ``LEVEL`` in all,
however often it is made (a union bound). A suspicion may begin at any call, so wrong verdicts are at most ``LEVEL``
of an endpoint's calls: one in a million. Calls of a moment are often alike, so a suspicion lasts ``LEAST_S`` at least.

**Not by the turn.** A worker that makes two calls for each job, over two endpoints in turn, sends all first calls
to one and all second ones to the other. Such callers are found out by moving the turn: once chance alone is
less likely than ``ODD``, the suspicion begins again, and after each further bad answer the turn goes on from a
random place (the picker's ``turn``).

How soon: with all others good it takes 5 of its calls as one of ten endpoints, 11 as one of three, 15 as one of two
(some more where the turn is moved); when the others answer 70 % well, 20 to 70. It is that number of *its own* calls
also where it has a small weight, and takes longer accordingly.

**Again.** Who was out in the last ``AGAIN_S`` is likely to be broken still: a probe that chance has let succeed proves
little, and the level is ``LEVEL_AGAIN``.

The happy path counts good answers and does no more: all else is done when a bad one comes.
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
    """The answers of one channel's endpoints. ``good`` counts all good ones; the caller adds to it."""

    __slots__ = ("bad", "good", "ratio")

    def __init__(self, ratio: float) -> None:
        """``ratio``: which part of the others' share is far below; 0: nobody is suspected."""
        self.good = 0
        self.bad = 0
        self.ratio = ratio

    @property
    def answers(self) -> int:
        """All answers so far."""
        return self.good + self.bad

    def count_bad(self, candidate: Candidate) -> None:
        """Count a bad answer, and no more."""
        self.bad += 1
        candidate.evidence.bad += 1

    def answered_badly(self, candidate: Candidate, now: float, *, in_turn: bool) -> str:
        """Count a bad answer, admitted by a CLOSED breaker; why the breaker should open, or nothing.

        ``in_turn``: the picker can move its turn, so the evidence has to hold when it does.
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
    """How likely so few good answers, or fewer, are when it does not matter who answers (Fisher's exact test).

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
