"""The public API changes on purpose only, and what pages and examples use is part of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

import lb
from tools import public_api
from tools.public_api import PACKAGES, RENEW, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_public_api_is_as_written() -> None:
    """Names, signatures, fields and defaults; the failure shows what has changed, and what to do if it is meant."""
    changes = public_api.difference()
    assert not changes, changes


def test_a_change_is_shown_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a diff of lines."""
    written = tmp_path / "public_api.txt"
    written.write_text(public_api.text().replace("jitter: float = 0.2", "jitter: float = 0.3"), "utf-8")
    monkeypatch.setattr(public_api, "FILE", written)
    changes = public_api.difference()
    assert "-    jitter: float = 0.3,\n+    jitter: float = 0.2,\n" in changes
    assert RENEW in changes
    target = re.search(rf"^{RENEW.removeprefix('make ')}:.*\n\t.* (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert target is not None
    assert target[1] == "tools/public_api.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_that_are_imported_later_are_completed(package: str) -> None:
    """``dir`` has every export, so completion and ``help`` have them, before anybody asked for them."""
    code = f"import importlib; m = importlib.import_module({package!r}); print(*(set(m.__all__) - set(dir(m))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_two_channels_are_described_alike() -> None:
    """Each argument is described where it is given; the words are kept twice, and must not drift apart."""
    described = []
    for channel in (lb.aio.channel, lb.sync.channel):
        sections = griffe.Docstring(inspect.getdoc(channel) or "", parser="google").parse()
        (given,) = (section.value for section in sections if section.kind.value == "parameters")
        described.append({parameter.name: parameter.description for parameter in given})
    different = {name for name in described[0] if described[0][name] != described[1][name]}
    assert different == {"propagate", "interceptors"}
    assert list(described[0]) == list(described[1]) == list(inspect.signature(lb.aio.channel).parameters)


def test_no_export_hides_a_module() -> None:
    """``import lb.aio.registration`` gives what it says: no module has the name of what its package exports."""
    files = {
        f"{package}.{file.stem}"
        for package in PACKAGES
        for file in Path(inspect.getfile(importlib.import_module(package))).parent.glob("*.py")
        if inspect.getfile(importlib.import_module(package)).endswith("__init__.py")
    }
    exported = {
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if not inspect.ismodule(getattr(importlib.import_module(package), name))
    }
    assert files & exported == set()


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from `lb`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "lb":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("lb."))


def private(code: str) -> list[str]:
    """What it takes from `lb` that is not public."""
    return [
        f"{module} {name}"
        for module, name in imported(code)
        if module not in PACKAGES or (name and name not in importlib.import_module(module).__all__)
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_use_what_is_public(path: Path) -> None:
    """Who copies one depends on nothing that may change without a word."""
    assert private(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_what_is_public(path: Path) -> None:
    """So do the snippets."""
    lines = re.findall(r"^ *((?:from|import) lb\b.*)$", path.read_text("utf-8"), re.M)
    assert [found for line in lines for found in private(line)] == []


def test_what_is_private_is_found() -> None:
    """The two tests above see something."""
    assert private("from lb.core.retry import Retry\nimport lb.aio._grpcio\nfrom lb import Retry, gone\nimport lb") == [
        *("lb.core.retry Retry", "lb.aio._grpcio ", "lb gone")
    ]
