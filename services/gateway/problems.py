"""Every error of the gateway as RFC 9457 ``application/problem+json``.

A problem raised anywhere becomes an answer in one place (``app.py``). What a service behind the
gateway said is translated here, and only here::

    INVALID_ARGUMENT, OUT_OF_RANGE            400   the fields of google.rpc.BadRequest
    NOT_FOUND                                 404
    FAILED_PRECONDITION: STOCK                409   one error per sku that is short
    FAILED_PRECONDITION: PAYMENT              402
    FAILED_PRECONDITION, ALREADY_EXISTS, ABORTED  409
    RESOURCE_EXHAUSTED                        429   Retry-After from google.rpc.RetryInfo
    UNAVAILABLE, CANCELLED                    503   Retry-After from the push-back of who refused it last
    DEADLINE_EXCEEDED                         504
    anything else                             502   without the words of the service behind
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, ResourceInfo, RetryInfo
from starlette.responses import Response

from services.runtime.errors import detail

RETRY_AFTER_S = 1
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_MOST_ERRORS = 20
_LONGEST_DETAIL = 500


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field: its path in the request (``items[0].sku``) and why."""

    field: str
    detail: str


class Problem(Exception):
    """An answer that is an error. ``errors`` names the offending fields."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors[:_MOST_ERRORS])
        self.headers = dict(headers or {})

    def response(self, *, instance: str, trace_id: str | None = None) -> Response:
        """The problem as an HTTP answer; ``instance`` is the path that was asked for."""
        body: dict[str, object] = {
            "type": "about:blank",
            "title": _title(self.status),
            "status": self.status,
            "detail": _printable(self.detail),
            "instance": _printable(instance),
        }
        if self.errors:
            body["errors"] = [
                {"field": _printable(error.field), "detail": _printable(error.detail)} for error in self.errors
            ]
        if trace_id is not None:
            body["trace_id"] = trace_id
        return Response(
            json.dumps(body, ensure_ascii=False),
            self.status,
            headers=self.headers,
            media_type="application/problem+json",
        )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _printable(text: str) -> str:
    """Text that JSON can carry: no half of a surrogate pair, and of bounded length."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"


def retry_after(seconds: float = RETRY_AFTER_S) -> dict[str, str]:
    """The header that tells a client when to come back, in whole seconds and at least 1."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def from_rpc(error: grpc.aio.AioRpcError, service: str, fields: Mapping[str, str] | None = None) -> Problem:
    """What a failed call means to an HTTP client.

    ``service`` is whom the gateway called; ``fields`` maps a resource's name (a sku) to the field
    of the request that named it.
    """
    code, words = error.code(), error.details() or ""
    fields = fields or {}
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return Problem(400, words or "the request is not valid", errors=_bad_fields(error))
        case grpc.StatusCode.NOT_FOUND:
            return Problem(404, words or "not found", errors=_unknown_resource(error, fields))
        case grpc.StatusCode.FAILED_PRECONDITION:
            return _precondition(error, words, fields)
        case grpc.StatusCode.ALREADY_EXISTS:
            return Problem(
                409,
                words or "exists already",
                errors=[FieldError("idempotency_key", "was used for another order; expected a new key")],
            )
        case grpc.StatusCode.ABORTED:
            return Problem(409, words or "was changed by another request", headers=retry_after())
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Problem(429, words or "too many requests", headers=retry_after(_retry_delay_s(error)))
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Problem(503, f"{service} is not available: {words}", headers=retry_after(_retry_delay_s(error)))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Problem(504, f"{service} did not answer in time")
        case _:
            return Problem(502, f"{service} failed ({code.name})")


def _bad_fields(error: grpc.aio.AioRpcError) -> list[FieldError]:
    found = detail(error, BadRequest)
    return [FieldError(each.field, each.description) for each in found.field_violations] if found else []


def _unknown_resource(error: grpc.aio.AioRpcError, fields: Mapping[str, str]) -> list[FieldError]:
    found = detail(error, ResourceInfo)
    if found is None:
        return []
    name = found.resource_name
    return [FieldError(fields.get(name, found.resource_type or "resource"), f"{name!r} is not known")]


def _precondition(error: grpc.aio.AioRpcError, words: str, fields: Mapping[str, str]) -> Problem:
    found = detail(error, PreconditionFailure)
    violations = list(found.violations) if found else []
    if any(violation.type == "PAYMENT" for violation in violations):
        return Problem(402, words or "the payment was declined")
    errors = [
        FieldError(
            fields.get(violation.subject, violation.subject).removesuffix(".sku") + ".quantity", violation.description
        )
        for violation in violations
        if violation.type == "STOCK"
    ]
    return Problem(409, words or "not allowed in the current state", errors=errors)


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    found = detail(error, RetryInfo)
    if found:
        return float(found.retry_delay.seconds + found.retry_delay.nanos / 1e9)
    text = dict(error.trailing_metadata() or ()).get(_PUSHBACK_KEY, "")
    return int(text) / 1000 if isinstance(text, str) and text.isascii() and text.isdecimal() else RETRY_AFTER_S
