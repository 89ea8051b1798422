"""Whether an attempt's connection was closing, when only the status says so (`Origin.CLOSING`).

The proof is that the connection was lost at that time, and the news of it may come a little later than the status.
"""

from __future__ import annotations

from collections.abc import Sequence

from lb.core.attempt import Attempt
from lb.core.outcome import Origin, Outcome, classify
from lb.core.words import lost_in_time

PAUSE_S = 0.005
"""Look again for the news after this time."""
_MOST_S = 0.1
"""The news comes this long after the status at most."""


def attempt_of(attempts: Sequence[Attempt], outcome: Outcome) -> Attempt:
    """The one that ended so."""
    return next((attempt for attempt in reversed(attempts) if attempt.outcome is outcome), attempts[-1])


def in_doubt(attempt: Attempt, now: float) -> bool:
    """Whether the news of the loss may still come."""
    return not _was_lost(attempt, now) and now < _ended_at(attempt, now) + _MOST_S


def without_doubt(attempt: Attempt, outcome: Outcome, now: float) -> Outcome:
    """The outcome, as far as the news has come by now."""
    origin = Origin.UNPROCESSED if _was_lost(attempt, now) else Origin.PEER
    return classify(outcome.code, origin=origin, details=outcome.details)


def _was_lost(attempt: Attempt, now: float) -> bool:
    return lost_in_time(attempt.candidate, attempt.started_at, _ended_at(attempt, now))


def _ended_at(attempt: Attempt, now: float) -> float:
    return now if attempt.ended_at is None else attempt.ended_at
