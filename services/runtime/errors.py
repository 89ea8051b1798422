"""Errors that a caller is told, with google.rpc details.

The code of a service raises ``CallError``; the interceptor at the boundary turns it into the
call's status. Whatever else it raises reaches the caller as INTERNAL without a word of its
content, and the log in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, ResourceInfo
from google.rpc.status_pb2 import Status

DETAILS_KEY = "grpc-status-details-bin"
M = TypeVar("M", bound=Message)
Trailers = tuple[tuple[str, str | bytes], ...]


class CallError(Exception):
    """Ends a call with a status. ``details`` are messages of google.rpc."""

    def __init__(
        self, code: grpc.StatusCode, message: str, details: Iterable[Message] = (), trailers: Trailers = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)
        self._trailers = trailers

    @property
    def trailers(self) -> Trailers:
        """The trailing metadata that carries the details."""
        if not self.details:
            return self._trailers
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        return (*self._trailers, (DETAILS_KEY, status.SerializeToString()))

    def __repr__(self) -> str:
        return f"<CallError {self.code.name} {self.message!r}>"


def bad_request(violations: Iterable[tuple[str, str]]) -> CallError:
    """INVALID_ARGUMENT. Each violation is (path of the field, what is wrong with it)."""
    fields = [BadRequest.FieldViolation(field=field, description=text) for field, text in violations]
    message = "; ".join(f"{violation.field}: {violation.description}" for violation in fields)
    return CallError(grpc.StatusCode.INVALID_ARGUMENT, message, [BadRequest(field_violations=fields)])


def not_found(kind: str, name: str) -> CallError:
    """NOT_FOUND: there is no ``kind`` (a word: "product") named ``name``."""
    message = f"no {kind} {name!r}"
    details = [ResourceInfo(resource_type=kind, resource_name=name, description=message)]
    return CallError(grpc.StatusCode.NOT_FOUND, message, details)


def already_exists(kind: str, name: str, message: str) -> CallError:
    """ALREADY_EXISTS: the ``kind`` named ``name`` stands for something else."""
    details = [ResourceInfo(resource_type=kind, resource_name=name, description=message)]
    return CallError(grpc.StatusCode.ALREADY_EXISTS, message, details)


def precondition(violations: Iterable[tuple[str, str, str]]) -> CallError:
    """FAILED_PRECONDITION. Each violation is (type, subject, description)."""
    found = [PreconditionFailure.Violation(type=kind, subject=who, description=text) for kind, who, text in violations]
    message = "; ".join(violation.description for violation in found)
    return CallError(grpc.StatusCode.FAILED_PRECONDITION, message, [PreconditionFailure(violations=found)])


def unavailable(message: str) -> CallError:
    """UNAVAILABLE: something that the call needs is away. Says nothing about what was done."""
    return CallError(grpc.StatusCode.UNAVAILABLE, message)


def detail(error: grpc.aio.AioRpcError, kind: type[M]) -> M | None:
    """The detail of this kind that a failed call brought, for example ``BadRequest``."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                packed = Status.FromString(value).details
            except DecodeError:
                return None
            for one in packed:
                found = kind()
                if one.Is(kind.DESCRIPTOR) and one.Unpack(found):
                    return found
    return None
