"""The measures run, in a form of a few seconds: each row has figures, and the page's tables can be printed of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the bench needs the OpenTelemetry SDK (extra: services)")
pytest.importorskip("purgatory", reason="the bench compares with a breaker library (extra: dev)")

from bench import calls, costs, goals, instructions, report, rig, steps
from bench.pick import PICK, WHOLE, Row
from bench.rows import LIMITS, ROWS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a directory of the test's own."""
    for module in (rig, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_the_rows_of_calls(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row is measured beside grpcio's channel, in another process, and a goal that is missed is named."""
    measured = calls.run([*ROWS, *LIMITS], turns=2, calls=64)
    assert set(measured) >= {*ROWS, *LIMITS} - {"grpc-go"}
    assert all(row["us"] > 0 and row["plain_us"] > 0 and row["ratio"] > 0 for row in measured.values())
    in_loops = {name for name, row in measured.items() if row["changed_ratio"] is not None}
    assert {"lb", "lb, stream both ways, a message", "grpcio's lower layer"} <= in_loops
    assert "lb.sync, threads" not in in_loops
    measured["lb"]["ratio"], measured["lb, metrics"]["ratio"] = 9.0, 0.5
    missed = calls.show(measured)
    assert "lb <= 0.95" in missed
    assert "lb, metrics <= 1.05" not in missed
    assert "(aim 1.05)" in capsys.readouterr().out


def test_the_order_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client is measured twice in a turn, never twice in a row, and in reversed order in the next turn."""
    order: list[str] = []

    def measure(name: str, worker: object) -> float:
        order.append(name)
        return float(len(order))

    monkeypatch.setattr(rig, "measure", measure)
    started: Any = dict.fromkeys("abc")
    assert rig.turn(["a", "b", "c"], started, 0) == {"a": 2.5, "b": 3.5, "c": 4.5}
    rig.turn(["a", "b", "c"], started, 1)
    assert "".join(order) == "abcabc" + "cbacba"


@pytest.mark.skipif(not instructions.possible(), reason="needs valgrind")
def test_the_instructions() -> None:
    """Counting begins after the warm-up: the start of Python alone has many times as many instructions."""
    assert 20_000 < instructions.run(["grpcio, unary"], calls=64)["grpcio, unary"] < 1_000_000


@pytest.mark.skipif(not instructions.possible(), reason="needs valgrind")
def test_the_instructions_of_a_pick() -> None:
    """They are those of one pick, at both sizes: what goes before has used each endpoint, and is not counted."""
    alone, whole = Row(PICK, "random", "equal weights"), Row(WHOLE, "random", "equal weights")
    counted = steps.count([alone, whole])
    assert all(500 < count < 10_000 for count in counted[alone])
    assert all(count > 3 * max(counted[alone]) for count in counted[whole])
    small, large = counted[whole]
    assert large < 1.1 * small


CHAOS = {
    "python": "3.13",
    "machine": "x86_64, 2 cores",
    "load_before": 0.5,
    "versions": {"grpcio": "1.85"},
    "goals": "goals: 1 of 2 met; missed: 1 aio p99",
    "rows": [
        {
            **{"row": "1", "driver": "aio", "fault": "SIGKILL", "p50_ms": 24.0, "p99_ms": 33.12},
            **{"calls": 900, "failed": 0, "retries": 2, "hedges": 1, "transparent": 1},
            **{"last_bad_s": 0.2393, "notes": ["a note"], "broken": [], "missed": ["p99"]},
        }
    ],
}


def test_the_page(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`report --write` puts the tables between the marks of each page, and touches nothing else."""
    row: dict[str, Any] = {"ratio": 1.0, "quartiles": [0.9, 1.1], "us": 100.0, "plain_us": 100.0, "goal": 1.0}
    row |= {"changed_ratio": 1.05, "aim": None, "instructions": 200_000.4, "plain_instructions": 250_000.0}
    slow = row | {"ratio": 1.2, "quartiles": [1.1, 1.3], "us": 120.0, "instructions": None}
    aimed = row | {"goal": None, "aim": 1.1, "changed_ratio": None}
    low = aimed | {"ratio": 0.63, "us": 63.0, "instructions": None}
    rig.write("calls", {"lb": row, "slow": slow, "aimed": aimed, "grpc-go": low})
    waiting = {"lb": 17.0, "grpcio": 20.0, "goal": 16.0, "over": False}
    rig.write("costs", {"waiting": waiting, costs.IMPORT: {"lb": 100.0, "grpcio": 60.0, "goal": 45.0, "over": True}})
    sizes = {"10": {"pick_ns": 100.0, "change_ms": 0.01}, "10000": {"pick_ns": 150.0, "change_ms": 1.0}}
    picks = {"weights 1, 2, 5": {"random": sizes}}
    missed = ["pick of random, equal weights: 1.52 (by instructions 1.04)", "pick of random, weights 1, 2, 5: 1.50"]
    missed.append("pick of p2c, all warm, weights 1 to 1,000: 1.60")
    met = {"met": 1, "of": 2, "missed": missed}
    (elsewhere / "pick.json").write_text(json.dumps({"picks": picks, "whole_picks": picks, "goals": met}))
    assert json.loads((elsewhere / "calls.json").read_text())["versions"]["grpcio"]
    (elsewhere / "chaos.json").write_text(json.dumps(CHAOS))
    page, faults, readme = elsewhere / "performance.md", elsewhere / "faults.md", elsewhere / "README.md"
    server = elsewhere / "server.md"
    goals.finish("drain", [goals.Table(["", "failed"], [["calls", 0]])], [], keep=True)
    for path in (page, faults, readme, server):
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FAULTS", faults)
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "SERVER", server)
    monkeypatch.setattr(sys, "argv", ["report.py", "--write"])
    assert report.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| lb | <= 1.00 | 1.00 | 0.90 to 1.10 | 1.05 | 100 | 100 | 200,000 | 250,000 |" in text
    assert "| slow | <= 1.00, missed | 1.20 | 1.10 to 1.30 | 1.05 | 120 | 100 |  | 250,000 |" in text
    assert "| aimed | (1.10) | 1.00 | 0.90 to 1.10 |  | 100 | 100 | 200,000 | 250,000 |" in text
    assert "| a unary call | grpcio | lb | grpc-go |" in text
    assert "| client CPU, us | 100 | 100 | 63 |" in text
    assert "| ratio to grpcio | 1.00 | 1.00 | 0.63 |" in text
    assert "| waiting | 17.0 | 20.0 | <= 16, missed |" in text
    assert f"| {costs.IMPORT} | 100.0 | 60.0 | <= 45 more than grpcio |" in text
    assert "| random | 100 / 150 (1.50) | 100 / 150 (1.50) | 1.00 |" in text
    assert "1 of 2 goals met." in text
    assert "| pick | random 1.52 (by instructions 1.04); p2c, all warm 1.60 |" in text
    assert "old" not in text
    text = faults.read_text()
    assert "| 1 | aio: SIGKILL | 24.0 | 33.1 | 900 | 0 | 3 | 1 | 0.24 | **missed: p99**; a note |" in text
    assert "\nGoals: 1 of 2 met; missed: 1 aio p99, on x86_64, 2 cores; load before the start 0.5.\n" in text
    assert "(100.0 ms of CPU, once) | 1.67 |" in readme.read_text()
    text = server.read_text()
    assert "| calls | 0 |" in text
    assert "Goals: 0 of 0 met." in text
    assert "bench-server" not in text, "it has not run"


def test_the_costs(elsewhere: Path) -> None:
    """Memory and imports, of both sides."""
    rows: dict[str, Any] = costs.run(calls=50, endpoints=8, imports=1)
    assert set(rows) == {
        "memory of a call that waits, KB",
        "memory of a connected endpoint, KB",
        "import, ms of CPU",
    }
    assert all(row["lb"] > 0 and row["grpcio"] > 0 for row in rows.values())
    assert [costs.missed(row | {"lb": 1000.0, "grpcio": 900.0}) for row in rows.values()] == [True] * 3
    assert not costs.missed(rows["import, ms of CPU"] | {"lb": 1000.0, "grpcio": 960.0})
