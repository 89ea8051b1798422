"""The version, wherever it is asked for."""

from __future__ import annotations

import email
import io
import re
import zipfile
from pathlib import Path

import pytest

import lb
from tests.support import install

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_the_distributions() -> None:
    """What is imported and what a user would install from this tree are one number."""
    pytest.importorskip("hatchling", reason="the package is built as a wheel (extra: dev)")
    wheel = zipfile.ZipFile(io.BytesIO(install.wheel()))
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", lb.__version__)
    assert email.message_from_bytes(wheel.read(name))["Version"] == lb.__version__


def test_the_version_on_the_pages() -> None:
    """README names today's, and the changelog's newest part is that of the release to come."""
    assert f"the version {lb.__version__};" in (ROOT / "README.md").read_text("utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest
    assert lb.__version__.removesuffix(".dev0") == newest[1]
