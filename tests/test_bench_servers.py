"""The benches of servers: their load, their arithmetic, their last line. `make bench-short` runs them in short."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the bench needs the shop's packages (extra: services)")
pytest.importorskip("aiosqlite", reason="the bench needs the shop's packages (extra: services)")

from bench import servers, shop
from bench.goals import Goal, finish, repeated, spread
from bench.pressure import GRPC, Call, Figures, Generators, Kind, Phase, generators, percentile
from bench.server import search
from mesh.orders.v1 import OrderState
from services.orders.store import AUTHORIZED, CONFIRMED, FAILED, PENDING, RESERVED
from services.shop.assortment import ASSORTMENT, FIRST_DELIVERY

ECHO = Kind(servers.ECHO)


def figures(*calls: Call, s: float = 4.0, skip_s: float = 0.0, lag_ms: float = 1.0) -> Figures:
    """Of calls that were not made."""
    return Figures(Phase(s, (ECHO,), skip_s=skip_s), [*calls], [lag_ms])


def answered(*at: float, took_s: float = 0.01, code: str = "OK") -> list[Call]:
    """A call at each of these times."""
    return [Call(ECHO, each, took_s, code) for each in at]


def test_goodput_counts_what_was_answered_in_the_phase() -> None:
    """Work counts when its answer comes, by what it costs; failures, later answers and the warm-up do not."""
    dear = Kind(servers.SLOT, costs=3.0)
    found = figures(
        *answered(1.5, 2.0),
        *answered(0.5),  # in the warm-up
        *answered(3.0, code="UNAVAILABLE"),
        *answered(3.9, took_s=0.2),  # after the end
        Call(dear, 0.9, 0.2, "OK"),
        skip_s=1.0,
    )
    assert found.goodput() == pytest.approx((1 + 1 + 3) / 3.0)
    assert found.failed == 1


def test_goodput_is_back_when_a_second_had_it() -> None:
    """It tells the end of the first such second; infinite, if there is none."""
    found = figures(*answered(*(1.0 + 0.1 * number for number in range(29))))
    assert found.back_s(9.5) == pytest.approx(1.95)
    assert found.back_s(11.0) == math.inf


def test_a_run_in_which_the_generator_lags_is_void() -> None:
    """Its figures meet no goal and break no promise."""
    lagging = figures(lag_ms=5.1)
    assert lagging.void
    assert not figures(lag_ms=4.9).void
    goal = Goal("goodput", 0.95, least=0.9, promise=0.5, void=True)
    assert not goal.met
    assert not Goal("goodput", 0.1, least=0.9, promise=0.5, void=True).broken
    assert "void" in goal.text


def test_goals_and_promises(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missed goal decides the exit status only with STRICT=1, a broken promise always; nan is neither good."""
    monkeypatch.delenv("STRICT", raising=False)
    missed = Goal("p99", 3.0, most=2.0, promise=10.0)
    broken = Goal("kept", 0.4, least=0.9, promise=0.5)
    met = Goal("back", 2.0, most=2.0)
    assert finish("x", [], [met, missed], keep=False) == 0
    assert capsys.readouterr().out.endswith("goals: 1 of 2 met; missed: p99 3 (<= 2)\n")
    assert finish("x", [], [met, broken], keep=False) == 1
    assert "broken: kept 0.4 (>= 0.9)" in capsys.readouterr().out
    nothing = Goal("p99", math.nan, most=2.0, promise=10.0)
    assert nothing.broken
    assert not nothing.met
    monkeypatch.setenv("STRICT", "1")
    assert finish("x", [], [met, missed], keep=False) == 1


@pytest.mark.parametrize("most", [1, 7, 23, 40])
def test_the_search_finds_the_most_callers(most: int) -> None:
    """Within a sixteenth, and with the figures of what it found; a single bad run in the doubling costs nothing."""
    asked: list[int] = []

    def attempt(callers: int) -> Figures:
        asked.append(callers)
        bad = callers > most or asked == [4]
        return figures(*answered(0.0, took_s=0.2 if bad else 0.05))

    found, of_found = search(attempt, 100.0, 16)
    assert most - max(1, most // 16) < found <= most
    assert of_found.p99_ms() == pytest.approx(50.0)


def test_a_broken_promise_is_measured_again() -> None:
    """At most so many times; what it ends with counts, and one that is kept ends it."""
    for statuses, tries, ends_with, measured in (
        ([0], 3, 0, 1),
        ([1, 0], 3, 0, 2),
        ([1, 1, 1, 0], 3, 1, 3),
        ([1, 0], 1, 1, 1),
    ):
        left = iter(statuses)
        seen: list[int] = []

        def measure(left: Iterator[int] = left, seen: list[int] = seen) -> int:
            seen.append(next(left))
            return seen[-1]

        assert repeated(measure, tries) == ends_with
        assert len(seen) == measured


def test_percentiles_and_spreads() -> None:
    """By nearest rank; a spread has the mean, the lowest and the highest."""
    assert percentile([*range(1, 101)], 99) == 99
    assert math.isnan(percentile([], 99))
    assert spread([1.0, 2.0]) == "1.50 (1.00 to 2.00)"


@pytest.fixture(scope="module")
def load() -> Iterator[Generators]:
    """Two generators for the tests of this module."""
    with generators() as started:
        yield started


@pytest.mark.parametrize("kind", ["naive", "plain", "lb"])
def test_each_server_answers(kind: str, load: Generators) -> None:
    """A call that makes a call and a query is answered, by open and closed load, over both kinds of channels."""
    with (
        servers.database() as database,
        servers.started("downstream", "--after", "0.001") as (other,),
        servers.started(kind, "--downstream", other.address, "--database", database) as (server,),
    ):
        work = (Kind(servers.WORK),)
        phases = [Phase(0.3, work, rate=40.0, timeout_s=20.0), Phase(0.6, work, callers=1, timeout_s=20.0)]
        for channel in (GRPC, "lb"):
            opened, closed = load.run([server.address], phases, channel)
            assert 10 <= len(opened.calls) <= 14
            assert closed.calls
            assert set(opened.codes) == set(closed.codes) == {"OK"}
        assert server.cpu_s() > 0


def test_a_full_server_refuses(load: Generators) -> None:
    """While its only place is taken, calls are refused; what came of each is told, by priority as well."""
    with servers.started("lb", "--most", "1") as (server,):
        both = (Kind(servers.SLOT), Kind(servers.SLOT, priority="critical"))
        (over,) = load.run([server.address], [Phase(0.5, both, rate=400.0, poisson=True)])
        assert {"OK", "UNAVAILABLE"} <= set(over.codes)
        assert 0 < over.kept("critical") < 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The databases of a shop in which one order went through."""
    item = ASSORTMENT[0]
    tables: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        "orders": (
            "orders (state, lines)",
            [(CONFIRMED, json.dumps([[item.sku, item.name, 2, "EUR", item.cents // 100, 0]]))],
        ),
        "inventory": (
            "stock (sku, available)",
            [(each.sku, FIRST_DELIVERY - 2 * (each is item)) for each in ASSORTMENT],
        ),
        "payments": (
            "payments (state, amount_units, amount_nanos)",
            [("CAPTURED", 2 * item.cents // 100, 2 * item.cents % 100 * 10_000_000)],
        ),
    }
    for name, (table, rows) in tables.items():
        with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            connection.execute(f"CREATE TABLE {table}")
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            connection.commit()
    return tmp_path


def change(data: Path, name: str, statement: str, *values: object) -> None:
    """Change a database."""
    with contextlib.closing(sqlite3.connect(data / f"{name}.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


def goals(books: shop.Books) -> list[str]:
    """The goals of a shop with these books that are broken, however busy the machine is."""
    found = shop.Shop(capacity=1.0, goodput=1.0, books=books, void=True)
    return [goal.name.removeprefix("the shop: ") for goal in shop.goals_of(found) if goal.broken]


def test_books_that_add_up(data: Path) -> None:
    """What was sold was taken from the stock and paid."""
    books = shop.books(data, answered=1)
    assert (books.orders, books.words) == (1, "none")
    assert goals(books) == []


@pytest.mark.parametrize("state", [PENDING, RESERVED, AUTHORIZED])
def test_an_order_in_no_final_state(data: Path, state: int) -> None:
    """It is counted, and breaks a promise; one that failed is final."""
    change(data, "orders", "INSERT INTO orders VALUES (?, '[]')", FAILED)
    change(data, "orders", "INSERT INTO orders VALUES (?, '[]')", state)
    books = shop.books(data, answered=1)
    assert (books.orders, books.unfinished.total(), books.wrong) == (3, 1, [])
    assert OrderState.Name(state) in books.words  # type: ignore[arg-type]
    assert goals(books) == ["orders in no final state"]


@pytest.mark.parametrize(
    ("name", "statement", "words"),
    [
        ("orders", "DELETE FROM orders", "answered as placed"),
        ("inventory", "UPDATE stock SET available = available - 1", "taken from the stock"),
        ("inventory", "UPDATE stock SET available = available + 1", "taken from the stock"),
        ("payments", "UPDATE payments SET amount_units = amount_units + 1", "were paid"),
        ("payments", "UPDATE payments SET amount_nanos = amount_nanos + 10000000", "were paid"),
        ("payments", "DELETE FROM payments", "0 cents were paid"),
        ("payments", "INSERT INTO payments VALUES ('AUTHORIZED', 1, 0)", "neither captured nor voided"),
    ],
)
def test_books_that_do_not(data: Path, name: str, statement: str, words: str) -> None:
    """A sale without a piece, a payment without an order, an order that its buyer alone knows of: each is told."""
    change(data, name, statement)
    books = shop.books(data, answered=1)
    assert any(words in each for each in books.wrong), books
    assert goals(books) == ["sums that do not add up"]
