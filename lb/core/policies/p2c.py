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
  them, or a few in a hundred, drives an endpoint out, and a single one costs it some calls for some seconds. It is
  asked again eight seconds later, and is as good as before when it answers well.
- **Other errors** (NOT_FOUND, a refusal) may be quick as well: one never lowers the latency, and it
  keeps it from fading, for the endpoint was asked.
- **Ended without a verdict** (cancelled, as the losers of hedging are): it took at least that
  long, so it may raise the latency and never lowers it. Who lost a race by far counts twice: how long it
  would have taken is not known, and what was cut off must not be read as the whole.
- **Weights**: candidates are drawn by weight, and calls in flight count by weight over the mean weight. So
  equal latencies give shares by weight; with equal weights it is the formula above.

The duration of a stream is that until its first answer, if it has ended well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from random import Random
from typing import ClassVar

from lb.core import checks
from lb.core.outcome import OK, Origin, Outcome, Verdict
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.policies.least_request import BLIND
from lb.core.policies.weighted_random import WeightedRandomPicker

_FAILURE = Verdict.FAILURE
_LATE, _PEER = Origin.LATE, Origin.PEER
_GIVEN_UP = (Origin.CALLER, Origin.LATE)
LATE_FACTOR = 2.0
FAILURE_FACTOR = 10.0
FORGIVEN_S = 8.0
"""So long after its last failure a latency is what it was before, if nothing was asked meanwhile."""
FEW = 5
PAUSE_S = 1.0
"""A good answer so long after the last failure ends its penalty."""
UNKNOWN = 1000.0
"""Who has never done anything but fail may be so many times as fast as its failures count."""

RISE, FALL = 1 / 4, 1 / 32


class Peak:
    """A latency that rises at once and falls with answers and with time."""

    __slots__ = ("haste", "latency_s", "measured", "stamp", "usual_s")

    def __init__(self, latency_s: float, stamp: float) -> None:
        self.latency_s = latency_s
        self.stamp = stamp
        self.measured = True
        """Whether an answer was. Else it is a guess: there were only failures."""
        self.haste = 1.0
        """So many times faster than by the policy's decay it falls with time."""
        self.usual_s = 0.0
        """What it was before failures raised it; 0 when none did, or when it was asked again since and answered."""

    def read(self, now: float, decay_s: float) -> float:
        """What is left of it by ``now``. Changes nothing."""
        return self.latency_s * exp((self.stamp - now) * self.haste / decay_s)

    def observe(self, took_s: float, now: float, decay_s: float) -> None:
        """An answer took so long."""
        if self.usual_s and (now - self.stamp >= PAUSE_S or not self.measured):
            self.latency_s = took_s
            self.usual_s, self.haste, self.measured = 0.0, 1.0, True
        before = self.latency_s
        move = RISE if took_s > before else max(FALL, 1.0 - exp((self.stamp - now) / decay_s))
        self.latency_s = before + (took_s - before) * move
        self.stamp = now

    def fail(self, counts_s: float, now: float, decay_s: float) -> None:
        """An attempt failed, which counts as an answer after so long. Left alone, it is forgiven after `FORGIVEN_S`."""
        if not self.measured:
            self.latency_s, self.stamp = counts_s, now
            usual_s = counts_s / UNKNOWN
        else:
            usual_s = self.usual_s or self.latency_s
            if now - self.stamp >= PAUSE_S:
                self.latency_s = usual_s
            self.usual_s = 0.0  # no answer ends the penalty here
            self.observe(counts_s, now, decay_s)
        if 0.0 < usual_s < self.latency_s:
            self.usual_s = usual_s
            self.haste = max(1.0, decay_s * log(self.latency_s / usual_s) / FORGIVEN_S)

    def __repr__(self) -> str:
        return f"<Peak {self.latency_s * 1000:.1f} ms at {self.stamp:.3f}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class P2C:
    """Of two candidates drawn at random the one that will answer sooner, by its latency and its calls in flight.

    Args:
        decay_s: without new answers a third of a latency is left after so many seconds, > 0.
        failure_s: what a failed attempt counts as, at most (unless it took longer), in seconds, >= 0.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    name: ClassVar[str] = "p2c"
    spreads: ClassVar[bool] = True
    decay_s: float = 10.0
    failure_s: float = 1.0

    def __post_init__(self) -> None:
        checks.number("P2C.decay_s", self.decay_s, above=True)
        checks.number("P2C.failure_s", self.failure_s)

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> P2CPicker:
        """A picker over ``candidates``; what was measured stands in their ``stats``."""
        if len({candidate.weight for candidate in candidates}) == 1:
            return P2CPicker(candidates, self.decay_s)
        return WeightedP2CPicker(candidates, self.decay_s)

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Take in how long an attempt took."""
        peak: Peak | None = candidate.stats
        if outcome is OK and peak is not None:
            peak.observe(duration_s, now, self.decay_s)
            return
        counts_s = duration_s if outcome is OK else self._counts_s(outcome, duration_s, peak)
        if counts_s is None:
            return
        failed = outcome.verdict is _FAILURE
        if peak is None:
            candidate.stats = peak = Peak(counts_s, now)
            peak.measured = not failed
        if failed:
            peak.fail(counts_s, now, self.decay_s)
        else:
            peak.observe(counts_s, now, self.decay_s)

    def _counts_s(self, outcome: Outcome, duration_s: float, peak: Peak | None) -> float | None:
        """Which latency stands for an attempt that did not end well; None: it says nothing."""
        if outcome.verdict is _FAILURE:
            usual_s = inf if peak is None or not peak.measured else peak.usual_s or peak.latency_s
            most_s = min(self.failure_s, FAILURE_FACTOR * usual_s)
            return max(duration_s, most_s)
        if outcome.origin in _GIVEN_UP:
            if outcome.origin is _LATE:
                duration_s *= LATE_FACTOR
            return duration_s if peak is None or duration_s > peak.latency_s else None
        if outcome.origin is _PEER and peak is not None and peak.measured:
            return max(duration_s, peak.usual_s or peak.latency_s)
        return None


class P2CPicker:
    """For equal weights: a list to draw from."""

    __slots__ = ("_blind", "_candidates", "_decay_s", "_size")
    repeatable: ClassVar[bool] = True

    def __init__(self, candidates: Sequence[Candidate], decay_s: float) -> None:
        """Over ``candidates``, at least one."""
        self._candidates = tuple(candidates)
        self._size = len(candidates)
        self._decay_s = decay_s
        self._blind = 1 if self._size == 1 else 0
        """So many picks take the first one drawn; where there is but one, all (nothing counts that down)."""

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The cheaper of two distinct draws. O(1)."""
        candidates, size = self._candidates, self._size
        # Both from one draw: `random` has 53 bits, and 2^26 endpoints are not to be expected.
        drawn = rng.random() * size
        at = int(drawn)
        first = candidates[at]
        if self._blind:
            return self._blindly(first)
        other = at + 1 + int((drawn - at) * (size - 1))
        second = candidates[other if other < size else other - size]
        a: Peak | None = first.stats
        b: Peak | None = second.stats
        one, two = first.in_flight + 1.0, second.in_flight + 1.0
        if a is not None and b is not None:
            here = a.latency_s * exp((a.stamp - now) * a.haste / self._decay_s)
            there = b.latency_s * exp((b.stamp - now) * b.haste / self._decay_s)
            one *= here * here
            two *= there * there
        return second if two < one else first

    def _blindly(self, drawn: Candidate) -> Candidate:
        if self._size > 1:
            self._blind -= 1
        return drawn

    def _go_blind(self, rng: Random) -> None:
        self._blind = rng.randrange(1, BLIND)

    @property
    def turn(self) -> Callable[[Random], None] | None:
        """Go by chance for some picks. Of a few endpoints only, where costs decide most; of more, draws do."""
        return self._go_blind if 1 < self._size <= FEW else None

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
        first = self._draw(call, now, rng)
        if self._blind:
            return self._blindly(first)
        second = self._draw(call, now, rng)
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
