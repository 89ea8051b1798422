"""A rule of asyncio and of threads has one name in ``tests/aio`` and ``tests/sync``, or `one_sided` says why not."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.shells.one_sided import AIO, ALL, SYNC, WITHIN_AIO, WITHIN_SYNC, Entries

TESTS = Path(__file__).resolve().parents[1]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Side:
    """The tests of one shell, and what `one_sided` says of them; ``partners`` is set when both are read."""

    def __init__(self, name: str, entries: Entries, within: dict[str, str]) -> None:
        self.name = name
        self.files = {
            path.relative_to(TESTS / name).as_posix(): {
                node.name
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, FUNCTION) and node.name.startswith("test_")
            }
            for path in sorted((TESTS / name).rglob("test_*.py"))
        }
        self.names = set().union(*self.files.values())
        self.entries = Counter(
            (file, test)
            for files in entries.values()
            for file, tests in files.items()
            for test in tests.split() or [ALL]
        )
        self.within = within
        self.partners: set[str] = set()

    def alone(self, file: str) -> set[str]:
        """The tests of a file for which the other side has none."""
        return self.files.get(file, set()) - self.partners

    def __repr__(self) -> str:
        return self.name


A, B = Side("aio", AIO, WITHIN_SYNC), Side("sync", SYNC, WITHIN_AIO)
for side, other in ((A, B), (B, A)):
    side.partners = {*other.names, *side.within, *other.within.values()}
EACH_SIDE = pytest.mark.parametrize(("side", "other"), [(A, B), (B, A)], ids=repr)


@EACH_SIDE
def test_each_test_has_a_partner_or_a_reason(side: Side, other: Side) -> None:
    """A new test on one side needs the same on the other, or a line in the table."""
    missing = [
        f"{file}::{name}"
        for file in side.files
        for name in sorted(side.alone(file))
        if not {(file, ALL), (file, name)} & side.entries.keys()
    ]
    assert not missing, f"no partner in tests/{other}"


@EACH_SIDE
def test_no_entry_is_stale(side: Side, other: Side) -> None:
    """What the table names is there, has no partner, and is named once."""
    for (file, name), times in side.entries.items():
        assert times == 1, f"{file}::{name} is named twice"
        assert side.alone(file) if name == ALL else name in side.alone(file), f"tests/{side}/{file}::{name}"
        assert name == ALL or (file, ALL) not in side.entries, f"tests/{side}/{file} is named as a whole already"


@EACH_SIDE
def test_what_is_asked_within_another_test_is_asked_there(side: Side, other: Side) -> None:
    """Both tests exist, and the first has no partner of its own name."""
    assert sorted(side.within.keys() - side.names) == []
    assert sorted(set(side.within.values()) - other.names) == []
    assert sorted(side.within.keys() & other.names) == []
