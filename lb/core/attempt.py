"""One try of one call on one endpoint: what `lb.attempts` tells of it, and the permit that its end gives back."""

from __future__ import annotations

from lb.core.breaker import State
from lb.core.candidate import Candidate
from lb.core.endpoint import Endpoint
from lb.core.outcome import Outcome


class Attempt:
    """One try of one call on one endpoint, as `lb.attempts` returns it. Read it; do not change it.

    Instants are in monotonic seconds (``time.monotonic()``). Ignore ``candidate``, ``generation`` and ``span``: they
    are internal.
    """

    # An attempt is also the permit that its end gives back: the balancer and its judgement write down how it ended,
    # telemetry its span.
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
        self.number: int = number
        """1 is the first of its call."""
        self.why: str = why
        """The reason for this attempt: a retry or a hedge, and what led to it. Empty for the first."""
        self.started_at: float = now
        """When it was sent."""
        self.answered_at: float | None = None
        """When the first response of a stream of responses came; None before that, and for other calls."""
        self.ended_at: float | None = None
        """When it ended; None while it runs."""
        self.outcome: Outcome | None = None
        """How it ended; None while it runs."""
        self.breaker_state: State = candidate.breaker.state
        """The state of its endpoint's breaker when it began: its ``name`` is ``CLOSED``, ``OPEN`` or ``HALF_OPEN``."""
        self.span: object = None  # belongs to the telemetry listener

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that it was sent to."""
        return self.candidate.endpoint

    @property
    def endpoint_id(self) -> str:
        """The id of that endpoint."""
        return self.candidate.endpoint.id

    @property
    def address(self) -> str:
        """The address of that endpoint."""
        return self.candidate.endpoint.address

    @property
    def duration_s(self) -> float | None:
        """Seconds from ``started_at`` to ``ended_at``; None while it runs."""
        return None if self.ended_at is None else self.ended_at - self.started_at

    def __repr__(self) -> str:
        ended = "running" if self.outcome is None else self.outcome.reason()
        return f"<Attempt {self.number} on {self.endpoint}: {ended}{self.why and f'; {self.why}'}>"
