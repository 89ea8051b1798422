"""P2C: of two drawn at random the one that will answer sooner, by peak EWMA latency.

``cost = latency(now) ** 2 * (in_flight + 1)``, after linkerd's and Finagle's: how long a call would
wait behind those that are out. The latency of an endpoint rises at once, by a quarter of the way to each
slower answer, and falls by a 32nd of the way with each faster one, and with time (to a third in ten
seconds). So a slow endpoint is left within a few answers, and asked again now and then.

Two things differ from theirs, for one endpoint ten times slower must not touch the 99th percentile.
A single outlier does not keep a healthy endpoint down for seconds (their peak is taken whole, and falls with
time only), which would send its calls to the slow one. And the square: with 64 calls in flight over three
endpoints the plain product lets the slow one hold two calls all the time, 0.5 % of all calls and 1 %
when latencies scatter; squared it gets a fifth to a half of that. It costs evenness where latency does
nothing but grow with the calls in flight: there healthy endpoints swing, and their 99th percentile is a
quarter higher.

- **Reading changes nothing.** The latency that a pick reads is the last one, decayed by the time since:
  who is not asked any more becomes cheaper, until it is asked again.
- **Not measured yet**: taken to be as fast as the one it is compared with, so calls in flight decide.
  It is not flooded, for each call on it counts, nor starved. Two such are compared by calls in flight.
- **Failures** are quick, and must not look fast: one counts as ten answers, up to ``failure_s``. So a row of
  them, or a few in a hundred, drives an endpoint out, and a single one costs it some calls for some seconds.
- **Ended without a verdict** (cancelled, as the losers of hedging are, or refused): it took at least that
  long, so it may raise the latency and never lowers it. Who lost a race by far counts twice: how long it
  would have taken is not known, and what was cut off must not be read as the whole.
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

from lb.core.outcome import Origin, Outcome, Verdict
from lb.core.policies import checks
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.weighted_random import WeightedRandomPicker

_FAILURE, _IGNORED = Verdict.FAILURE, Verdict.IGNORED
_LATE = Origin.LATE
_GIVEN_UP = (Origin.CALLER, Origin.LATE)
LATE_FACTOR = 2.0
FAILURE_FACTOR = 10.0


RISE, FALL = 1 / 4, 1 / 32


class Peak:
    """A latency that rises at once and falls with answers and with time."""

    __slots__ = ("latency_s", "stamp")

    def __init__(self, latency_s: float, stamp: float) -> None:
        self.latency_s = latency_s
        self.stamp = stamp

    def read(self, now: float, decay_s: float) -> float:
        """What is left of it by ``now``. Changes nothing."""
        return self.latency_s * exp((self.stamp - now) / decay_s)

    def observe(self, took_s: float, now: float, decay_s: float) -> None:
        """An answer took so long."""
        before = self.latency_s
        move = RISE if took_s > before else max(FALL, 1.0 - exp((self.stamp - now) / decay_s))
        self.latency_s = before + (took_s - before) * move
        self.stamp = now

    def __repr__(self) -> str:
        return f"<Peak {self.latency_s * 1000:.1f} ms at {self.stamp:.3f}>"


@dataclass(frozen=True, slots=True)
class P2C:
    """Of two candidates drawn at random the one that will answer sooner, by its latency and its calls in flight.

    Args:
        decay_s: without new answers a third of a latency is left after so many seconds, > 0.
        failure_s: what a failed attempt counts as, at most (unless it took longer), in seconds, >= 0.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    name: ClassVar[str] = "p2c"
    decay_s: float = 10.0
    failure_s: float = 1.0

    def __post_init__(self) -> None:
        checks.number(self.name, "decay_s", self.decay_s, least=0, above=True)
        checks.number(self.name, "failure_s", self.failure_s, least=0)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> P2CPicker:
        """A picker over ``candidates``; what was measured stands in their ``stats``."""
        if len({candidate.weight for candidate in candidates}) == 1:
            return P2CPicker(candidates, self.decay_s)
        return WeightedP2CPicker(candidates, self.decay_s)

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Take in how long an attempt took."""
        peak: Peak | None = candidate.stats
        verdict = outcome.verdict
        if verdict is _FAILURE:
            counts_s = self.failure_s if peak is None else min(self.failure_s, FAILURE_FACTOR * peak.latency_s)
            duration_s = max(duration_s, counts_s)
        elif outcome.origin is _LATE:
            duration_s *= LATE_FACTOR
        if verdict is _IGNORED and (
            # Only giving up on it says something of one that was not measured.
            outcome.origin not in _GIVEN_UP if peak is None else duration_s <= peak.latency_s
        ):
            return
        if peak is None:
            candidate.stats = Peak(duration_s, now)
        else:
            peak.observe(duration_s, now, self.decay_s)


class P2CPicker:
    """For equal weights: a list to draw from."""

    __slots__ = ("_candidates", "_decay_s", "_size")
    repeatable: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate], decay_s: float) -> None:
        """Over ``candidates``, at least one."""
        self._candidates = tuple(candidates)
        self._size = len(candidates)
        self._decay_s = decay_s

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The cheaper of two distinct draws. O(1)."""
        candidates, size = self._candidates, self._size
        # Both from one draw: `random` has 53 bits, and 2^26 endpoints are not to be expected.
        drawn = rng.random() * size
        at = int(drawn)
        first = candidates[at]
        if size == 1:
            return first
        other = at + 1 + int((drawn - at) * (size - 1))
        second = candidates[other if other < size else other - size]
        a: Peak | None = first.stats
        b: Peak | None = second.stats
        one, two = first.in_flight + 1.0, second.in_flight + 1.0
        if a is not None and b is not None:
            here = a.latency_s * exp((a.stamp - now) / self._decay_s)
            there = b.latency_s * exp((b.stamp - now) / self._decay_s)
            one *= here * here
            two *= there * there
        return second if two < one else first

    def explain(self) -> str:
        """The rule in words."""
        return f"lower latency squared times calls in flight, of two drawn from {self._size}"


class WeightedP2CPicker(P2CPicker):
    """For unequal weights: draws by weight."""

    __slots__ = ("_draw", "_mean")

    def __init__(self, candidates: Sequence[Candidate], decay_s: float) -> None:
        """Over ``candidates``, at least one."""
        super().__init__(candidates, decay_s)
        self._draw = WeightedRandomPicker(candidates).pick
        self._mean = sum(candidate.weight for candidate in candidates) / len(candidates)

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The cheaper of two draws. O(1)."""
        first, second = self._draw(call, now, rng), self._draw(call, now, rng)
        if second is first:
            second = self._candidates[int(rng.random() * self._size)]
        mean = self._mean
        one = first.in_flight * mean / first.weight + 1.0
        two = second.in_flight * mean / second.weight + 1.0
        a: Peak | None = first.stats
        b: Peak | None = second.stats
        if a is not None and b is not None:
            one *= a.read(now, self._decay_s) ** 2
            two *= b.read(now, self._decay_s) ** 2
        return second if two < one else first

    def explain(self) -> str:
        """The rule in words."""
        return f"lower latency squared times calls in flight for its weight, of two drawn by weight from {self._size}"
