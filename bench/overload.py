"""Servers that are asked for many times what they can do: ``make bench-overload``.

Each run starts new servers and goes through four phases: callers that keep all slots busy find the *peak*; then as many
calls a second as that peak come from an open loop; then many times as many; then again as many as the peak. *Goodput*
is the work that was answered in time, within a second; it is compared with the best peak of any server. Variants take
turns, and each has two runs; the order is reversed in the second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

from bench import servers, shop
from bench.goals import SHORT_TRIES, Goal, Table, finish, repeated, spread
from bench.pressure import GRPC, LAG_MS, Generators, Kind, Phase, generators

SLOTS = (Kind(servers.SLOT),)
MIXED = (
    Kind(servers.FAST, weight=0.8, costs=servers.FAST_S / servers.SLOT_S),
    Kind(servers.SLOW, weight=0.2, costs=servers.SLOW_S / servers.SLOT_S),
)
"""Their work is counted in calls of 40 ms."""
RANKED = (
    Kind(servers.SLOT, weight=0.05, priority="critical"),
    Kind(servers.SLOT, weight=0.45, priority="default"),
    Kind(servers.SLOT, weight=0.5, priority="sheddable"),
)
RATE = 3000.0
SHORT_RATE = 1000.0
"""Of the short form: a machine that does other things has time for these, too."""
BUCKET = 120.0
GOODPUT, LATENCY, BACK_S, CRITICAL, REFUSAL = 0.9, 2.0, 2.0, 0.99, 1.1
COMPUTING = 0.75
PLAIN, OURS, NAIVE = "grpc.aio", "lb.server", "naive"
KINDS = {PLAIN: "plain", OURS: "lb", NAIVE: "naive"}


@dataclass(frozen=True)
class Case:
    """What is asked of which servers. ``rate`` is calls a second, or (``times``) a multiple of the peak."""

    name: str
    kinds: Sequence[Kind]
    servers: Sequence[str] = (OURS, PLAIN, NAIVE)
    channel: str = GRPC
    options: Sequence[str] = ()
    count: int = 3
    callers: int = 48
    rate: float = RATE
    times: float = 0.0
    goodput: float = GOODPUT
    latency: bool = True
    critical: bool = False


CASES = (
    Case("overload, no client retries", SLOTS),
    Case("overload, clients of lb", SLOTS, channel="lb"),
    Case("5 ms of CPU, 3 times", (Kind(servers.CPU),), count=1, callers=8, times=3.0, goodput=COMPUTING, latency=False),
    Case("1 ms and 200 ms mixed", MIXED),
    Case("priorities", RANKED, critical=True),
    Case("a token bucket", SLOTS, servers=(OURS,), options=("--rate", f"{BUCKET:g}")),
)


@dataclass
class Outcome:
    """What the runs of one kind of server gave in one case."""

    peak: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)
    best: float = 0.0
    """The best peak of any server in this case: what the others fall short of may be their own limit."""
    at_capacity_ms: list[float] = field(default_factory=list)
    admitted_ms: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    critical: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    answers: list[dict[str, int]] = field(default_factory=list)

    @property
    def goodput(self) -> list[float]:
        """Work that was done in overload, to the peak."""
        return [over / self.best for over in self.over]

    @property
    def latency(self) -> list[float]:
        """The p99 of what is admitted, to that at capacity."""
        return [over / at for over, at in zip(self.admitted_ms, self.at_capacity_ms, strict=True)]

    @property
    def void(self) -> bool:
        """Whether the generator measured itself, in any run."""
        return any(lag > LAG_MS for lag in self.lag_ms)


@dataclass(frozen=True)
class Times:
    """How long the phases are, in seconds."""

    peak: float = 1.5
    capacity: float = 2.5
    over: float = 5.0
    after: float = 2.5
    runs: int = 2


FULL, SHORT = Times(), Times(peak=1.0, capacity=1.5, over=2.0, after=2.5, runs=1)


def run(case: Case, who: str, load: Generators, times: Times, outcome: Outcome) -> None:
    """One run."""
    with servers.started(KINDS[who], *(case.options if who == OURS else ()), count=case.count) as started:
        addresses = [server.address for server in started]
        callers = Phase(1.0 + times.peak, case.kinds, callers=case.callers, skip_s=1.0)
        (best,) = load.run(addresses, [callers], case.channel)
        peak = best.goodput()
        mean = sum(kind.weight * kind.costs for kind in case.kinds)
        at_peak = max(1.0, peak / mean)
        capacity = Phase(times.capacity, case.kinds, rate=at_peak, poisson=True)
        over = Phase(times.over, case.kinds, rate=case.times * at_peak or case.rate, poisson=True)
        after = Phase(times.after, case.kinds, rate=at_peak, poisson=True)
        figures = load.run(addresses, [capacity, over, after], case.channel)
    at, overload, later = figures
    outcome.peak.append(peak)
    outcome.over.append(overload.goodput())
    outcome.at_capacity_ms.append(at.admitted_ms())
    outcome.admitted_ms.append(overload.admitted_ms())
    outcome.call_ms.append(overload.p99_ms())
    outcome.back_s.append(later.back_s(GOODPUT * peak))
    outcome.critical.append(overload.kept("critical"))
    outcome.lag_ms.append(max(each.lag_ms for each in figures))
    outcome.answers.append(dict(overload.codes))


def refusal(load: Generators, turns: int, seconds: float) -> tuple[list[float], bool]:
    """The CPU of a call that is refused, over that of an echo of a bare ``grpc.aio`` server; and whether it is void."""
    phase = Phase(seconds, (Kind(servers.ECHO),), rate=400.0)
    ratios, void = [], False
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(servers.started("plain"))[0]
        full = stack.enter_context(servers.started("lb", "--most", "1"))[0]
        channel = stack.enter_context(grpc.insecure_channel(full.address))
        hang: Any = channel.unary_unary(servers.HANG)
        hanging = hang.future(b"0", timeout=600.0)
        stack.callback(hanging.cancel)
        for turn in range(turns):
            us = {}
            for server in (bare, full) if turn % 2 == 0 else (full, bare):
                before = server.cpu_s()
                (figures,) = load.run([server.address], [phase])
                us[server.address] = (server.cpu_s() - before) / len(figures.calls) * 1e6
                void = void or figures.void
                # A call that had no answer in its time says something about the machine.
                late = figures.codes["DEADLINE_EXCEEDED"]
                void = void or late > 0
                wrong = len(figures.calls) - late - figures.codes["OK" if server is bare else "UNAVAILABLE"]
                if wrong:
                    raise SystemExit(f"{wrong} of {len(figures.calls)} calls were answered as they should not be")
            ratios.append(us[full.address] / us[bare.address])
    return ratios, void


def echoes(load: Generators, rate: float, seconds: float) -> str:
    """How many calls a second the machine can answer at all, in words: by three bare servers that do nothing."""
    phase = Phase(1.0 + seconds, (Kind(servers.ECHO),), rate=rate, poisson=True, skip_s=1.0)
    with servers.started("plain", count=3) as started:
        (figures,) = load.run([server.address for server in started], [phase])
    answered = figures.goodput()
    words = f"Of {rate:.0f} echoes a second, three bare grpc.aio servers on this machine answer {answered:.0f} in time."
    if answered < 0.9 * rate:
        words += " Cases at that rate ask it for more than it can answer, whatever the answer is."
    return words


def measure(cases: Sequence[Case], times: Times, load: Generators) -> dict[str, dict[str, Outcome]]:
    """All runs."""
    found: dict[str, dict[str, Outcome]] = {}
    for case in cases:
        outcomes = found[case.name] = {who: Outcome() for who in case.servers}
        for turn in range(times.runs):
            for who in case.servers if turn % 2 == 0 else case.servers[::-1]:
                run(case, who, load, times, outcomes[who])
        for outcome in outcomes.values():
            outcome.best = max(peak for each in outcomes.values() for peak in each.peak)
        print(rows_of(case.name, outcomes), flush=True)
    return found


TITLES = ("case", "server", "peak a second", "goodput / peak", "p99 at capacity, ms", "p99 of admitted, ms")
TITLES_MORE = ("with its retries, ms", "back after, s", "critical kept", "generator's lag p99, ms")


def cells(name: str, who: str, outcome: Outcome) -> list[str]:
    """A row of the table."""
    return [
        name,
        who,
        spread(outcome.peak, ".0f"),
        spread(outcome.goodput),
        spread(outcome.at_capacity_ms, ".0f"),
        spread(outcome.admitted_ms, ".0f"),
        spread(outcome.call_ms, ".0f"),
        spread(outcome.back_s, ".1f"),
        spread([share for share in outcome.critical if share == share], ".3f"),
        spread(outcome.lag_ms, ".1f") + " **void**" * outcome.void,
    ]


def rows_of(name: str, outcomes: dict[str, Outcome]) -> str:
    """What a case gave, while others still run."""
    return "\n".join("  ".join(cells(name, who, outcome)) for who, outcome in outcomes.items())


def goals_of(case: Case, outcome: Outcome) -> list[Goal]:
    """What is asked of `lb.server` in a case. Each is judged by the mean of the runs."""
    void = outcome.void

    def goal(what: str, values: Sequence[float], **bounds: float) -> Goal:
        return Goal(f"{case.name}: {what}", sum(values) / len(values), void=void, **bounds)

    goals = [goal("goodput / peak", outcome.goodput, least=case.goodput, promise=0.5)]
    if case.latency:
        goals.append(goal("p99 of what is admitted, to that at capacity", outcome.latency, most=LATENCY, promise=10.0))
    goals.append(goal("seconds until goodput is back", outcome.back_s, most=BACK_S))
    if case.critical:
        goals.append(goal("critical calls kept", outcome.critical, least=CRITICAL, promise=0.9))
    return goals


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(description="servers under many times their load")
    parser.add_argument("--short", action="store_true", help="one short run of lb.server in each case, nothing kept")
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        help=f"calls a second in place of {RATE:g}, for a smaller machine; nothing kept",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(case.name for case in CASES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in {case.name for case in CASES}]
    if unknown:
        parser.error(f"case {unknown[0]!r}; expected one of: {'; '.join(case.name for case in CASES)}")
    return repeated(lambda: once(arguments), SHORT_TRIES if arguments.short else 1)


def once(arguments: argparse.Namespace) -> int:
    """Measure once."""
    cases = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    times = SHORT if arguments.short else FULL
    if arguments.short:
        cases = [replace(case, servers=(OURS,), rate=SHORT_RATE) for case in cases]
    if arguments.rate:
        cases = [replace(case, rate=arguments.rate) for case in cases]
    with generators() as load:
        able = echoes(load, max(case.rate for case in cases), 1.0 if arguments.short else 4.0)
        found = measure(cases, times, load)
        ratios, void = refusal(load, *((2, 0.5) if arguments.short else (6, 1.0)))
        orders = None
        if not arguments.cases:
            orders = asyncio.run(shop.measure(load, *((3.0, 4.0) if arguments.short else (6.0, 12.0))))
    goals = [goal for case in cases for goal in goals_of(case, found[case.name][OURS])]
    goals.append(Goal("CPU of a refusal, to a bare echo", sum(ratios) / len(ratios), most=REFUSAL, void=void))
    parts: list[Table | str] = [
        load.words,
        able,
        Table(
            [*TITLES, *TITLES_MORE],
            [cells(name, who, outcome) for name, of in found.items() for who, outcome in of.items()],
        ),
        f"A refusal takes {spread(ratios)} of the CPU of a bare grpc.aio server's echo{' (**void**)' * void}.",
    ]
    if orders is not None:
        goals += shop.goals_of(orders)
        parts.append(shop.words(orders))
    raw = {name: {who: asdict(outcome) for who, outcome in of.items()} for name, of in found.items()}
    print()
    keep = not arguments.short and not arguments.cases and not arguments.rate
    return finish("overload", parts, goals, keep=keep, raw=raw)


if __name__ == "__main__":
    sys.exit(main())
