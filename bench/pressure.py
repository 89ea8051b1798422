"""Load from processes of its own, as a bench asks for it, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import rig
from bench.servers import ECHO

LAG_MS = 5.0
"""A run is void in which the load generator's lag has a p99 above this."""
GRPC = "grpc"
_BEGINS_IN_S = 0.3
_OK = "OK"


@dataclass(frozen=True)
class Kind:
    """A kind of call, and which part of the calls it is. ``costs`` is its work, for goodput."""

    method: str
    weight: float = 1.0
    priority: str = ""
    costs: float = 1.0


@dataclass(frozen=True)
class Phase:
    """A part of a job: ``rate`` calls a second, or so many ``callers``."""

    s: float
    kinds: Sequence[Kind]
    rate: float = 0.0
    callers: int = 0
    poisson: bool = False
    timeout_s: float = 1.0
    skip_s: float = 0.0
    """So much of it is a warm-up: what ended before does not count, nor does the latency of what began before."""


@dataclass(frozen=True)
class Call:
    """A call that ended. Times in seconds, since the phase began."""

    kind: Kind
    at: float
    took_s: float
    code: str
    last_s: float | None = None
    """How long its last attempt took, if that is known."""
    tries: int = 1


class Figures:
    """What came of one phase."""

    def __init__(self, phase: Phase, calls: list[Call], lags_ms: list[float]) -> None:
        self._s = phase.s
        self._since = phase.skip_s
        self.calls = [call for call in calls if call.at + call.took_s >= phase.skip_s]
        self.lag_ms = percentile(lags_ms, 99)

    @property
    def void(self) -> bool:
        """Whether the generator measured itself."""
        return self.lag_ms > LAG_MS

    @property
    def codes(self) -> Counter[str]:
        """How the calls ended."""
        return Counter(call.code for call in self.calls)

    @property
    def failed(self) -> int:
        """How many did not go well."""
        return len(self.calls) - self.codes[_OK]

    def goodput(self) -> float:
        """Work that was done in time, a second, by answers that came in the phase."""
        return self.done(self._since, self._s) / (self._s - self._since)

    def done(self, since_s: float, until_s: float) -> float:
        """Work that was done between these times."""
        good = (call for call in self.calls if call.code == _OK and since_s <= call.at + call.took_s < until_s)
        return sum(call.kind.costs for call in good)

    def p99_ms(self) -> float:
        """Of the calls that went well."""
        return percentile(
            [call.took_s * 1000 for call in self.calls if call.code == _OK and call.at >= self._since], 99
        )

    def admitted_ms(self) -> float:
        """The p99 of the attempts that went well: without what a client waits between two of them."""
        good = (call for call in self.calls if call.code == _OK)
        return percentile([(call.took_s if call.last_s is None else call.last_s) * 1000 for call in good], 99)

    def kept(self, priority: str) -> float:
        """Which part of the calls of a priority went well."""
        codes = [call.code for call in self.calls if call.kind.priority == priority]
        return codes.count(_OK) / len(codes) if codes else math.nan

    def back_s(self, goodput: float) -> float:
        """When a second has passed with so much goodput, after the beginning; infinite: never."""
        steps = int((self._s - 1.0) / 0.05) + 1
        found = (step * 0.05 for step in range(steps) if self.done(step * 0.05, step * 0.05 + 1.0) >= goodput)
        return next((start + 1.0 for start in found), math.inf)


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank; nan when there are no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


class Generators:
    """So many processes, each of which makes its part of the calls; one in Go makes all alone."""

    def __init__(self, python: Sequence[subprocess.Popen[str]], go: Sequence[subprocess.Popen[str]] = ()) -> None:
        self._python = python
        self._go = go
        self._seeds = itertools.count(1)

    @property
    def words(self) -> str:
        """Where the calls come from."""
        language = "Go" if self._go else "Python"
        return (
            f"Calls of grpcio's channel come from a load generator in {language}; those of `lb` and of HTTP, in Python."
        )

    def run(self, addresses: Sequence[str], phases: Sequence[Phase], channel: str = GRPC) -> list[Figures]:
        """Make the calls of these phases, one after the other; what came of each.

        ``channel`` is ``grpc``, its own with round robin and no retries; ``lb``, with its defaults; or ``http``.
        """
        begin = time.monotonic() + _BEGINS_IN_S
        processes = self._go if self._go and channel == GRPC else self._python
        count = len(processes)
        for number, process in enumerate(processes):
            job = {
                "addresses": [*addresses],
                "channel": channel,
                "echo": ECHO,
                "begin": begin,
                "seed": next(self._seeds),
                "phases": [_words(phase, number, count) for phase in phases],
            }
            rig.say(process, job)
        answers = [rig.answer("load generator", process) for process in processes]
        figures, began = [], begin
        for number, phase in enumerate(phases):
            calls = [
                Call(phase.kinds[kind], at - began, took_s, code, last_s, tries)
                for answer in answers
                for of, kind, at, took_s, code, last_s, tries in answer["calls"]
                if of == number
            ]
            lags_ms = [lag for answer in answers for lag in answer["lags_ms"][number]]
            figures.append(Figures(phase, calls, lags_ms))
            began += phase.s
        return figures


def _words(phase: Phase, number: int, count: int) -> dict[str, Any]:
    """The part of a phase that one of so many processes does."""
    kinds = [(kind.method, (("lb-priority", kind.priority),) if kind.priority else ()) for kind in phase.kinds]
    return {
        "s": phase.s,
        "rate": phase.rate / count,
        "callers": (phase.callers + count - 1 - number) // count,
        "poisson": phase.poisson,
        "timeout_s": phase.timeout_s,
        "kinds": kinds,
        "weights": [kind.weight for kind in phase.kinds],
    }


@contextlib.contextmanager
def generators(count: int = 2) -> Iterator[Generators]:
    """So many processes in Python while the block lasts, and where Go is, one in Go."""
    command = [sys.executable, str(Path(__file__).with_name("generator.py"))]
    commands = {f"load generator {number}": command for number in range(count)}
    program = rig.grpc_go()
    with rig.workers(commands) as python, rig.workers({"in Go": [*command, program, "jobs"]} if program else {}) as go:
        yield Generators([*python.values()], [*go.values()])
