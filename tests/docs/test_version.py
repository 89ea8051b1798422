"""The version, wherever it is asked for."""

from __future__ import annotations

import importlib.metadata
import re

import lb


def test_the_version_is_the_distributions() -> None:
    """What is imported and what was installed are one number."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", lb.__version__)
    assert lb.__version__ == importlib.metadata.version("lb-mesh")
