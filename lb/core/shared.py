"""What all calls of one method of a channel share."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the settings say of one method; see `lb.core.settings.Settings.method`.

    ``timeout_s`` limits every call besides the caller's own timeout, ``default_timeout_s`` those that give none.
    ``hedging`` is None unless the method may run twice. ``entries`` are the names in ``Retry.idempotent`` and
    ``methods`` that match the method. ``doubt`` says what was given and is not used.
    """

    retry: Retry
    hedging: Hedging | None = None
    idempotent: bool = False
    """Whether it may run twice without harm."""
    timeout_s: float | None = None
    default_timeout_s: float | None = None
    wait_for_ready: bool | None = None
    entries: Sequence[str] = ()
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all calls of one method share. ``name`` is ``/package.Service/Method``."""

    name: str
    rules: Rules
    balancer: Balancer
    budget: BudgetState | ThrottleState
    latency: Quantile | None = None
    """Needed for hedging, unless that has a fixed delay."""
    tally: Tally = field(default_factory=lambda: Tally(""))
    overdue: Any = None
    """The driver's watch over attempts, if the method has an ``attempt_timeout_s``; else None."""
    hedges: Any = None
    """The driver's watch over calls that may soon be hedged, if the method is hedged; else None."""
