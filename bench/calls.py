"""What calls cost in the client: ours against grpcio's own, with and without telemetry, and against the usual pile.

Run ``python bench/calls.py [--turns 12] [--calls 500] [--counted] [ROW ...]``. Four servers in processes of their own,
100-byte messages over loopback; 64 calls in flight, or 16 threads, or 16 streams of 100 messages. Every resilience
feature of ours is on: retries with a time-out for attempts, budget, breakers that also watch for slow calls, ejection,
and an adaptive limit with its line. See `bench.rig` for how it is compared.

``lb`` is as it is shipped: it has an asyncio loop take all wake-ups of grpcio's thread in one turn. grpcio's channel is
in a process that never saw `lb`; a second column compares with grpcio's channel on a loop that reads as ours does.
Below the table is how far down a client could get: grpcio's lower layer alone, and a client of grpc-go (if it is built,
or Go is here), on the same servers. ``--counted`` adds the instructions of each row (`bench.instructions`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import instructions, rig
from bench.rig import ROOT
from bench.rows import ALL, LIMITS, ROWS, base, changed


def command(name: str, addresses: list[str], calls: int) -> list[str] | None:
    """How to start the client of a row; None if there is no such client here."""
    if ALL[name].who == "go":
        program = rig.grpc_go()
        return None if program is None else [program, ",".join(addresses), rig.UNARY, str(calls)]
    return [sys.executable, str(ROOT / "bench" / "client.py"), name, ",".join(addresses), str(calls)]


def compared(name: str) -> list[str]:
    """The clients that take part in a row's turns: grpcio's, grpcio's on a changed loop, the row's own."""
    row = ALL[name]
    return [base(row), *filter(None, [changed(row)]), name]


def run(names: Iterable[str], turns: int, calls: int) -> dict[str, Any]:
    """Rows with figures, of those clients that are here."""
    rows: dict[str, Any] = {}
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(ALL[name].kind, []).append(name)
    with rig.servers() as addresses:
        for group in kinds.values():
            commands = {name: command(name, addresses, calls) for row in group for name in compared(row)}
            present = {name: found for name, found in commands.items() if found is not None}
            seen: dict[str, list[dict[str, float]]] = {name: [] for name in group if name in present}
            with rig.workers(present) as started:
                for number in range(turns):
                    for name, figures in seen.items():
                        figures.append(rig.turn(compared(name), started, number))
            rows |= {name: figures_of(name, figures) for name, figures in seen.items()}
    return rows


def figures_of(name: str, turns: list[dict[str, float]]) -> dict[str, Any]:
    """A row: medians over its turns, of times and of the ratios within each turn."""
    row = ALL[name]
    plain, other = base(row), changed(row)
    low, median, high = rig.quartiles([one[name] / one[plain] for one in turns])
    return {
        "ratio": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "us": round(statistics.median(one[name] for one in turns), 1),
        "plain_us": round(statistics.median(one[plain] for one in turns), 1),
        "changed_us": other and round(statistics.median(one[other] for one in turns), 1),
        "changed_ratio": other and round(statistics.median(one[name] / one[other] for one in turns), 3),
        "goal": row.goal,
        "aim": row.aim,
    }


def wanted(row: dict[str, Any]) -> str:
    """A row's goal, or aim, in words."""
    if row["goal"] is not None:
        return f"<= {row['goal']:.2f}"
    return "" if row["aim"] is None else f"(aim {row['aim']:.2f})"


def show(rows: dict[str, Any]) -> list[str]:
    """Print the table; returns the goals that were missed."""
    print(
        f"{'client CPU':42} {'us':>7} {'grpcio':>7}"
        "   ratio in each turn: median (quartiles), to grpcio on a changed loop, instructions"
    )
    missed = []
    for name, row in rows.items():
        low, high = row["quartiles"]
        other = "    -" if row["changed_ratio"] is None else f"{row['changed_ratio']:.3f}"
        counted = f"{row['instructions']:9.0f}" if row.get("instructions") else " " * 9
        print(
            f"{name:42} {row['us']:7.1f} {row['plain_us']:7.1f}"
            f"   {row['ratio']:.3f} ({low:.3f} to {high:.3f})  {other}  {counted}  {wanted(row)}"
        )
        if row["goal"] is not None and row["ratio"] > row["goal"]:
            missed.append(f"{name} <= {row['goal']:.2f}")
    return missed


def main() -> int:
    """Measure, print, keep; exit status 1 for a missed goal only with STRICT=1."""
    measured = [*ROWS, *LIMITS]
    parser = argparse.ArgumentParser(description="client CPU per call and message, ours against grpcio's")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--calls", type=int, default=1500)
    parser.add_argument("--counted", action="store_true", help="count instructions, too, where valgrind is")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(measured)}".replace("%", "%%"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in measured]
    if unknown:
        parser.error(f"row {unknown[0]!r}; expected one of: {'; '.join(measured)}")
    rows = run(arguments.rows or measured, arguments.turns, arguments.calls)
    if arguments.counted and instructions.possible():
        counts = instructions.run([*rows, *dict.fromkeys(base(ALL[name]) for name in rows)])
        for name, row in rows.items():
            row["instructions"] = counts.get(name)
            row["plain_instructions"] = counts.get(base(ALL[name]))
    if not arguments.rows:  # else the other rows' last figures would be lost
        rig.write("calls", rows)
    missed = show(rows)
    goals = sum(row["goal"] is not None for row in rows.values())
    print(f"goals: {goals - len(missed)} of {goals} met{'; missed: ' + ', '.join(missed) if missed else ''}")
    return 1 if missed and os.environ.get("STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
