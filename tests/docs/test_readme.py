"""README keeps its promises: its programs run with nothing but the package, and what it names is there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

import lb
from bench.report import SHORT, SHORT_COSTS, shown
from tests.support import install
from tests.support.pattern import pattern

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CHANGE, FIRST, THREADS, CONSUL = SNIPPETS
FIRST_PRINTS, CONSUL_PRINTS = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


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


def snapshot_of(printed: str) -> str:
    """The table at the end of what a program prints, without the order of its endpoints."""
    lines = printed[re.search(r"^\w+://", printed, re.MULTILINE).start() :].splitlines()  # type: ignore[union-attr]
    return "\n".join([*lines[:3], *sorted(lines[3:])])


def same_form(shown: str, printed: str) -> bool:
    """Line by line, but for numbers and the width of columns."""
    lines = zip(shown.splitlines(), printed.splitlines(), strict=True)
    return all(re.fullmatch(pattern(line).strip("^$"), other) for line, other in lines)


def picks(printed: str) -> dict[str, int]:
    """How often each address was picked, as the snapshot says."""
    rows = re.findall(r"^  \S+ +(\S+:\d+) +\d+ +READY, CLOSED +0 +(\d+) ", printed, re.MULTILINE)
    return {address: int(number) for address, number in rows}


def prints_what_the_first_program_must(printed: str) -> None:
    """Six calls: three tried on one server each; then one or more failed on one server, and the other answered."""
    calls = re.findall(r"^(\d) b'hello' \[(.*)\]$", printed, re.MULTILINE)
    assert [number for number, _ in calls] == list("123456")
    tried = [re.findall(r"'([\d.:]+)'", addresses) for _, addresses in calls]
    assert [len(addresses) for addresses in tried[:3]] == [1, 1, 1]
    retried = [addresses for addresses in tried[3:] if len(addresses) > 1]
    assert retried
    ((bad, good),) = {tuple(addresses) for addresses in retried}
    assert all(addresses in ([bad, good], [good]) for addresses in tried[3:])
    assert picks(printed) == Counter(address for addresses in tried for address in addresses)
    budget = re.search(r"READY  retry budget (\d+)$", printed, re.MULTILINE)
    assert budget
    assert int(budget[1]) == pytest.approx(101 - len(retried), abs=1)  # 100, and a fifth of six calls


async def test_the_first_program_needs_only_the_package(tmp_path: Path) -> None:
    """It runs with `lb-mesh` and what that requires. What the page shows, and what it prints, is one possible run."""
    said = await run_alone(tmp_path / "venv", FIRST, "lb-mesh")
    prints_what_the_first_program_must(said)
    prints_what_the_first_program_must(FIRST_PRINTS)
    assert same_form(snapshot_of(FIRST_PRINTS), snapshot_of(said))


async def test_the_program_with_consul_needs_only_the_extra(tmp_path: Path) -> None:
    """It runs with `lb-mesh[consul]`; on the page and here, forty calls are shared by weights of 1 and 3."""
    said = await run_alone(tmp_path / "venv", CONSUL, "lb-mesh[consul]")
    for printed in (CONSUL_PRINTS, said):
        one, two = re.findall(r"'echo-[12]', (\d+)\)", printed)
        assert int(one) + int(two) == 40
        assert int(one) == pytest.approx(10, abs=3)
        assert sorted(picks(printed).values()) == [int(one), int(two)]
    assert same_form(snapshot_of(CONSUL_PRINTS), snapshot_of(said))


async def test_the_short_snippets_make_channels() -> None:
    """As they stand, behind the imports of the long ones; nothing is called."""
    names: dict[str, Any] = {"grpc": grpc, "lb": lb}
    for line in CHANGE.splitlines():
        exec(line, names)
        await names["channel"].close()
    exec(THREADS, names)
    names["channel"].close()


def test_the_costs_are_those_of_the_page() -> None:
    """Each ratio stands in docs/performance.md in the row that it is taken from, or follows from the figures there."""
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    found = dict(re.findall(r"^\| ([^|]*) \| (\d\.\d\d) \|$", README, re.MULTILINE))
    assert len(found) == len(SHORT) + len(SHORT_COSTS)
    for name, words in SHORT.items():
        assert re.search(rf"^\| {re.escape(shown(name))} \|[^|]*\| {found.pop(words)} \|", page, re.MULTILINE), name
    for words, ratio in found.items():
        ours = re.search(r"([\d.]+) (?:KB|ms)", words)
        assert ours
        (grpcios,) = re.findall(rf"^\| [^|]* \| {ours[1]} \| ([\d.]+) \|", page, re.MULTILINE)
        assert float(ratio) == pytest.approx(float(ours[1]) / float(grpcios), abs=0.01)


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
    assert not excluded or f"[not {' or '.join(one.removesuffix('.*') for one in excluded)}]" in README
    assert f"Python {package['requires-python'].removeprefix('>=')}" in README
