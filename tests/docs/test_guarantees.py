"""``docs/guarantees.md``: every test that it names is there, and no promise stands without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.chaos.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
PROMISES = {
    title: text
    for title, text in re.findall(r"^##+ (.*?)$\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    if text.strip() and title != "What is not promised"
}
KEPT = {title: re.findall(r"`([^`]+)`", text.partition("Kept by:")[2]) for title, text in PROMISES.items()}


def names_in(path: Path) -> set[str]:
    """The names of a module's tests, those of its classes with the class before them."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        prefix, inner = (f"{node.name}::", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for test in inner:
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) and test.name.startswith("test_"):
                found.add(prefix + test.name)
    return found


@pytest.mark.parametrize("title", PROMISES)
def test_a_promise_has_a_test(title: str) -> None:
    """At least one, after the words "Kept by"."""
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
