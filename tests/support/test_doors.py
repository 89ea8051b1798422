"""Tests use `lb` as everybody does. Where nothing public shows what one asks, `doors` has a function for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if path != TESTS / "support" / "doors.py")
PUBLIC = {"_asdict", "_exit", "_fields", "_getframe", "_make", "_replace"}
"""Documented by Python, in spite of their names."""

FOREIGN = {
    "aio/test_conformance_life.py": {"_references"},
    "aio/test_names.py": {"_initial_metadata", "_status"},
    "aio/test_wakeups.py": {"_handle_events"},
    "sync/kit.py": {"_rpc_event"},
    "sync/test_names.py": {"_InitialMetadataFlags"},
    "telemetry/test_names.py": {
        "_SUPPRESS_INSTRUMENTATION_KEY",
        "_attribute_keys",
        "_get_or_init_view_instrument_match",
        "_local_parent_sampled",
        "_on_ending",
        "_measurement_consumer",
        "_propagators",
        "_reader_storages",
        "_root",
        "_sdk_config",
        "_span_limits",
        "_span_processors",
        "_view",
    },
    "telemetry/test_same_metrics.py": {"_create_aggregation"},
}
"""Private names of grpcio and OpenTelemetry that a test asks for."""


def private(name: str) -> bool:
    """One underscore in front; two on both sides are Python's own."""
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def read_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The private names that a file reads of others: the line, and the name."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if private(name):
                yield node.lineno, name
            case (
                ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"))
                | ast.Call(func=ast.Attribute(attr="setattr" | "delattr"))
            ):
                texts = (part.value for part in node.args if isinstance(part, ast.Constant))
                yield from ((node.lineno, text) for text in texts if isinstance(text, str) and private(text))
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] == "lb":
                words = [*module.split("."), *(alias.name for alias in names)]
                yield from ((node.lineno, word) for word in words if private(word))
            case ast.Import(names=names):
                words = [word for alias in names if alias.name.startswith("lb.") for word in alias.name.split(".")]
                yield from ((node.lineno, word) for word in words if private(word))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_private_members_are_read_through_doors(path: Path) -> None:
    """Neither an attribute of something that is not ``self``, nor a module of `lb`, has a private name."""
    found = set(read_in(ast.parse(path.read_text("utf-8"))))
    foreign = FOREIGN.get(path.relative_to(TESTS).as_posix(), set())
    assert sorted((line, name) for line, name in found if name not in foreign) == []
    assert foreign <= {name for _, name in found}, "no longer asked for"


@pytest.mark.parametrize(
    "code",
    [
        "channel._channel",
        "channel.engine()._parts.waiting",
        "getattr(call, '_parts')",
        "monkeypatch.setattr(Front, '_begin', None)",
        "from lb.aio import _grpcio",
        "from lb.aio._consul import AgentClient",
        "import lb.aio._consul",
    ],
)
def test_what_is_private(code: str) -> None:
    """Each of these would be found."""
    assert len(list(read_in(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code", ["self._a", "cls._a", "details._replace(a=1)", "a.__dict__", "from grpc import _channel"]
)
def test_what_is_not(code: str) -> None:
    """A test's own members, Python's, and other packages' modules."""
    assert list(read_in(ast.parse(code))) == []
