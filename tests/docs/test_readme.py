"""README keeps its promises: the snippet runs as it stands, and what it names is there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grpc
import pytest

import lb
from tests.support import consul
from tests.support.wait import until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def test_the_snippet_runs_as_it_stands(tmp_path: Path) -> None:
    """With a catalog registered in the Consul of the environment, it prints a product, its attempt and the snapshot."""
    _, snippet, _ = SNIPPETS
    async with consul.embedded() as registry:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
        env |= {"CONSUL_HTTP_ADDR": registry.address, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'stubs'}"}
        catalog = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.catalog"),
            env=env | {"MESH_DATA": str(tmp_path), "MESH_INSTANCE_ID": "catalog-1", "MESH_DRAIN_WAIT_S": "0"},
            stderr=subprocess.DEVNULL,
        )
        try:

            async def passing() -> bool:
                return await registry.status("catalog", "catalog-1") == "passing"

            await until(passing, within_s=90, what="the catalog is passing")
            reader = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", snippet), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            said = (await reader.communicate())[0].decode()
        finally:
            catalog.terminate()
            await catalog.wait()
    assert reader.returncode == 0, said
    lines = said.splitlines()
    assert lines[0] == "Brazil Cerrado, 250 g"
    assert re.fullmatch(r"attempt 1 went to catalog-1 at 127\.0\.0\.1:\d+", lines[1])
    assert lines[2].startswith("consul:///catalog  weighted_round_robin")


async def test_the_short_snippets_make_channels() -> None:
    """As they stand, behind the imports of the long one; nothing is called."""
    before, _, threads = SNIPPETS
    names: dict[str, Any] = {"grpc": grpc, "lb": lb}
    for line in before.splitlines():
        exec(line, names)
        await names["channel"].close()
    exec(threads, names)
    names["channel"].close()


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


def test_the_versions_are_those_of_the_package() -> None:
    """Which Python and which grpcio it takes."""
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (grpcio,) = [need for need in package["dependencies"] if need.startswith("grpcio")]
    assert f"grpcio {grpcio.partition('>=')[2]} or newer" in README
    assert f"Python {package['requires-python'].removeprefix('>=')} or newer" in README
