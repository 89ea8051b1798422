"""What tests share is in kits, conftests and ``tests/support``: so a file of tests may be moved, split or deleted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_file_imports_from_tests(path: Path) -> None:
    """Neither a module whose name begins with ``test_`` nor something in it."""
    imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    assert [name for name in names if name.startswith("tests.") and ".test_" in name] == []
