"""How long a child that died stays down before it is started again."""

from __future__ import annotations


class RestartDelay:
    """How long to wait before a child that died is started again, in seconds.

    ``first_s``, doubled each time up to ``longest_s``; it starts afresh when the child lived for
    at least ``steady_s``, so only a child that keeps dying is held back.
    """

    def __init__(self, first_s: float = 2.0, longest_s: float = 30.0, steady_s: float = 5.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._steady_s = steady_s
        self._next_s = first_s

    def after(self, lived_s: float) -> float:
        """The delay after a child that lived ``lived_s`` seconds."""
        if lived_s >= self._steady_s:
            self._next_s = self._first_s
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._longest_s)
        return delay_s

    def __repr__(self) -> str:
        return f"<RestartDelay next={self._next_s:g}s longest={self._longest_s:g}s>"
