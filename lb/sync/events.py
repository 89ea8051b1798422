"""grpcio's language of batches: operations that a caller hands over, and the events that complete them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lb.aio.errors import DebugString
from lb.core.attempt import Attempt
from lb.sync import _grpcio

Batch = tuple[Sequence[Any], Any]
"""Operations of grpcio's, and the tag that their event carries."""


class Done:
    """A completed operation, as the upper layer reads it."""

    __slots__ = ("_type", "_value")

    def __init__(self, kind: int, value: Any = None) -> None:
        self._type = kind
        self._value = value

    def type(self) -> int:
        """See grpcio."""
        return self._type

    def message(self) -> bytes | None:
        """See grpcio."""
        message: bytes | None = self._value
        return message

    def initial_metadata(self) -> Any:
        """See grpcio."""
        return self._value


class Status(Done):
    """A completed ``ReceiveStatusOnClientOperation``. Its value is (code, details, trailing metadata, debug string)."""

    __slots__ = ()

    def code(self) -> int:
        """See grpcio."""
        code: int = self._value[0]
        return code

    def details(self) -> str:
        """See grpcio."""
        details: str = self._value[1]
        return details

    def trailing_metadata(self) -> Any:
        """See grpcio."""
        return self._value[2]

    def error_string(self) -> str:
        """See grpcio."""
        words: str = self._value[3]
        return words


class Event:
    """What completes a batch."""

    __slots__ = ("batch_operations", "tag")
    completion_type = _grpcio.OPERATION_COMPLETE
    success = True

    def __init__(self, tag: Any, operations: Sequence[Any]) -> None:
        """``operations`` are completed: each is a `Done`, or grpcio's own."""
        self.tag = tag
        self.batch_operations = operations


def completed(
    operations: Sequence[Any], attempts: list[Attempt], status: Any, message: bytes | None, headers: Any
) -> list[Done]:
    """The operations of a batch, with what the call brought."""
    done: list[Done] = []
    for operation in operations:
        kind = operation.type()
        if kind == _grpcio.RECEIVE_STATUS:
            words = DebugString.of(status.debug_error_string() or "", attempts)
            done.append(Status(kind, (status.code(), status.details(), status.trailing_metadata() or (), words)))
        elif kind == _grpcio.RECEIVE_MESSAGE:
            done.append(Done(kind, message))
        else:
            done.append(Done(kind, headers))
    return done
