"""How important a call is, as its metadata say it: a server that is full refuses the least important ones first."""

from __future__ import annotations

import enum

PRIORITY_KEY = "lb-priority"
"""Key of the metadata; the values are the names of `Priority` in lower case."""


class Priority(enum.IntEnum):
    """``SHEDDABLE`` calls are the first to be refused, ``CRITICAL`` ones the last."""

    SHEDDABLE = 0
    DEFAULT = 1
    CRITICAL = 2

    @property
    def text(self) -> str:
        """As it is in metadata: ``critical``."""
        return self.name.lower()


_BY_TEXT: dict[object, Priority] = {priority.text: priority for priority in Priority}
_DEFAULT = Priority.DEFAULT


def priority_of(value: object) -> Priority:
    """What a value of the metadata means. ``DEFAULT`` for anything else than the three words."""
    return _BY_TEXT.get(value, _DEFAULT)
