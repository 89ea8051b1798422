"""The retry budget: retries may be a share of the calls, and a few a second on top.

A fixed number of retries per call multiplies the load on a service that is down: with three tries at each of three
levels one call becomes 27. A budget limits the *sum*: with ``ratio=0.2`` retries add at most a fifth to the traffic,
however many calls fail. ``min_per_s`` lets a client with little traffic retry at all.

The rules are those of finagle (``RetryBudget``: ttl 10 s, 10 retries a second, 20 %) and
tower (``retry/budget/tps_budget.rs``): a call deposits ``ratio`` of a retry, a retry
withdraws one, and both are forgotten after ``ttl_s``. A reserve of ``min_per_s * ttl_s``
retries is there from the start. It may be spent at once; what is spent comes back ``ttl_s`` later.
"""

from __future__ import annotations

from dataclasses import dataclass

from lb.core import checks
from lb.core.window import Window

# A sum of fractions such as 0.29 * 100 must still buy the retry it was saved for.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many retries and hedges a channel may send. It keeps retries from making an outage worse.

    The rules are those of Finagle (``RetryBudget``) and tower (``tps_budget``): each call adds ``ratio`` of a retry,
    each retry takes one, and both are forgotten after ``ttl_s``.

    Args:
        ratio: retries per call, >= 0. With 0.2 there may be one retry for every five calls.
        min_per_s: retries a second that are allowed with any number of calls, >= 0.
        ttl_s: seconds for which a call or a retry counts, > 0.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    ratio: float = 0.2
    min_per_s: float = 10.0
    ttl_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("ratio", "min_per_s", "ttl_s"):
            checks.number(f"Budget.{name}", getattr(self, name), above=name == "ttl_s")

    def new_state(self) -> BudgetState:
        """A channel's own state, with nothing deposited yet."""
        return BudgetState(self)


class BudgetState:
    """What one channel has deposited and withdrawn. ``now`` is in monotonic seconds."""

    __slots__ = ("_ratio", "_reserve", "_window", "settings")

    def __init__(self, settings: Budget) -> None:
        """Use ``Budget.new_state``."""
        self.settings = settings
        self._ratio = settings.ratio
        self._reserve = settings.min_per_s * settings.ttl_s
        self._window = Window(settings.ttl_s)

    def deposit(self, now: float) -> None:
        """A call began. Once per call, not per attempt."""
        window = self._window
        if now >= window.edge:
            window.roll(now)
        window.calls += 1

    def withdraw(self, now: float) -> bool:
        """Take one retry; False, and nothing taken, when less than one is left."""
        if self.balance(now) + _ROUNDING < 1:
            return False
        window = self._window
        if now >= window.edge:
            window.roll(now)
        window.marked += 1
        return True

    def failed(self) -> None:
        """An attempt failed: this changes nothing. Only what follows it has a price."""

    def balance(self, now: float) -> float:
        """How many retries could be withdrawn at ``now``, >= 0. Changes nothing."""
        calls, retries = self._window.totals(now)
        return max(0.0, self._reserve + self._ratio * calls - retries)

    def __repr__(self) -> str:
        window = self._window
        return f"<BudgetState reserve={self._reserve:g} ratio={self._ratio:g} newest={window.calls}/{window.marked}>"
