"""What a driver has to do for the set of endpoints after it has told core of an attempt, beside the call itself."""

from __future__ import annotations

from dataclasses import dataclass

from lb.core.actions import Action
from lb.core.breaker import Transition
from lb.core.candidate import Candidate
from lb.core.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Upkeep:
    """All that is to be done, in any order. Core returns None where that is nothing, as it nearly always is."""

    candidate: Candidate
    """The attempt's endpoint."""
    closable: bool = False
    """Its connection is to be closed: it left the set, and this was its last attempt."""
    move: Transition | None = None
    """The move of its breaker that this has caused, to be logged and counted."""
    place: bool = False
    """A place below the concurrency limits may be free: the first call in line is to be woken."""
    raised: Exception | None = None
    """What the hook of a user's policy raised, to be logged."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer to the end of a failed attempt: what follows for its call, and for the set."""

    action: Action
    upkeep: Upkeep | None


@dataclass(frozen=True, slots=True)
class Overdue:
    """The answer to an attempt's time-out without a response."""

    outcome: Outcome
    """What that is, for the endpoint's breaker or as the end of the attempt."""
    upkeep: Upkeep | None = None
    raised: Exception | None = None
    """What a user's retry strategy raised when it was asked whether another attempt may follow, to be logged."""
    give_up: bool = False
    """Whether the attempt is to be ended now."""
