"""The shop shows how `lb` is used: it comes in by the doors that everybody has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "services").rglob("*.py"))
DOORS = ("lb", "lb.aio", "lb.aio.consul", "lb.server", "lb.server.address", "lb.server.supervising")
PARTS = {
    "runtime": {"runtime"},
    "shop": {"runtime", "shop"},
}
"""What the parts below all others may import of the shop's; each of the others itself and these."""


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """The modules that a file imports, and what of each."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_it_may(path: Path) -> None:
    """Nothing private of ``lb``, and of the shop only parts that are below its own."""
    part = path.relative_to(ROOT / "services").parts[0]
    for module, name in imports(path):
        if module.split(".")[0] == "lb":
            assert module in DOORS, module
            assert not name.startswith("_"), (module, name)
        if module.startswith("services."):
            assert module.split(".")[1] in PARTS.get(part, {"runtime", "shop", part}), module
