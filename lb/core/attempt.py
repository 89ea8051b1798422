"""One try of one call on one endpoint: what `lb.aio.attempts` tells of it, and the permit that its end gives back."""

from __future__ import annotations

from lb.core.candidate import Candidate
from lb.core.endpoint import Endpoint
from lb.core.outcome import Outcome


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
