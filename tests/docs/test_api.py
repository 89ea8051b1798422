"""``docs/api.md`` is what the docstrings say today."""

from __future__ import annotations

import re

import pytest

from tools.api import PAGE, ROOT, page


def test_the_page_is_up_to_date() -> None:
    """Written again it is the same; if not: ``make docs``. It names every export, or `page` raises."""
    assert PAGE.read_text("utf-8") == page()


def test_links_within_the_page_lead_somewhere() -> None:
    """Each anchor is that of a heading, by GitHub's rule."""
    text = PAGE.read_text("utf-8")
    headings = [
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    anchors = [h + (f"-{headings[:i].count(h)}" if headings[:i].count(h) else "") for i, h in enumerate(headings)]
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= set(anchors)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE.read_text("utf-8")))))
def test_linked_files_are_there(name: str) -> None:
    """Sources, examples and other pages."""
    assert (ROOT / "docs" / name).is_file()


def test_nothing_of_this_machine_is_on_the_page() -> None:
    """No path of where it was written, and no address of an object."""
    text = PAGE.read_text("utf-8")
    assert str(ROOT) not in text
    assert not re.search(r"0x[0-9a-f]{6,}", text)


def test_no_reference_is_left_in_restructuredtext() -> None:
    """No double backticks, roles or directives."""
    outside = re.sub(r"^```.*?^```$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"``|:\w+:`|^\.\. ", outside, re.MULTILINE)
