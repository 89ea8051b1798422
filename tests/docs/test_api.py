"""``docs/api.md`` is what the docstrings say today."""

from __future__ import annotations

import re

from tools.api import PAGE, page


def test_the_page_is_up_to_date() -> None:
    """Written again it is the same; if not: ``make docs``. It names every export, or `page` raises."""
    assert PAGE.read_text("utf-8") == page()


def test_no_address_of_an_object_is_on_the_page() -> None:
    """It would differ each time."""
    assert not re.search(r"0x[0-9a-f]{6,}", PAGE.read_text("utf-8"))


def test_no_reference_is_left_in_restructuredtext() -> None:
    """No double backticks, roles or directives."""
    outside = re.sub(r"^```.*?^```$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"``|:\w+:`|^\.\. ", outside, re.MULTILINE)
