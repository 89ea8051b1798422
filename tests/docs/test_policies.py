"""``docs/policies.md``: its pictures are those of today's code, and it speaks of every policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lb
from lb.core.policies import names
from tools.policy_pictures import FOLDER, SCENES, draw, page, simulate

PAGE = (Path(lb.__file__).parents[1] / "docs" / "policies.md").read_text("utf-8")


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_is_up_to_date(name: str) -> None:
    """Drawn again it is the same, byte for byte; if not: ``python tools/policy_pictures.py``."""
    scene = SCENES[name]
    assert (FOLDER / f"policy-{name}.svg").read_text("utf-8") == draw(scene, simulate(scene))


def test_the_table_is_up_to_date() -> None:
    """Simulated again it is the same; if not: ``make docs``."""
    assert page() == PAGE


def test_every_picture_is_on_the_page_and_there_is_no_other() -> None:
    """Each scene's file is shown, and only those lie in the folder."""
    shown = re.findall(r"\(pictures/(.*?)\)", PAGE)
    assert sorted(shown) == sorted(f"policy-{name}.svg" for name in SCENES) == sorted(p.name for p in FOLDER.iterdir())


def test_every_policy_is_in_the_table() -> None:
    """By its class and, where it has one, by its name."""
    assert [name for name in names() if f"`{name}`" not in PAGE] == []
    for policy in ("LeastRequest", "P2C", "RingHash", "Orca", "ZoneAware", "Subset", "SlowStart"):
        assert f"| `{policy}(" in PAGE
        assert hasattr(lb, policy)
