"""What a channel costs while it does nothing, and what importing it costs: memory and time, against grpcio's own.

Run ``python bench/costs.py``. Memory is the growth of the process's resident set, in a process of its own for each
figure: for 2,000 calls that wait for their answer, and for 200 endpoints, all connected. Importing is the CPU time
of a fresh process that imports ``lb``, beside that of one that imports ``grpc.aio``, in turns.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.rig import BODY, HANG, UNARY, plain, servers, write

CALL, ENDPOINT, IMPORT = (
    "memory of a call that waits, KB",
    "memory of a connected endpoint, KB",
    "import, ms of CPU",
)
GOALS = {CALL: 16.0, ENDPOINT: 31.0, IMPORT: 45.0}
"""The most that is wanted; of the import, over grpcio's."""
CALLS = 2000
ENDPOINTS = 200
IMPORTS = 9


def _rss_kb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def _channel(side: str, addresses: list[str]) -> Any:
    if side == "grpcio":
        return plain(addresses)
    import lb

    return lb.aio.channel("static:///" + ",".join(addresses), policy="round_robin")


async def _calls(side: str, addresses: list[str], calls: int) -> float:
    channel = _channel(side, addresses)
    for _ in range(100):
        await channel.unary_unary(UNARY)(BODY)
    hang = channel.unary_unary(HANG)
    before = _rss_kb()
    waiting = [hang(BODY) for _ in range(calls)]
    await asyncio.sleep(1)
    grown = _rss_kb() - before
    for call in waiting:
        call.cancel()
    await channel.close()
    return grown / calls


async def _endpoints(side: str, addresses: list[str], _: int) -> float:
    few = _channel(side, addresses[:2])
    await few.channel_ready()
    before = _rss_kb()
    channel = _channel(side, addresses[2:])
    await channel.channel_ready()
    await asyncio.sleep(2)  # the others
    for _i in range(len(addresses)):
        await channel.unary_unary(UNARY)(BODY)
    grown = _rss_kb() - before
    await channel.close()
    await few.close()
    return grown / (len(addresses) - 2)


def _of(what: str, side: str, addresses: list[str], calls: int) -> float:
    command = [sys.executable, __file__, what, side, ",".join(addresses), str(calls)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _import_ms(module: str) -> float:
    code = f"import time; import {module}; print(time.process_time() * 1000)"
    # As an installed package is imported: its bytecode is there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def run(calls: int = CALLS, endpoints: int = ENDPOINTS, imports: int = IMPORTS) -> dict[str, Any]:
    """The rows: what it is, ours, grpcio's."""
    rows: dict[str, Any] = {}
    with servers() as addresses:
        figures = {side: _of("calls", side, addresses, calls) for side in ("grpcio", "lb")}
        rows[CALL] = figures
    with servers(4, max(1, endpoints // 4)) as addresses:
        figures = {side: _of("endpoints", side, addresses, 0) for side in ("grpcio", "lb")}
        rows[ENDPOINT] = figures
    times: dict[str, list[float]] = {"grpc.aio": [], "lb": []}
    for module in times:
        _import_ms(module)  # writes the bytecode
    for _ in range(imports):
        for module, values in times.items():
            values.append(_import_ms(module))
    rows[IMPORT] = {
        "grpcio": statistics.median(times["grpc.aio"]),
        "lb": statistics.median(times["lb"]),
    }
    return {
        name: {side: round(value, 1) for side, value in row.items()} | {"goal": GOALS[name], "over": name == IMPORT}
        for name, row in rows.items()
    }


def missed(row: dict[str, Any]) -> bool:
    """Whether a row is above its goal, which is for its figure, or for what that is over grpcio's."""
    goal = row.get("goal")
    return goal is not None and row["lb"] - (row["grpcio"] if row["over"] else 0.0) > goal


def goal_in_words(row: dict[str, Any]) -> str:
    """A row's goal, and whether it was missed."""
    if row.get("goal") is None:
        return ""
    return f"<= {row['goal']:.0f}{' more than grpcio' * row['over']}{', missed' * missed(row)}"


def show(rows: dict[str, Any]) -> list[str]:
    """Print the table; returns the goals that were missed."""
    print(f"{'':36} {'lb':>7} {'grpcio':>7}")
    for name, row in rows.items():
        print(f"{name:36} {row['lb']:7.1f} {row['grpcio']:7.1f}  {goal_in_words(row)}")
    return [f"{name}: {goal_in_words(row).removesuffix(', missed')}" for name, row in rows.items() if missed(row)]


def main() -> int:
    """Measure, print, keep."""
    if len(sys.argv) == 5:
        _, what, side, addresses, calls = sys.argv
        measure = {"calls": _calls, "endpoints": _endpoints}[what]
        print(asyncio.run(measure(side, addresses.split(","), int(calls))))
        return 0
    rows = run()
    write("costs", rows)
    above = show(rows)
    print(f"goals: {len(rows) - len(above)} of {len(rows)} met{'; missed: ' + ', '.join(above) if above else ''}")
    return 1 if above and os.environ.get("STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
