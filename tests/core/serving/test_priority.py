"""The importance of a call, as metadata say it."""

from __future__ import annotations

import pytest

from lb.core.serving.priority import PRIORITY_KEY, Priority, priority_of


def test_their_order_is_the_order_of_refusal() -> None:
    """The sheddable first, the critical last."""
    assert sorted(Priority) == [Priority.SHEDDABLE, Priority.DEFAULT, Priority.CRITICAL]
    assert PRIORITY_KEY == "lb-priority"


@pytest.mark.parametrize("priority", Priority)
def test_its_text_is_read_back(priority: Priority) -> None:
    """What a client writes, a server reads."""
    assert priority_of(priority.text) is priority
    assert priority.text == priority.name.lower()


@pytest.mark.parametrize("value", ["", "CRITICAL", " critical", "2", "high", b"critical", None, 2])
def test_anything_else_is_the_default(value: object) -> None:
    """A client that writes nonsense gets neither more nor less than one that writes nothing."""
    assert priority_of(value) is Priority.DEFAULT
