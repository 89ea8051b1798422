"""How much one server process serves, beside grpcio's hello world: ``make bench-server``.

A call makes one call to another service and one query. *Callers* each wait for their answer before they call again. The
largest number of them is searched for with which the p99 stays below a bound and no call fails: by doubling, and then
by halving the distance. Servers take turns; each search has new servers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import servers
from bench.goals import SHORT_TRIES, Goal, Table, finish, repeated, spread
from bench.pressure import Figures, Generators, Kind, Phase, generators

WORK = (Kind(servers.WORK),)
P99_MS, RATE_P99_MS = 100.0, 50.0
"""The bounds of the first and of the second figure."""
CALLERS, RATE = 5.0, 3.0
"""So many times the naive one's."""
SLOW_S, FAST_S = 0.050, 0.010
"""When the other service answers."""
NAIVE, PLAIN, OURS = "naive", "grpc.aio", "lb.server"
KINDS = {NAIVE: "naive", PLAIN: "plain", OURS: "lb"}
TIMEOUT_S = 5.0
_TRIES, _LESS = 9, 0.85


@dataclass(frozen=True)
class Times:
    """How long it takes, in seconds: a warm-up, a step of a search, and the confirmation with the look before it."""

    warm: float = 0.7
    step: float = 1.0
    check: float = 5.0
    whole: float = 30.0
    fine: int = 8
    """A search ends when its step is one of so many parts of what it has found."""
    runs: int = 2


FULL, SHORT = Times(), Times(step=0.8, check=0.5, whole=3.0, fine=4, runs=1)


class Bench:
    """What all searches share: the load, the times, the database."""

    def __init__(self, load: Generators, times: Times, database: str) -> None:
        self._load = load
        self.times = times
        self._database = database
        self._found: dict[tuple[str, float], int] = {}

    def step(self, address: str, callers: int, seconds: float) -> Figures:
        """So many callers, for a while."""
        warm_s = self.times.warm
        phase = Phase(warm_s + seconds, WORK, callers=callers, timeout_s=TIMEOUT_S, skip_s=warm_s)
        return self._load.run([address], [phase], "lb")[0]

    def most(self, who: str, answers_after_s: float, p99_ms: float, *options: str) -> tuple[int, Figures]:
        """The largest number of callers, and what came of their calls."""
        about = (who, answers_after_s)
        with self._serving(who, answers_after_s, *options) as address:
            found = search(
                lambda callers: self.step(address, callers, self.times.step),
                p99_ms,
                self.times.fine,
                begin=max(4, self._found.get(about, 0) // 2),
            )
        self._found.setdefault(about, found[0])
        return found

    def confirmed(self, who: str, callers: int) -> tuple[int, Figures]:
        """So many callers for the whole time, or fewer, down to a quarter; 0, if not even so many were served."""
        for _ in range(_TRIES):
            with self._serving(who, SLOW_S) as address:
                figures = self.step(address, callers, self.times.check)
                if good(figures, P99_MS):
                    figures = self.step(address, callers, self.times.whole)
            if good(figures, P99_MS):
                return callers, figures
            print(f"{who}: {callers} callers have a p99 of {figures.p99_ms():.0f} ms, {figures.failed} failed")
            callers = max(1, int(callers * _LESS))
        return 0, figures

    @contextlib.contextmanager
    def _serving(self, who: str, answers_after_s: float, *options: str) -> Any:
        with (
            servers.started("downstream", "--after", str(answers_after_s)) as (other,),
            servers.started(KINDS[who], "--downstream", other.address, "--database", self._database, *options) as (
                server,
            ),
        ):
            yield server.address


def good(figures: Figures, p99_ms: float) -> bool:
    """Whether the callers were served."""
    return figures.failed == 0 and figures.p99_ms() < p99_ms


def search(attempt: Callable[[int], Figures], p99_ms: float, fine: int, begin: int = 4) -> tuple[int, Figures]:
    """The largest number that is good, by doubling and bisection; with what it gave. 0 and the last, if none is.

    What ends the doubling is tried twice: a single pause of the machine shall not decide it.
    """
    best, most = 0, begin
    found = figures = attempt(most)
    while good(figures, p99_ms) or good(figures := attempt(most), p99_ms):
        best, found, most = most, figures, 2 * most
        figures = attempt(most)
    while most - best > max(1, best // fine):
        middle = (best + most) // 2
        figures = attempt(middle)
        if good(figures, p99_ms):
            best, found = middle, figures
        else:
            most = middle
    return best, found if best else figures


def in_turn(names: Sequence[str], runs: int, measure: Callable[[str], tuple[int, Figures]]) -> dict[str, list[Any]]:
    """So many measures of each, one after the other, in reversed order in the second turn."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(runs):
        for name in names if turn % 2 == 0 else names[::-1]:
            found[name].append(measure(name))
    return found


def void(found: Sequence[tuple[int, Figures]]) -> bool:
    """Whether the generator measured itself."""
    return any(figures.void for _, figures in found)


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(description="callers and calls a second that one server process serves")
    parser.add_argument("--short", action="store_true", help="short searches, no ablation, nothing kept")
    short = parser.parse_args().short
    return repeated(lambda: once(short), SHORT_TRIES if short else 1)


def once(short: bool) -> int:
    """Measure once."""
    times = SHORT if short else FULL
    who = [NAIVE, OURS] if short else [NAIVE, PLAIN, OURS]
    with generators(1) as load, servers.database() as database:
        bench = Bench(load, times, database)
        callers = in_turn(who, times.runs, lambda name: bench.most(name, SLOW_S, P99_MS))
        whole = {name: bench.confirmed(name, min(count for count, _ in runs)) for name, runs in callers.items()}
        rates = in_turn(who, times.runs, lambda name: bench.most(name, FAST_S, RATE_P99_MS))
        without: dict[str, list[Any]] = {}
        if not short:
            without = in_turn(
                servers.THINGS, 1, lambda thing: bench.most(OURS, FAST_S, RATE_P99_MS, "--without", thing)
            )
    rows = []
    for name in who:
        count, figures = whole[name]
        cells = [name, f"{count}", spread([each for each, _ in callers[name]], ".0f"), f"{figures.p99_ms():.0f}"]
        cells += [spread([each.goodput() for _, each in rates[name]], ".0f")]
        lag = max(each.lag_ms for _, each in [whole[name], *rates[name]])
        rows.append([*cells, f"{lag:.1f}" + " **void**" * void([whole[name], *rates[name]])])
    titles = [f"callers with p99 < {P99_MS:.0f} ms for {times.whole:.0f} s", "found by short runs", "p99, ms"]
    titles += [f"calls a second with p99 < {RATE_P99_MS:.0f} ms", "generator's lag p99, ms"]
    parts = [Table(["server", *titles], rows)]
    base = [figures.goodput() for _, figures in rates[OURS]]
    ablation = [
        [thing, spread([figures.goodput() for _, figures in runs], ".0f"), f"{ratio(runs, base):.2f}"]
        for thing, runs in without.items()
    ]
    if ablation:
        whole_row = ["nothing", spread(base, ".0f"), "1.00"]
        parts.append(Table(["lb.server without", "calls a second", "of all"], [whole_row, *ablation]))
    naive = [figures.goodput() for _, figures in rates[NAIVE]]
    goals = [
        Goal(
            "callers, to the naive one's",
            whole[OURS][0] / max(1, whole[NAIVE][0]),
            least=CALLERS,
            promise=1.5,
            void=void([whole[OURS], whole[NAIVE]]),
        ),
        Goal(
            "calls a second, to the naive one's",
            ratio(rates[OURS], naive),
            least=RATE,
            promise=1.2,
            void=void([*rates[OURS], *rates[NAIVE]]),
        ),
    ]
    return finish("server", parts, goals, keep=not short)


def ratio(runs: Sequence[tuple[int, Figures]], base: Sequence[float]) -> float:
    """The mean of what runs gave, to that of others."""
    return sum(figures.goodput() for _, figures in runs) / len(runs) / max(1e-9, sum(base) / len(base))


if __name__ == "__main__":
    sys.exit(main())
