"""How many instructions the picks of `bench.pick` take at 10 and at 10,000 endpoints, counted by callgrind.

A pick that takes as many instructions at both sizes, and longer by the clock at the larger one, waits for memory.
`bench.pick` asks this of the picks that miss their goal; ``python bench/steps.py [MIX ...]`` counts all (of these mixes
of weights). Needs valgrind. One process makes all picks, under callgrind, which counts during the rounds only: what
came before a round has used each endpoint already.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import instructions, rig
from bench.pick import KINDS, MIXES, POLICIES, SIZES, Row, cell

PICKS = 2_000
BEFORE = 3
"""So many picks for each endpoint come before: they make the records that a first pick makes."""
TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


def count(rows: Sequence[Row]) -> dict[Row, tuple[float, float]]:
    """Instructions of one pick of each row, at the smallest and the largest size."""
    if not rows:
        return {}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        valgrind = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}")
        worker = subprocess.Popen(
            [*valgrind, f"--log-file={directory}/log", sys.executable, __file__, "--worker", json.dumps(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        try:
            counts = [_counted(worker, out.with_name(f"out.{number}")) for number in range(1, 2 * len(rows) + 1)]
        finally:
            worker.communicate()
    return dict(zip(rows, zip(counts[::2], counts[1::2], strict=True), strict=True))


def _counted(worker: subprocess.Popen[str], dump: Path) -> float:
    """One round of picks, counted."""
    rig.answer("picks", worker)
    instructions.control(worker, "-i", "on")
    rig.tell(worker)
    rig.answer("picks", worker)
    instructions.control(worker, "-i", "off")
    instructions.control(worker, "-d", "round")
    rig.tell(worker)
    found = TOTALS.search(dump.read_text())
    if found is None:
        raise SystemExit(f"callgrind has written no total to {dump}")
    dump.unlink()
    return int(found[1]) / PICKS


def work(rows: Sequence[Row]) -> None:
    """The worker: rounds of picks, each when it is told to, and a line before and after each."""
    for row in rows:
        for size in (SIZES[0], SIZES[-1]):
            made = cell(row, size)
            made.make(max(PICKS, BEFORE * size))
            print("{}", flush=True)
            sys.stdin.readline()
            made.make(PICKS)
            print("{}", flush=True)
            sys.stdin.readline()


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description="instructions a pick, by callgrind")
    parser.add_argument("--worker", metavar="ROWS", help=argparse.SUPPRESS)
    parser.add_argument("mixes", nargs="*", metavar="MIX", help=f"of: {'; '.join(MIXES)}")
    arguments = parser.parse_args()
    if arguments.worker:
        work([Row(*row) for row in json.loads(arguments.worker)])
        return 0
    if not instructions.possible():
        parser.error("valgrind is not on PATH (Debian: apt-get install valgrind)")
    unknown = [mix for mix in arguments.mixes if mix not in MIXES]
    if unknown:
        parser.error(f"mix {unknown[0]!r}; expected one of: {'; '.join(MIXES)}")
    rows = [Row(kind, name, mix) for mix in arguments.mixes or MIXES for name in POLICIES for kind in KINDS]
    show(count([row for row in rows if row.exists]))
    return 0


def show(counts: dict[Row, tuple[float, float]]) -> None:
    """Print a table."""
    print("instructions".ljust(60) + f"{SIZES[0]:>9,}{SIZES[-1]:>9,}    ratio")
    for row, (small, large) in counts.items():
        print(f"  {row}".ljust(60) + f"{small:>9.0f}{large:>9.0f}{large / small:>9.2f}")


if __name__ == "__main__":
    sys.exit(main())
