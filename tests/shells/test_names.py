"""Who knows the private names of grpcio."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lb

ROOMS = sorted(path for path in Path(lb.__file__).parent.iterdir() if path.is_dir() and any(path.glob("*.py")))
KNOWS = {"aio": {"_grpcio.py"}, "sync": {"_grpcio.py"}}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_private_names_stand_in_one_file(room: Path) -> None:
    """``grpc._cython`` and modules of ``grpc.aio`` that begin with ``_`` are imported by one file in each shell."""
    found = set()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(name.startswith("grpc") and "._" in name for name in names):
                found.add(path.relative_to(room).as_posix())
    assert found == KNOWS.get(room.name, set())
