"""What all calls of one method of a channel share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lb.core.balancer import Balancer
from lb.core.budget import BudgetState
from lb.core.hedging import Hedging
from lb.core.quantile import Quantile
from lb.core.retry import Retry
from lb.core.throttle import ThrottleState


@dataclass(slots=True)
class Tally:
    """What was counted of one method, or of several that go by one ``label`` in the metrics."""

    label: str
    attempts: int = 0
    """How many were started."""


@dataclass(frozen=True, slots=True)
class Method:
    """What all calls of one method share.

    ``name`` is ``/package.Service/Method``; ``idempotent`` says that it may run twice without harm.
    ``timeout_s`` bounds each call besides the caller's own timeout, ``default_timeout_s`` is that of a call that
    gives none. ``hedging`` needs ``idempotent``,
    and a ``latency`` unless it has a fixed delay. ``overdue`` belongs to the driver: its watch over the attempts
    of a method that has an ``attempt_timeout_s``; else None.
    """

    name: str
    idempotent: bool
    balancer: Balancer
    retry: Retry
    budget: BudgetState | ThrottleState
    hedging: Hedging | None = None
    latency: Quantile | None = None
    timeout_s: float | None = None
    default_timeout_s: float | None = None
    wait_for_ready: bool | None = None
    tally: Tally = field(default_factory=lambda: Tally(""))
    overdue: Any = None
