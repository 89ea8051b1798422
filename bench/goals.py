"""Goals and promises of a bench, and its last line.

A *promise* is what must hold on any machine, with generous bounds: one that is broken decides the exit status. A *goal*
is a figure for a machine that does nothing else: it decides only with ``STRICT=1``. What was measured in a void run
neither meets a goal nor breaks a promise.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.rig import write

SHORT_TRIES = 3
"""Of a short form: see `repeated`."""


@dataclass(frozen=True)
class Goal:
    """One goal: a figure, and the least or the most that it should be. ``promise`` is the bound that must hold."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None
    promise: float | None = None
    void: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return not self.void and self._within(self.least, self.most)

    @property
    def broken(self) -> bool:
        """Whether the promise is broken."""
        if self.void or self.promise is None:
            return False
        return not (self._within(self.promise, None) if self.least is not None else self._within(None, self.promise))

    def _within(self, least: float | None, most: float | None) -> bool:
        # Written so that a figure that is missing (nan) is within nothing.
        return (least is None or self.value >= least) and (most is None or self.value <= most)

    @property
    def text(self) -> str:
        """As the last line names it."""
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{self.name} (void)" if self.void else f"{self.name} {self.value:.3g} ({bound})"


@dataclass(frozen=True)
class Table:
    """What was measured, in rows."""

    titles: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [self.titles, ["---"] * len(self.titles), *self.rows]
        return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finish(name: str, parts: Sequence[Table | str], goals: Sequence[Goal], *, keep: bool, raw: Any = None) -> int:
    """Print what was found, keep it with what it was made of (``raw``), print the last line; the exit status."""
    missed = [goal.text for goal in goals if not goal.met]
    broken = [goal.text for goal in goals if goal.broken]
    last = f"goals: {len(goals) - len(missed)} of {len(goals)} met{'; missed: ' + '; '.join(missed) if missed else ''}"
    for part in parts:
        print(part, end="\n\n")
    for text in broken:
        print(f"broken: {text}")
    print(last)
    if keep:
        write(name, {"parts": [str(part) for part in parts], "goals": last, "machine": machine(), "raw": raw})
    return 1 if broken or (missed and os.environ.get("STRICT") == "1") else 0


def repeated(measure: Callable[[], int], tries: int) -> int:
    """Measure again while a promise is broken, at most so many times; the last exit status.

    For short forms: something else that the machine does for a second decides a run of three.
    """
    status = measure()
    for _ in range(tries - 1):
        if status == 0:
            break
        print("again, since it may have been the machine\n", flush=True)
        status = measure()
    return status


def machine() -> str:
    """Where it was measured, and what else the machine did: the load when Python asks for it."""
    return f"{platform.machine()}, {os.cpu_count()} cores; load at the end {os.getloadavg()[0]:.1f}"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The mean of what repeated runs gave, with the lowest and the highest."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    shown = format(mean, form)
    return shown if len(values) == 1 else f"{shown} ({min(values):{form}} to {max(values):{form}})"
