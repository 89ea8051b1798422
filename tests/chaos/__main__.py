"""``python -m tests.chaos [ROW ...]``: the faults against the channel, as a table. See ``make chaos``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import logging
import os
import platform
import sys
from typing import Any

# Before grpcio is imported: each server that dies would be worth a line to it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.chaos.load import TIMEOUT_S
from tests.chaos.rig import ATTEMPT_TIMEOUT_S, IN_FLIGHT, LATENCY_S, Rig
from tests.chaos.rows import ROWS, Line, Row
from tests.support.servers import HOW_TO_GET, ROOT, find

_SHOWN = 400
RESULTS = ROOT / "bench" / "results" / "chaos.json"
PACKAGES = ("grpcio", "lb-mesh", "tenacity", "py-consul")
HEAD = (
    "row",
    "driver",
    "fault",
    "p50 ms",
    "p99 ms",
    "calls",
    "failed",
    "retries",
    "hedges",
    "last s",
    "probes",
    "goals",
)


def columns(line: Line) -> tuple[str, ...]:
    """A line of the table."""
    figures = line.figures
    last = "-" if figures.last_bad_s is None else f"{figures.last_bad_s:.2f}"
    wrong = line.broken + line.missed
    notes = [*line.notes]
    if figures.extra["transparent"]:
        notes.append(f"{figures.extra['transparent']} transparent retries")
    return (
        line.row,
        line.driver,
        line.name,
        f"{figures.percentile_ms(50):.1f}",
        f"{figures.percentile_ms(99):.1f}",
        str(figures.calls),
        str(figures.failed),
        str(figures.extra["retry"]),
        str(figures.extra["hedge"]),
        last,
        str(figures.probes),
        "; ".join((("MISSED: " + ", ".join(wrong)) if wrong else "met", *notes)),
    )


WIDTHS = (4, 7, 35, 7, 7, 6, 6, 7, 6, 6, 6, 0)


def show(texts: tuple[str, ...]) -> None:
    """One line, as soon as it is known."""
    pairs = enumerate(zip(texts, WIDTHS, strict=True))
    padded = (text.ljust(width) if i in (0, 1, 2, 11) else text.rjust(width) for i, (text, width) in pairs)
    print("  ".join(padded).rstrip(), flush=True)


def as_dict(line: Line) -> dict[str, Any]:
    """A line for the results."""
    figures = line.figures
    return {
        "row": line.row,
        "driver": line.driver,
        "fault": line.name,
        "p50_ms": round(figures.percentile_ms(50), 3),
        "p99_ms": round(figures.percentile_ms(99), 3),
        "calls": figures.calls,
        "failed": figures.failed,
        "errors": figures.errors,
        "retries": figures.extra["retry"],
        "hedges": figures.extra["hedge"],
        "transparent": figures.extra["transparent"],
        "why": dict(figures.why.most_common(5)),
        "last_bad_s": figures.last_bad_s,
        "probes": figures.probes,
        "notes": line.notes,
        "broken": line.broken,
        "missed": line.missed,
    }


def report(lines: list[Line]) -> str:
    """The last line: how many promises and goals were kept."""
    wanted = sum(line.wanted for line in lines)
    wrong = [f"{line.row} {line.driver} {what}" for line in lines for what in (*line.broken, *line.missed)]
    return f"goals: {wanted - len(wrong)} of {wanted} met" + (f"; missed: {'; '.join(wrong)}" if wrong else "")


async def run(rows: list[Row], shorter: float) -> list[Line]:
    """Row after row; each has processes of its own."""
    lines: list[Line] = []
    for row in rows:
        async with Rig(threads=row.threads) as rig:
            found = await row.run(rig, row, row.full_s * shorter)
        for line in found:
            show(columns(line))
            for error in line.figures.errors if line.broken else ():
                print(f"      {error[:_SHOWN]}")
        lines += found
    return lines


def chosen(words: list[str]) -> list[Row]:
    """The rows of these numbers (``3`` or ``3,7``), of every driver; all when there are none.

    Ends the program on an unknown one.
    """
    known = dict.fromkeys(row.number for row in ROWS)
    names = [name for word in words for name in word.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"chaos: row {unknown[0]!r} is unknown; expected some of {', '.join(known)}")
    rows = [row for name in names or known for row in ROWS if row.number == name]
    for row in rows:
        if row.needs and find(row.needs) is None:
            print(f"row {row.number} is left out: no {row.needs} on PATH or in .cache/bin. {HOW_TO_GET}")
    return [row for row in rows if not row.needs or find(row.needs)]


def exit_status(lines: list[Line], *, strict: bool) -> int:
    """1 when a promise broke; for goals of speed only if ``strict``."""
    return int(any(line.broken or (strict and line.missed) for line in lines))


def main() -> int:
    """Run the rows, print the table and, of a whole run, keep the results. See `exit_status`."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description="faults against the channel, as a table")
    parser.add_argument("rows", nargs="*", help="numbers of rows, all by default")
    parser.add_argument("--shorter", type=float, default=1.0, help="multiplies how long each fault lasts")
    arguments = parser.parse_args()
    logging.getLogger("lb").setLevel(logging.CRITICAL)  # what it would tell is done on purpose here
    rows = chosen(arguments.rows)
    load = os.getloadavg()[0]
    print(
        f"{IN_FLIGHT} idempotent unary calls in flight, timeout {TIMEOUT_S:g} s; a healthy server takes"
        f" {LATENCY_S * 1000:g} ms (0.75 to 1.25 times). Threads: each call blocks one.\n"
        f"Every channel: attempt_timeout_s {ATTEMPT_TIMEOUT_S:g} s, else the defaults.\n"
        "last s: from the fault to the last attempt on a bad endpoint that was no probe of its breaker.\n"
        f"This machine has {os.cpu_count()} cores; their load before the start was {load:.1f}.\n"
    )
    show(HEAD)
    lines = asyncio.run(run(rows, arguments.shorter))
    line = report(lines)
    results = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": load,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rows": [as_dict(each) for each in lines],
        "goals": line,
    }
    if not arguments.rows and arguments.shorter == 1:  # else they would not be the table of docs/faults.md
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{line}")
    return exit_status(lines, strict=os.environ.get("STRICT") == "1")


if __name__ == "__main__":
    sys.exit(main())
