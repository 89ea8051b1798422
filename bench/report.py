"""Prints the results kept in ``bench/results``: the tables of README and of the pages of ``docs`` with figures.

``python bench/report.py`` prints, ``--write`` puts them into these pages, between their marks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.costs import CALL, ENDPOINT, IMPORT, goal_in_words
from bench.rows import LIMITS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
FAULTS = PAGE.parent / "faults.md"
SERVER = PAGE.parent / "server.md"
README = PAGE.parent.parent / "README.md"
SERVING = {
    "server": "**`make bench-server`**: one server process.",
    "overload": "**`make bench-overload`**: many times what the servers can do.",
    "drain": "**`make bench-drain`**: a rolling restart.",
}
"""The benches of servers, and what the page says of them."""
BEGIN, END = "<!-- begin: python bench/report.py -->", "<!-- end -->"

# The rows of README's short table, and what they are called there.
SHORT = {
    "lb": "a unary call with retries, breakers and a limit",
    "lb, hedging": "the same with hedging",
    "lb, metrics": "the same (without hedging) with metrics",
    "lb, traces at 1 %": "the same with traces, 1 % of them sampled",
    "lb, traces at 100 %": "the same with traces, all of them sampled",
    "lb, stream of responses, a message": "one message of a stream of responses",
    "lb.sync, threads": "threads: a blocking unary call",
    "lb.sync, futures": "threads: a future",
    "lb.sync, stream of responses, a message": "threads: one message of a stream of responses",
    "the pile, traces at 1 %": "for comparison: decorators and interceptors on grpcio's channel, 1 % sampled",
}
# What a channel costs beside its calls: the row, and its words with the figure of `lb`.
SHORT_COSTS = {
    CALL: "memory of a call that waits ({} KB)",
    ENDPOINT: "memory of a connected endpoint ({} KB)",
    IMPORT: "`import lb`, against `import grpc.aio` ({} ms of CPU, once)",
}


def shown(name: str) -> str:
    """What the page calls a row of `bench.rows`."""
    return name.replace("the pile", "decorators")


def _kept(name: str) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return kept


def _small_and_large(sizes: dict[str, dict[str, float]]) -> str:
    small, large = sizes["10"]["pick_ns"], sizes["10000"]["pick_ns"]
    return f"{small:.0f} / {large:.0f} ({large / small:.2f})"


def _goal(row: dict[str, Any]) -> str:
    if row["goal"] is not None:
        return f"<= {row['goal']:.2f}{', missed' * (row['ratio'] > row['goal'])}"
    aim = row.get("aim")
    return "" if aim is None else f"({aim:.2f})"


def _number(value: float | None, form: str = ".2f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _calls(rows: dict[str, Any]) -> list[str]:
    """The table of clients."""
    titles = ("client CPU", "goal", "to grpcio alone", "quartiles", "to grpcio beside `lb`", "us", "grpcio us")
    lines = [_line([*titles, "instructions", "of grpcio"]), "|---" * 9 + "|"]
    for name, row in rows.items():
        low, high = row["quartiles"]
        cells = [shown(name), _goal(row), f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]
        cells += [_number(row.get("changed_ratio")), f"{row['us']:.0f}", f"{row['plain_us']:.0f}"]
        cells += [_number(row.get(key), ",.0f") for key in ("instructions", "plain_instructions")]
        lines.append(_line(cells))
    return lines


def _limits(rows: dict[str, Any]) -> list[str]:
    """What a unary call costs at least, beside what it costs with `lb`; nothing where it was not measured."""
    limits = {name: rows[name] for name in LIMITS if name in rows}
    if not limits or "lb" not in rows:
        return []
    ours = rows["lb"]
    plain = {"us": ours["plain_us"], "ratio": 1.0, "instructions": ours.get("plain_instructions")}
    columns = {"grpcio": plain, "lb": ours, **limits}
    lines = ["", _line(["a unary call", *columns]), "|---" * (len(columns) + 1) + "|"]
    for title, key, form in (
        ("client CPU, us", "us", ".0f"),
        ("ratio to grpcio", "ratio", ".2f"),
        ("instructions", "instructions", ",.0f"),
    ):
        lines.append(_line([title, *(_number(column.get(key), form) for column in columns.values())]))
    return lines


def _missed(picks: list[str]) -> list[str]:
    """A row for each kind of goal, with the policies that miss it and the worst figure of each."""
    worst: dict[str, dict[str, str]] = {}
    for text in picks:
        found = re.fullmatch(r"(.*?) of (.*?)(?:, (?:equal weights|weights [\d, to]+))?: (.*)", text)
        assert found, text
        kind, policy, figure = found.groups()
        policies = worst.setdefault(kind, {})
        policies[policy] = max(figure, policies.get(policy, figure), key=lambda text: float(text.split()[0]))
    if not worst:
        return []
    rows = [_line([kind, "; ".join(f"{name} {figure}" for name, figure in of.items())]) for kind, of in worst.items()]
    return ["", "| missed | by (the worst mix of weights) |", "|---|---|", *rows]


def tables() -> str:
    """The tables, in Markdown."""
    calls, costs = _kept("calls"), _kept("costs")
    lines = _calls({name: row for name, row in calls["rows"].items() if name not in LIMITS})
    lines += _limits(calls["rows"])
    lines += ["", "| | lb | grpcio | goal |", "|---|---|---|---|"]
    lines += [_line([name, row["lb"], row["grpcio"], goal_in_words(row)]) for name, row in costs["rows"].items()]
    mix = "weights 1, 2, 5"
    lines += [
        "",
        f"| {mix}: ns at 10 / at 10,000 endpoints | pick | whole pick | change at 10,000, ms |",
        "|---|---|---|---|",
    ]
    picks = _kept("pick")
    for name, whole in picks["whole_picks"][mix].items():
        pick = picks["picks"][mix][name]
        of_pick = (name, _small_and_large(pick), _small_and_large(whole), f"{pick['10000']['change_ms']:.2f}")
        lines.append("| " + " | ".join(of_pick) + " |")
    met = picks["goals"]
    lines += ["", f"Picks, with all mixes of weights: {met['met']} of {met['of']} goals met."]
    lines += _missed(met["missed"])
    versions = ", ".join(f"{name} {version}" for name, version in calls["versions"].items())
    return "\n".join([*lines, "", f"With {versions}."])


def short() -> str:
    """README's table, in Markdown."""
    calls, costs = _kept("calls"), _kept("costs")
    lines = ["| | `lb` / grpcio |", "|---|---|"]
    for name, words in SHORT.items():
        if name in calls["rows"]:
            lines.append(f"| {words} | {calls['rows'][name]['ratio']:.2f} |")
    for name, words in SHORT_COSTS.items():
        row = costs["rows"].get(name)
        if row is None:
            continue
        lines.append(f"| {words.format(row['lb'])} | {row['lb'] / row['grpcio']:.2f} |")
    return "\n".join(lines)


def faults() -> str:
    """The table of ``make chaos``, in Markdown."""
    chaos = _kept("chaos")
    lines = [
        "| | fault | p50 ms | p99 ms | calls | failed | retries | hedges | last bad, s | notes |",
        "|---" * 10 + "|",
    ]
    for row in chaos["rows"]:
        last = row["last_bad_s"]
        wrong = [f"**missed: {what}**" for what in (*row["broken"], *row["missed"])]
        cells = (
            row["row"],
            f"{row['driver']}: {row['fault']}" if row.get("driver") else row["fault"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            row["calls"],
            row["failed"],
            row["retries"] + row["transparent"],
            row["hedges"],
            "" if last is None else f"{last:.2f}",
            "; ".join([*wrong, *row["notes"]]),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in chaos["versions"].items())
    goals = f"{chaos['goals']}, on {chaos['machine']}; load before the start {chaos['load_before']:.1f}."
    return "\n".join([*lines, "", goals[0].upper() + goals[1:], "", f"With python {chaos['python']}, {versions}."])


def serving() -> str:
    """What the benches of servers found; nothing of those that have not run."""
    parts = []
    for name, words in SERVING.items():
        if (RESULTS / f"{name}.json").exists():
            kept = _kept(name)
            versions = ", ".join(f"{of} {version}" for of, version in kept["versions"].items())
            goals = kept["rows"]["goals"]
            last = f"{goals[0].upper()}{goals[1:]}.\n\nOn {kept['rows']['machine']}. With {versions}."
            parts += [words, *kept["rows"]["parts"], last]
    return "\n\n".join(parts)


def main() -> int:
    """Print or write."""
    for page, made in ((PAGE, tables()), (FAULTS, faults()), (README, short()), (SERVER, serving())):
        if sys.argv[1:] == ["--write"]:
            before, _, rest = page.read_text().partition(BEGIN)
            _, _, after = rest.partition(END)
            page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
        else:
            print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
