"""What `lb.core.call` asks of the driver of a call: an `Attempt` to be sent, or one of these."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpc import StatusCode

from lb.core.attempt import Attempt


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
    raised: Exception | None = field(default=None, compare=False)
    """What a user's policy or retry strategy raised, if that is the reason: the driver writes it to its log."""


@dataclass(frozen=True, slots=True)
class Done:
    """The call ends with the status of its last attempt."""

    raised: Exception | None = field(default=None, compare=False)
    """What a user's retry strategy raised, if that is why there is no other attempt."""


@dataclass(frozen=True, slots=True)
class Others:
    """Another attempt of this call still runs: what it brings decides.

    Meanwhile ask for the next hedge after ``delay_s`` seconds; None: for no more.
    """

    delay_s: float | None


DONE = Done()
Action = Attempt | Pause | Queued | Failed | Done | Others
