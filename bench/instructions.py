"""How many instructions a call costs, counted by callgrind: steps below 1 % that a clock on a busy machine hides.

Run ``python bench/instructions.py [--against CHECKOUT] [--calls 1500] [--runs 2] [ROW ...]`` (the rows of `bench.rows`;
needs valgrind). A client runs under callgrind, its servers do not. Counting begins after its warm-up, and ends with its
last call. The median of the runs counts, with the distance between the smallest and the largest. What other work the
machine has does not matter, except to the number of turns of the event loop. ``--against`` counts the `lb` of another
checkout as well, with this bench and this interpreter and its packages, and prints the ratio: what a change costs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import rig
from bench.rig import ROOT
from bench.rows import ALL

COLLECTED = re.compile(r"Collected : (\d+)")
VALGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null")
ROWS = [name for name, row in ALL.items() if row.who not in ("go", "pile")]
CALLS = 1500
AT_ONCE = 2


def possible() -> bool:
    """Whether valgrind is here."""
    return shutil.which("valgrind") is not None and shutil.which("callgrind_control") is not None


def count(name: str, addresses: list[str], calls: int, checkout: Path | None = None) -> float:
    """Instructions per call (or message) of one process."""
    client = [sys.executable, str(ROOT / "bench" / "client.py"), name, ",".join(addresses), str(calls)]
    environment = os.environ | {"PYTHONHASHSEED": "0", "COUNTED_CHECKOUT": str(checkout or "")}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        worker = subprocess.Popen(
            [*VALGRIND, f"--log-file={log}", *client],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            rig.answer(name, worker)
            control(worker, "-i", "on")
            rig.tell(worker)
            done = rig.answer(name, worker)["done"]
            control(worker, "-i", "off")
        finally:
            worker.communicate()
        said = log.read_text()
    found = COLLECTED.search(said)
    if worker.returncode or found is None:
        raise SystemExit(f"{name}: the client ended with status {worker.returncode}: {said[-2000:]}")
    return int(found[1]) / int(done)


def control(worker: subprocess.Popen[str], *options: str) -> None:
    """Tell the callgrind that a process runs under to count (``-i on``, ``-i off``) or to write down (``-d``)."""
    subprocess.run(["callgrind_control", *options, str(worker.pid)], check=True, capture_output=True)


def run(names: Iterable[str], calls: int = CALLS) -> dict[str, float]:
    """Instructions per call of each row that can be counted, from one run each, two at a time."""
    counted = [name for name in names if name in ROWS]
    with rig.servers() as addresses, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = {name: pool.submit(count, name, addresses, calls) for name in counted}
        failed = {name: error for name, future in found.items() if (error := future.exception())}
        for error in failed.values():
            print(error, file=sys.stderr)  # the other rows have their figures
        return {name: future.result() for name, future in found.items() if name not in failed}


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description="instructions a call, by callgrind")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--runs", type=int, default=2, help="of each row; the median counts")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)}".replace("%", "%%"))
    arguments = parser.parse_args()
    if not possible():
        parser.error("valgrind is not on PATH (Debian: apt-get install valgrind)")
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"row {unknown[0]!r}; expected one of: {'; '.join(ROWS)}")
    print(f"{'instructions':42} {'here':>9} {'apart':>6} {'against':>9} {'apart':>6}  ratio")
    with rig.servers() as addresses:
        for name in arguments.rows or ROWS:
            here, there = [], []
            for _ in range(arguments.runs):
                here.append(count(name, addresses, arguments.calls))
                if arguments.against:
                    there.append(count(name, addresses, arguments.calls, arguments.against.resolve()))
            line = f"{name:42} {_shown(here)}"
            if there:
                line += f" {_shown(there)}  {statistics.median(here) / statistics.median(there):.3f}"
            print(line, flush=True)
    return 0


def _shown(counts: list[float]) -> str:
    middle = statistics.median(counts)
    return f"{middle:9.0f} {(max(counts) - min(counts)) / middle:6.1%}"


if __name__ == "__main__":
    sys.exit(main())
