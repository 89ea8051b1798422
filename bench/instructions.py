"""How many instructions a call costs, counted by callgrind: steps below 1 % that a clock on a busy machine hides.

Run ``python bench/instructions.py [--against CHECKOUT] [--calls 600] [ROW ...]`` (the rows of `bench.calls`; needs
valgrind). A client runs under callgrind, its servers do not. Each row is counted with ``calls`` and with three times
as many, so that start and warm-up cancel out; the smallest of ``--runs`` counts. ``--against`` counts another checkout
of this project as well, with this interpreter and its packages, and prints the ratio: what a change costs.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    # The counted process imports `lb` and `bench` from the checkout that is counted.
    sys.path.insert(0, os.environ.get("COUNTED_CHECKOUT") or str(Path(__file__).resolve().parent.parent))

import lb
from bench import calls as bench
from bench.rig import servers

HERE = Path(__file__).resolve().parent.parent
COLLECTED = re.compile(r"Collected : (\d+)")
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
ROWS = [name for name, row in bench.ROWS.items() if not row.pile]


async def client(row: bench.Row, addresses: list[str], count: int) -> None:
    """Make ``count`` calls as the row says."""
    bench.telemetry(row)
    target = "static:///" + ",".join(addresses)
    if row.kind == "threads":
        with concurrent.futures.ThreadPoolExecutor(bench.THREADS) as pool, lb.sync.channel(target) as channel:
            await bench.threads(pool)(channel, count)
        return
    load = {"unary": bench.unary, "responses": bench.responses, "both": bench.both}[row.kind]
    async with lb.aio.channel(target, **bench.settings(row)) as channel:
        await load(channel, count)


def collected(checkout: Path, name: str, addresses: list[str], count: int) -> int:
    """Instructions of one whole process."""
    program = str(HERE / "bench" / "instructions.py")
    command = [*VALGRIND, sys.executable, program, "--client", name, ",".join(addresses), str(count)]
    environment = os.environ | {"PYTHONHASHSEED": "0", "COUNTED_CHECKOUT": str(checkout)}
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, env=environment)
    found = COLLECTED.search(run.stderr)
    if run.returncode or found is None:
        raise SystemExit(f"{name}: the client ended with status {run.returncode}: {run.stderr[-2000:]}")
    return int(found[1])


def per_call(checkout: Path, name: str, addresses: list[str], calls: int) -> float:
    """Instructions a call (or a message, for streams)."""
    kind = bench.ROWS[name].kind
    few, many = calls, 3 * calls
    more = many - few
    if kind in ("responses", "both"):  # `calls` counts messages there
        unit = bench.STREAMS * 5
        more = (many // unit - few // unit) * bench.STREAMS * bench.MESSAGES
    return (collected(checkout, name, addresses, many) - collected(checkout, name, addresses, few)) / more


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description="instructions a call, by callgrind")
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--runs", type=int, default=2, help="of each row; the smallest counts")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)}".replace("%", "%%"))
    arguments = parser.parse_args()
    if arguments.client:
        name, addresses, count = arguments.client
        asyncio.run(client(bench.ROWS[name], addresses.split(","), int(count)))
        return 0
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not on PATH (Debian: apt-get install valgrind)")
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"row {unknown[0]!r}; expected one of: {'; '.join(ROWS)}")
    print(f"{'instructions':36} {'here':>9} {'against':>9}  ratio")
    for name in arguments.rows or ROWS:
        here, there = [], []
        with servers() as addresses:
            for _ in range(arguments.runs):
                here.append(per_call(HERE, name, addresses, arguments.calls))
                if arguments.against:
                    there.append(per_call(arguments.against.resolve(), name, addresses, arguments.calls))
        against = f"{min(there):9.0f}  {min(here) / min(there):.3f}" if there else ""
        print(f"{name:36} {min(here):9.0f} {against}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
