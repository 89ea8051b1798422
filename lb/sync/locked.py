"""The core's objects with a lock: the loop and any number of calling threads use them at once.

One lock per channel. It is held while the core thinks (a pick runs a user's policy under it), never while anything is
sent or waited for. What changes breakers, budget, limits or statistics goes through these two classes, so they need no
locks of their own. (Metrics, and the check whether a breaker moved, read single fields without the lock.)

Each public method stands here once more, with the same arguments. A test fails when one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lb.core.admission import Admission
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.call import Action, Call, Failed
from lb.core.candidate import Candidate, Connectivity
from lb.core.endpoint import Resolution
from lb.core.members import Changes
from lb.core.outcome import Outcome
from lb.core.policies.base import CallInfo, Policy
from lb.core.pulse import Pulse
from lb.core.unpicked import Unpicked
from lb.core.upkeep import Ended, Overdue, Upkeep
from lb.shared import threads

# `Balancer.pick(self, ...)` and not `super().pick(...)`: two of these are on the way of every call, and `super` takes
# as long as the lock before Python 3.12.


class LockedBalancer(Balancer):
    """A balancer that one thread uses at a time."""

    __slots__ = ("lock",)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Reentrant: a call that holds it picks, and a finalizer may run anywhere.
        self.lock = threads.rlock()
        super().__init__(*arguments, **named)

    def go_by(self, pulse: Pulse) -> None:
        """See `Balancer`, and so for all below."""
        with self.lock:
            Balancer.go_by(self, pulse)

    # ---- what the resolver and the connections say ----

    def update(self, resolution: Resolution) -> Changes:
        """See there."""
        with self.lock:
            return Balancer.update(self, resolution)

    def resolver_failed(self, message: str, now: float) -> None:
        """See there."""
        with self.lock:
            Balancer.resolver_failed(self, message, now)

    def set_connectivity(
        self, candidate: Candidate, state: Connectivity, now: float, trouble: str = "", *, unserved: bool = False
    ) -> bool:
        """See there."""
        with self.lock:
            return Balancer.set_connectivity(self, candidate, state, now, trouble, unserved=unserved)

    def nobody_serves(self) -> bool:
        """See there."""
        with self.lock:
            return Balancer.nobody_serves(self)

    def sleep(self, now: float) -> bool:
        """See there."""
        with self.lock:
            return Balancer.sleep(self, now)

    def change_policy(self, policy: Policy) -> None:
        """See there."""
        with self.lock:
            Balancer.change_policy(self, policy)

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """See there."""
        with self.lock:
            Balancer.change_weights(self, weights)

    # ---- an attempt's life ----

    def pick(
        self, call: CallInfo | None, now: float, number: int = 1, why: str = "", tried: Sequence[Candidate] = ()
    ) -> Attempt | Unpicked:
        """See there."""
        with self.lock:
            return Balancer.pick(self, call, now, number, why, tried)

    def pick_another(
        self, call: CallInfo | None, now: float, number: int, why: str, tried: Sequence[Candidate]
    ) -> Attempt | Unpicked | None:
        """See there."""
        with self.lock:
            return Balancer.pick_another(self, call, now, number, why, tried)

    def reported(self, attempt: Attempt, value: bytes, now: float) -> None:
        """See there."""
        with self.lock:
            Balancer.reported(self, attempt, value, now)

    def answered(self, attempt: Attempt, now: float) -> Upkeep | None:
        """See there."""
        with self.lock:
            return Balancer.answered(self, attempt, now)

    def silent(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """See there."""
        with self.lock:
            return Balancer.silent(self, attempt, outcome, now)

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """See there."""
        with self.lock:
            return Balancer.ended(self, attempt, outcome, now)

    def judged(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """See there."""
        with self.lock:
            Balancer.judged(self, attempt, outcome, now)

    # ---- looking at it ----

    def admission(self, now: float) -> Admission:
        """See there."""
        with self.lock:
            return Balancer.admission(self, now)

    def unpicked(self, now: float) -> Unpicked:
        """See there."""
        with self.lock:
            return Balancer.unpicked(self, now)

    def rule(self) -> str:
        """See there."""
        with self.lock:
            return Balancer.rule(self)

    @property
    def resolution(self) -> Resolution | None:
        """See there."""
        with self.lock:
            return super().resolution

    @property
    def resolver_error(self) -> str:
        """See there."""
        with self.lock:
            return super().resolver_error

    @property
    def candidates(self) -> Sequence[Candidate]:
        """See there."""
        with self.lock:
            return super().candidates

    @property
    def leaving(self) -> Sequence[Candidate]:
        """See there."""
        with self.lock:
            return super().leaving

    def state(self) -> Connectivity:
        """See there."""
        with self.lock:
            return Balancer.state(self)


class LockedCall(Call):
    """A call's record, which takes its balancer's lock for each step."""

    _balancer: LockedBalancer

    def uncounted(self) -> None:
        """See `Call`, and so for all below."""
        with self._balancer.lock:
            Call.uncounted(self)

    def will_send(self, metadata: tuple[Any, ...]) -> None:
        """See there."""
        with self._balancer.lock:
            Call.will_send(self, metadata)

    def begin(self, now: float) -> Action:
        """See there."""
        with self._balancer.lock:
            return Call.begin(self, now)

    def resume(self, now: float) -> Action:
        """See there."""
        with self._balancer.lock:
            return Call.resume(self, now)

    def refused(self) -> Action:
        """See there."""
        with self._balancer.lock:
            return Call.refused(self)

    def settled(self) -> None:
        """See there."""
        with self._balancer.lock:
            Call.settled(self)

    def hedge_delay_s(self) -> float | None:
        """See there."""
        with self._balancer.lock:
            return Call.hedge_delay_s(self)

    def hedge(self, now: float, why: str = "no answer yet") -> Action | None:
        """See there."""
        with self._balancer.lock:
            return Call.hedge(self, now, why)

    def overdue(self, attempt: Attempt, now: float, *, replayable: bool = True, running: int = 0) -> Overdue:
        """See there."""
        with self._balancer.lock:
            return Call.overdue(self, attempt, now, replayable=replayable, running=running)

    def give_back(self, attempt: Attempt, outcome: Outcome, now: float) -> Upkeep | None:
        """See there. The balancer takes the lock."""
        return self._balancer.ended(attempt, outcome, now)

    def ended(
        self,
        attempt: Attempt,
        outcome: Outcome,
        now: float,
        *,
        committed: bool,
        replayable: bool = True,
        running: int = 0,
    ) -> Ended:
        """See there."""
        with self._balancer.lock:
            return Call.ended(self, attempt, outcome, now, committed=committed, replayable=replayable, running=running)

    def previous(self, attempt: Attempt) -> int:
        """See there."""
        with self._balancer.lock:
            return Call.previous(self, attempt)

    def expired(self, now: float) -> Failed:
        """See there."""
        with self._balancer.lock:
            return Call.expired(self, now)

    def tried(self) -> str:
        """See there."""
        with self._balancer.lock:
            return Call.tried(self)
