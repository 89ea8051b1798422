"""Slow start: an endpoint that has just come takes a growing part of its share.

A new process has cold caches and pools, so it should not get its whole share at once. For ``window_s`` from
the moment it is connected it accepts a pick with a chance that rises evenly from ``minimum`` to 1
(Armeria's and Envoy's linear ramp). A pick that it does not accept goes to another endpoint, chosen by a second
picker of the same policy over the endpoints that are warm.

While no endpoint is warm there is no second picker: a channel that starts uses all of them at once. When all
are warm, picks go straight to the policy inside, at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

from lb.core import checks
from lb.core.policies.base import CallInfo, Candidate, Picker, Policy
from lb.core.policies.wrapper import Wrapper, WrapperPicker

REVIEW_S = 1.0
"""An endpoint that has warmed up joins the second picker within this time; until then it has nearly its whole share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart(Wrapper):
    """As ``policy`` picks, but a new endpoint gets few calls at first, then more and more.

    Args:
        policy: an object or a name. None: the default policy.
        window_s: seconds after which an endpoint has its whole share, > 0.
        minimum: the part of its share with which an endpoint begins, > 0 and <= 1.

    Raises:
        ValueError: a field is out of its range, or ``policy`` is a name that is not known.
        TypeError: a field has a wrong type.
    """

    policy: Policy | str | None = None
    window_s: float = 20.0
    minimum: float = 0.1
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.number("SlowStart.window_s", self.window_s, above=True)
        checks.number("SlowStart.minimum", self.minimum, most=1, above=True)
        self._settle("slow_start")

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> SlowStartPicker:
        """A picker over ``candidates`` that goes on where ``previous`` was."""
        return SlowStartPicker(self, candidates, previous if isinstance(previous, SlowStartPicker) else None)


class SlowStartPicker(WrapperPicker):
    """The inner policy's picker over all, and one over the warm while there are others."""

    # No __slots__: once all are warm, `pick` is the inner picker's.

    def __init__(self, settings: SlowStart, candidates: Sequence[Candidate], previous: SlowStartPicker | None) -> None:
        """Use ``SlowStart.picker``."""
        assert not isinstance(settings.policy, str)
        assert settings.policy is not None
        self._policy: Policy = settings.policy
        self._window_s = settings.window_s
        self._minimum = settings.minimum
        self._candidates = candidates
        inside = None if previous is None else previous.inner
        self.inner: Picker = self._policy.picker(candidates, inside)
        self.warm: Picker | None = None if previous is None else previous.warm
        self._review_at = -inf

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The inner policy's pick, or a warm one's in its place. O(1); once a second while any is warming, O(n)."""
        if now >= self._review_at:
            self._review(now)
        candidate = self.inner.pick(call, now, rng)
        if self.warm is None or candidate.ready_since is None:
            return candidate
        part = (now - candidate.ready_since) / self._window_s
        if part >= 1.0 or rng.random() < max(part, self._minimum):
            return candidate
        return self.warm.pick(call, now, rng)

    def _review(self, now: float) -> None:
        """Find out which endpoints are warm now."""
        since = now - self._window_s
        warm = [c for c in self._candidates if c.ready_since is None or c.ready_since <= since]
        if len(warm) == len(self._candidates):
            self.warm = None
            self._review_at = inf
            self.pick = self.inner.pick  # type: ignore[method-assign]  # a step less, from now on
        else:
            self.warm = self._policy.picker(warm, self.warm) if warm else None
            next_warm = min(
                c.ready_since for c in self._candidates if c.ready_since is not None and c.ready_since > since
            )
            self._review_at = max(next_warm + self._window_s, now + REVIEW_S)

    @property
    def prefers(self) -> Sequence[Candidate] | None:
        """As the picker inside."""
        return getattr(self.inner, "prefers", None)

    def explain(self) -> str:
        """The rule in words."""
        return self._explained(f"new endpoints reach their full share within {self._window_s:g} s")
