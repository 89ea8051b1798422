"""Another endpoint than the one that the policy chose: for a retry, a hedge, or a call that found it full."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lb.core.candidate import Candidate
from lb.core.policies.base import CallInfo, Picker

_DRAWS = 4
"""How many times a policy is asked for an endpoint that was not tried, before one is drawn at random."""


def with_room(
    picker: Picker | None, pool: Sequence[Candidate], tried: Sequence[Candidate], rng: Random
) -> Candidate | None:
    """An endpoint of the pool below its concurrency limit, untried if there is one; None when all are full."""
    found = None
    for those in _by_preference(picker, pool):
        start = int(rng.random() * len(those))
        for at in range(start - len(those), start):  # all of them, from a random one on
            candidate = those[at]
            if candidate.limit is None or candidate.running < candidate.limit.limit:
                if candidate not in tried:
                    return candidate
                found = found or candidate
    return found


def untried(
    picker: Picker | None,
    pool: Sequence[Candidate],
    call: CallInfo | None,
    now: float,
    tried: Sequence[Candidate],
    rng: Random,
) -> Candidate | None:
    """An endpoint of the pool with room that was not tried yet; None when there is none.

    The policy is asked when asking has no effect on later picks (``repeatable`` pickers: those
    that look at load do best here, too). A sequence is meant for first attempts: a retry that takes
    a turn of it would send the next ones to the same broken endpoint more often. Then it is the
    less loaded of two, drawn by weight.
    """
    if picker is not None and getattr(picker, "repeatable", False):
        for _ in range(_DRAWS):
            candidate: Candidate = picker.pick(call, now, rng)  # type: ignore[assignment]  # made from our candidates
            if candidate not in tried and (candidate.limit is None or candidate.running < candidate.limit.limit):
                return candidate
    for those in _by_preference(picker, pool):
        others = [c for c in those if c not in tried and (c.limit is None or c.running < c.limit.limit)]
        if others:
            one, two = rng.choices(others, [c.weight for c in others], k=2)
            return two if two.in_flight * one.weight < one.in_flight * two.weight else one
    return None


def _by_preference(picker: Picker | None, pool: Sequence[Candidate]) -> Sequence[Sequence[Candidate]]:
    """Where to look: among those that the picker ``prefers``, then in the whole pool."""
    prefers: Sequence[Candidate] | None = getattr(picker, "prefers", None)
    return (pool,) if prefers is None else (prefers, pool)
