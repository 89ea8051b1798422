"""``docs/guarantees.md``: every promise has a row in the table of tests, and every test there exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.chaos.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
TABLE = "Which test checks which promise"
PROMISES = [
    title
    for title, text in re.findall(r"^##+ (.*?)$\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    if text.strip() and title not in ("What is not promised", TABLE)
]
ROWS_OF_TABLE = re.findall(r"^\| \[(.*?)\]\(#.*?\) \| (.*) \|$", PAGE.partition(f"## {TABLE}")[2], re.MULTILINE)
KEPT = {title: re.findall(r"`([^`]+)`", tests) for title, tests in ROWS_OF_TABLE}


@functools.cache
def names_in(path: Path) -> set[str]:
    """The names of a module's tests, those of its classes with the class before them."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        prefix, inner = (f"{node.name}::", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for test in inner:
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
                found.add(prefix + test.name)
    return found


def test_the_table_has_each_promise_once_in_the_pages_order() -> None:
    """A promise without a row, and a row without a promise, are mistakes."""
    assert [title for title, _ in ROWS_OF_TABLE] == PROMISES


@pytest.mark.parametrize("title", PROMISES)
def test_a_promise_has_a_test(title: str) -> None:
    """Its row of the table names at least one."""
    assert KEPT[title]


@pytest.mark.parametrize("name", sorted({name for names in KEPT.values() for name in names}))
def test_a_named_test_is_there(name: str) -> None:
    """A file of tests, one of its tests, or a row of `make chaos`."""
    if name.startswith("chaos "):
        assert name.removeprefix("chaos ") in {row.number for row in ROWS}
        return
    file, _, test = name.partition("::")
    found = names_in(ROOT / "tests" / file)
    assert test in found if test else found
