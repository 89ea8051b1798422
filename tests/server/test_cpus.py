"""How many CPUs a process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from lb.server.supervising.cpus import cpus, quota
from lb.server.supervising.instances import how_many


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    """A group's own quota and those above it hold; parts of a CPU are none; max is no quota."""
    group = tmp_path / "pod" / "container"
    group.mkdir(parents=True)
    assert quota("/pod/container", tmp_path) > 1000
    (group / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text("250000 100000\n")
    assert quota("/pod/container", tmp_path) == 2
    (group / "cpu.max").write_text("50000 100000\n")
    assert quota("/pod/container", tmp_path) == 0


def test_auto_is_at_least_one() -> None:
    """``auto`` is what this process may use; anything but a number from 1 is an error."""
    assert how_many("auto") == cpus() >= 1
    assert how_many("3") == how_many(3) == 3
    for wrong in ("0", "-1", "two", "", 2000):
        with pytest.raises(ValueError, match="auto or a whole number"):
            how_many(wrong)
