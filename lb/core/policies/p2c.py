"""P2C: of two drawn at random the one that will answer sooner, by peak EWMA latency.

``cost = latency(now) ** 2 * (in_flight + 1)``, after linkerd's and Finagle's: how long a call would
wait behind those that are out. The latency is `lb.core.policies.peak_ewma`'s, the draws are
`lb.core.policies.power_of_two`'s.

- **The square** is ours: with 64 calls in flight over three endpoints, of which one is ten times slower, the plain
  product lets the slow one hold two calls all the time, 0.5 % of all calls and 1 % when latencies scatter; that
  touches the 99th percentile. Squared it gets a fifth to a half of that. It costs evenness where latency does
  nothing but grow with the calls in flight: there healthy endpoints swing, and their 99th percentile is a
  quarter higher.
- **Not measured yet**: taken to be as fast as the one it is compared with, so calls in flight decide.
  It is not flooded, for each call on it counts, nor starved. Two such are compared by calls in flight.
- **Weights**: candidates are drawn by weight, and calls in flight count by weight over the mean weight. So
  equal latencies give shares by weight; with equal weights it is the formula above.

The duration of a stream is that until its first answer, if it has ended well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.outcome import OK, Outcome
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.peak_ewma import PeakEwma, learn
from lb.core.policies.power_of_two import PowerOfTwo, two_of
from lb.core.policies.random import RandomPicker
from lb.core.policies.weighted_random import WeightedRandomPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class P2C:
    """Of two endpoints that are drawn at random by weight, the one that will probably answer sooner.

    This is the power of two choices with a peak EWMA of the latency, after Finagle and linkerd. An endpoint's cost is
    ``latency ** 2 * (in_flight + 1)``; their product without the square leaves a slow endpoint too many calls.

    Args:
        decay_s: seconds, > 0, in which a latency falls to a third if there are no new answers, so that a slow endpoint
            is tried again.
        failure_s: the latency, in seconds, >= 0, that a failed attempt counts as at most (more if it took longer).

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    name: ClassVar[str] = "p2c"
    spreads: ClassVar[bool] = True
    decay_s: float = 10.0
    failure_s: float = 1.0

    def __post_init__(self) -> None:
        checks.number("P2C.decay_s", self.decay_s, above=True)
        checks.number("P2C.failure_s", self.failure_s)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> P2CPicker | WeightedP2CPicker:
        """A picker over ``candidates``; what was measured is in their ``stats``."""
        if len({candidate.weight for candidate in candidates}) == 1:
            return P2CPicker(candidates)
        return WeightedP2CPicker(candidates)

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Take in how long an attempt took."""
        load: PeakEwma | None = candidate.stats
        if outcome is OK and load is not None:
            load.observe(duration_s, now)
        else:
            candidate.stats = learn(load, outcome, duration_s, now, decay_s=self.decay_s, failure_s=self.failure_s)


class P2CPicker(PowerOfTwo):
    """For equal weights."""

    __slots__ = ()
    few: ClassVar[int] = 5

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Over ``candidates``, at least one."""
        super().__init__(candidates, RandomPicker(candidates).pick)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The cheaper of two distinct draws. O(1)."""
        if self._blind:
            return self._pick_blindly(call, now, rng)
        first, second = two_of(self._candidates, self._size, rng)
        one, two = first.in_flight + 1.0, second.in_flight + 1.0
        a: PeakEwma | None = first.stats
        b: PeakEwma | None = second.stats
        if a is not None and b is not None:
            # `PeakEwma.read`, written out: two frames less, a fifth of the pick.
            here = a.latency_s * exp((a.stamp - now) * a.fading)
            there = b.latency_s * exp((b.stamp - now) * b.fading)
            one *= here * here
            two *= there * there
        return second if two < one else first

    def explain(self) -> str:
        """The rule in words."""
        return f"of two random ones of {self._size}, the one with the lower latency² x (in flight + 1)"


class WeightedP2CPicker(PowerOfTwo):
    """For unequal weights: draws by weight."""

    __slots__ = ("_mean",)
    few: ClassVar[int] = 5

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Over ``candidates``, at least one."""
        super().__init__(candidates, WeightedRandomPicker(candidates).pick)
        self._mean = sum(candidate.weight for candidate in candidates) / len(candidates)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The cheaper of two draws. O(1)."""
        if self._blind:
            return self._pick_blindly(call, now, rng)
        first = self._draw(call, now, rng)
        second = self._draw(call, now, rng)
        if second is first:
            second = self._candidates[int(rng.random() * self._size)]
        mean = self._mean
        one = first.in_flight * mean / first.weight + 1.0
        two = second.in_flight * mean / second.weight + 1.0
        a: PeakEwma | None = first.stats
        b: PeakEwma | None = second.stats
        if a is not None and b is not None:
            one *= a.read(now) ** 2
            two *= b.read(now) ** 2
        return second if two < one else first

    def explain(self) -> str:
        """The rule in words."""
        return f"of two of {self._size} drawn by weight, the one with the lower latency² x (in flight / weight + 1)"
