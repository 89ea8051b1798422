"""The load of an endpoint as P2C sees it: a latency that rises at once and falls slowly (*peak EWMA*).

It rises by a quarter of the way to each slower answer, and falls by a 32nd of the way with each faster one, and with
time (to a third in ten seconds). So a slow endpoint is left within a few answers, and asked again now and then.
(Linkerd's and Finagle's takes each peak whole, and falls with time only: a single outlier would keep a healthy endpoint
down for seconds, and send its calls to a slow one.)

- **Reading changes nothing.** A pick reads the last latency, decayed by the time since: an endpoint
  that is not asked any more becomes cheaper, until it is asked again.
- **Failures** are quick, and must not look fast: one counts as ten answers, up to ``failure_s``. So a row of
  them, or a few in a hundred, drives an endpoint out, and a single one costs it some calls for some seconds. It is
  asked again eight seconds later, and is as good as before when it answers well.
- **Other errors** (NOT_FOUND, a refusal) may be quick as well: one never lowers the latency, and it
  keeps it from fading, for the endpoint was asked.
- **Ended without a verdict** (cancelled, as the losers of hedging are): it took at least that
  long, so it may raise the latency and never lowers it. An attempt that lost a race by far counts twice: how long it
  would have taken is not known, and what was cut off must not be read as the whole.
"""

from __future__ import annotations

from math import exp, inf, log

from lb.core.outcome import OK, Origin, Outcome, Verdict

RISE, FALL = 1 / 4, 1 / 32
LATE_FACTOR = 2.0
FAILURE_FACTOR = 10.0
FORGIVEN_S = 8.0
"""This long after its last failure a latency is what it was before, if nothing was asked meanwhile."""
PAUSE_S = 1.0
"""A good answer this long after the last failure ends its penalty."""
UNKNOWN = 1000.0
"""An endpoint that has never done anything but fail may be this many times as fast as its failures count."""


class PeakEwma:
    """One endpoint's latency. Instants and durations are in seconds."""

    __slots__ = ("_decay_s", "fading", "latency_s", "measured", "stamp", "usual_s")

    def __init__(self, latency_s: float, stamp: float, decay_s: float) -> None:
        """``decay_s``: a third of a latency is left after this time without an answer."""
        self._decay_s = decay_s
        self.latency_s = latency_s
        """What it was at ``stamp``."""
        self.stamp = stamp
        self.fading = 1.0 / decay_s
        """It falls with time by this part of itself a second; faster after failures."""
        self.measured = True
        """Whether an answer was. Else it is a guess: there were only failures."""
        self.usual_s = 0.0
        """What it was before failures raised it; 0 when none did, or when it was asked again since and answered."""

    def read(self, now: float) -> float:
        """What is left of it by ``now``. Changes nothing."""
        return self.latency_s * exp((self.stamp - now) * self.fading)

    def observe(self, took_s: float, now: float) -> None:
        """An answer took ``took_s``."""
        if self.usual_s and (now - self.stamp >= PAUSE_S or not self.measured):
            self.latency_s = took_s
            self.usual_s, self.fading, self.measured = 0.0, 1.0 / self._decay_s, True
        before = self.latency_s
        move = RISE if took_s > before else max(FALL, 1.0 - exp((self.stamp - now) / self._decay_s))
        self.latency_s = before + (took_s - before) * move
        self.stamp = now

    def fail(self, counts_s: float, now: float) -> None:
        """An attempt failed, which counts as an answer after ``counts_s``. It is forgiven after `FORGIVEN_S`."""
        if not self.measured:
            self.latency_s, self.stamp = counts_s, now
            usual_s = counts_s / UNKNOWN
        else:
            usual_s = self.usual_s or self.latency_s
            if now - self.stamp >= PAUSE_S:
                self.latency_s = usual_s
            self.usual_s = 0.0  # no answer ends the penalty here
            self.observe(counts_s, now)
        if 0.0 < usual_s < self.latency_s:
            self.usual_s = usual_s
            self.fading = max(1.0 / self._decay_s, log(self.latency_s / usual_s) / FORGIVEN_S)

    def __repr__(self) -> str:
        return f"<PeakEwma {self.latency_s * 1000:.1f} ms at {self.stamp:.3f}>"


def learn(
    load: PeakEwma | None, outcome: Outcome, took_s: float, now: float, *, decay_s: float, failure_s: float
) -> PeakEwma | None:
    """The load after an attempt that ended so: the same one, the first one, or None while nothing is known."""
    counts_s = took_s if outcome is OK else _counts_s(load, outcome, took_s, failure_s)
    if counts_s is None:
        return load
    failed = outcome.verdict is Verdict.FAILURE
    if load is None:
        load = PeakEwma(counts_s, now, decay_s)
        load.measured = not failed
    if failed:
        load.fail(counts_s, now)
    else:
        load.observe(counts_s, now)
    return load


def _counts_s(load: PeakEwma | None, outcome: Outcome, took_s: float, failure_s: float) -> float | None:
    """Which latency stands for an attempt that did not end well; None: it says nothing."""
    if outcome.verdict is Verdict.FAILURE:
        usual_s = inf if load is None or not load.measured else load.usual_s or load.latency_s
        return max(took_s, min(failure_s, FAILURE_FACTOR * usual_s))
    if outcome.origin in (Origin.CALLER, Origin.LATE):
        if outcome.origin is Origin.LATE:
            took_s *= LATE_FACTOR
        return took_s if load is None or took_s > load.latency_s else None
    if outcome.origin is Origin.PEER and load is not None and load.measured:
        return max(took_s, load.usual_s or load.latency_s)
    return None
