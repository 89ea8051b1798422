"""How the attempts of a failed call travel in the error that grpcio makes of it."""

from __future__ import annotations

from typing import Any

from lb.core.attempt import Attempt


class DebugString(str):
    """The debug string of a failed call, with its attempts: all of ours that grpcio's errors keep.

    A copy is the same, and what is pickled is the string alone.
    """

    __slots__ = ("attempts",)
    attempts: list[Attempt]

    @classmethod
    def of(cls, words: str, attempts: list[Attempt]) -> DebugString:
        """These words, with these attempts."""
        made = cls(words)
        made.attempts = attempts
        return made

    def __copy__(self) -> DebugString:
        return self

    def __deepcopy__(self, memo: object) -> DebugString:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class FailedStatus:
    """A status as grpcio's upper layer makes its error of: with the attempts in its debug string."""

    __slots__ = ("_attempts", "_status", "code", "details", "trailing_metadata")

    def __init__(self, status: Any, attempts: list[Attempt]) -> None:
        self._status = status
        self._attempts = attempts
        self.code = status.code
        self.details = status.details
        self.trailing_metadata = status.trailing_metadata

    def debug_error_string(self) -> DebugString | None:
        """See ``AioRpcStatus``."""
        words = self._status.debug_error_string()
        return None if words is None else DebugString.of(words, self._attempts)
