"""A virtual environment with some packages and what they require, and nothing else: what ``pip install`` would make.

::

    python -m tests.support.install .venv 'lb-mesh[consul]' grpcio-tools

Nothing is downloaded: the files of each distribution are links to those of the environment that runs this. `lb-mesh`
itself is built as a wheel, as a user would get it. A path with a ``pyproject.toml`` in it stands for the package.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OURS = "lb-mesh"


@functools.cache
def wheel() -> bytes:
    """The package as a wheel, built once per process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (built,) = Path(folder).glob("*.whl")
        return built.read_bytes()


@functools.cache
def ours() -> tuple[str, ...]:
    """What the package requires, as its wheel says it; an environment may have been made of an older tree."""
    with zipfile.ZipFile(io.BytesIO(wheel())) as built:
        (name,) = (name for name in built.namelist() if name.endswith(".dist-info/METADATA"))
        return tuple(Parser().parsestr(built.read(name).decode()).get_all("Requires-Dist", []))


def closure(*requirements: str) -> set[str]:
    """The names of these distributions and of all that they require here."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for text in ours() if name == OURS else metadata.requires(name) or ():
            needed = Requirement(text)
            asked = [{"extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(needed.marker.evaluate(one) for one in asked):
                waiting.append(needed)
    return found


def site_packages(venv: Path) -> Path:
    """Where the packages of an environment are."""
    return venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def make(venv: Path) -> Path:
    """An empty environment without pip. Its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    return venv / "bin" / "python"


def install(venv: Path, *requirements: str) -> None:
    """Put these packages, and what they require, into an environment."""
    target = site_packages(venv)
    for name in closure(*requirements):
        if name == OURS:
            zipfile.ZipFile(io.BytesIO(wheel())).extractall(target)
            continue
        for file in metadata.files(name) or ():
            if file.parts[0] != ".." and file.suffix != ".pyc":
                link = target / file
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(os.path.abspath(str(file.locate())))


def main(venv: str, *requirements: str) -> None:
    """The command line: an environment, and what ``pip install`` would be told."""
    names = []
    for text in requirements:
        path, bracket, extras = text.partition("[")
        names.append((OURS if Path(path, "pyproject.toml").is_file() else path) + bracket + extras)
    install(Path(venv), *names)


if __name__ == "__main__":
    main(*sys.argv[1:])
