"""Who knows the private names of grpcio."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lb

PACKAGES = sorted(path for path in Path(lb.__file__).parent.iterdir() if path.is_dir() and any(path.glob("*.py")))
KNOWS = {"aio": {"_grpcio.py"}, "sync": {"_grpcio.py"}, "server": {"threads/_grpcio.py"}}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_private_names_stand_in_one_file(package: Path) -> None:
    """``grpc._cython`` and modules of ``grpc.aio`` that begin with ``_`` are imported by one file in each shell."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(name.startswith("grpc") and "._" in name for name in names):
                found.add(path.relative_to(package).as_posix())
    assert found == KNOWS.get(package.name, set())
