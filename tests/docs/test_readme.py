"""README keeps its promises: its programs run with nothing but the package, and what it names is there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest

import lb
from bench.report import SHORT
from tests.support import install
from tests.support.pattern import pattern

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CHANGE, FIRST, CONSUL, THREADS = SNIPPETS


async def run_alone(venv: Path, program: str, *requirements: str) -> str:
    """What a program prints in a virtual environment that has these packages and what they require."""
    pytest.importorskip("hatchling", reason="the package is built as a wheel (extra: dev)")
    python = install.make(venv)
    install.install(venv, *requirements)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "CONSUL_", "PYTHON"))}
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-c", program), cwd=venv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, errors.decode()
    return said.decode()


def test_the_first_sentence_is_short() -> None:
    """At most 25 words."""
    sentence = README.split("\n\n")[1].partition(". ")[0]
    assert len(sentence.split()) <= 25


async def test_the_first_program_needs_only_the_package(tmp_path: Path) -> None:
    """It runs with `lb-mesh` and what that requires, and prints what the page shows: a call tried on both servers."""
    said = await run_alone(tmp_path / "venv", FIRST, "lb-mesh")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for line in shown.splitlines():
        if not line.startswith("b'hello'"):
            assert re.search(pattern(line), said, re.MULTILINE), f"{line!r} is not in\n{said}"
    answers = re.findall(r"^b'hello' (\[.*\])$", said, re.MULTILINE)
    assert len(answers) == 4
    assert all(re.fullmatch(r"\['[\d.:]+'(, '[\d.:]+')?\]", answer) for answer in answers)


async def test_the_program_with_consul_needs_only_the_extra(tmp_path: Path) -> None:
    """It runs with `lb-mesh[consul]`, and prints each attempt and the snapshot of both instances."""
    said = await run_alone(tmp_path / "venv", CONSUL, "lb-mesh[consul]")
    assert len(re.findall(r"^attempt 1 went to echo-[12] at 127\.0\.0\.1:\d+$", said, re.MULTILINE)) == 4
    assert re.search(r"^consul://127\.0\.0\.1:\d+/echo  weighted_round_robin  READY", said, re.MULTILINE)


async def test_the_short_snippets_make_channels() -> None:
    """As they stand, behind the imports of the long ones; nothing is called."""
    names: dict[str, Any] = {"grpc": grpc, "lb": lb}
    for line in CHANGE.splitlines():
        exec(line, names)
        await names["channel"].close()
    exec(THREADS, names)
    names["channel"].close()


def test_the_costs_are_those_of_the_page() -> None:
    """Each ratio stands in docs/performance.md in the row that it is taken from."""
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    for name, words in SHORT.items():
        for ratio in re.findall(rf"^\| {re.escape(words)} \| ([\d.]+) \|$", README, re.MULTILINE):
            assert re.search(rf"^\| {re.escape(name)} \|[^|]*\| {ratio} \|", page, re.MULTILINE), name
    for name, ours, grpcios in re.findall(r"^\| (.*) \| ([\d.]+) / ([\d.]+) \|$", README, re.MULTILINE):
        assert f"\n| {name} | {ours} | {grpcios} |" in page


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))))
def test_the_make_targets_are_there(target: str) -> None:
    """Every `make TARGET` that README names is a target of the Makefile."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"--template (\S+)|((?:examples|tools)/\w+\.py)", README))))
def test_the_files_are_there(name: tuple[str, str]) -> None:
    """Every file that README passes to a command is in the tree."""
    assert (ROOT / "".join(name)).is_file()


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    """Each `MESH_` variable is read by somebody."""
    read = "\n".join(path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py"))
    read += (ROOT / "docker-compose.yml").read_text("utf-8")
    for name in set(re.findall(r"`MESH_(\w+)`", README)):
        assert f"MESH_{name}" in read or f"{name.lower()}: " in read, name


def test_the_product_that_is_named_is_sold() -> None:
    """It is among those with which the catalog begins."""
    (sku,) = re.findall(r"the product `([\w-]+)`", README)
    assert any(f'"{sku}"' in path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py"))


def test_the_versions_are_those_of_the_package() -> None:
    """Which Python and which grpcio it takes, and which releases it does not."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (grpcio,) = [need for need in package["dependencies"] if need.startswith("grpcio")]
    lowest, *excluded = grpcio.removeprefix("grpcio>=").split(",!=")
    assert f"grpcio {lowest} " in README
    assert not excluded or f"[not {' or '.join(excluded)}]" in README
    assert f"Python {package['requires-python'].removeprefix('>=')}" in README
