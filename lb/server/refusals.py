"""How a refusal travels: as a status, with push-back in the trailing metadata, or with ``google.rpc.RetryInfo``."""

from __future__ import annotations

from lb.core.outcome import PUSHBACK_KEY
from lb.core.serving.admission import Refusal
from lb.core.wire import varint

DETAILS_KEY = "grpc-status-details-bin"

Trailers = tuple[tuple[str, str | bytes], ...]


def trailers(refusal: Refusal) -> Trailers:
    """The trailing metadata of a call that is refused so."""
    found: Trailers = ()
    if refusal.pushback_ms is not None:
        found = ((PUSHBACK_KEY, str(refusal.pushback_ms)),)
    if refusal.retry_s is not None:
        found = (*found, (DETAILS_KEY, _retry_info(refusal, refusal.retry_s)))
    return found


def _retry_info(refusal: Refusal, retry_s: float) -> bytes:
    """A ``google.rpc.Status`` with one detail, written by hand: protobuf's own classes take a tenth of a call."""
    seconds, milliseconds = divmod(max(1, int(retry_s * 1000 + 0.999)), 1000)
    delay = b"\x08" + varint(seconds) + b"\x10" + varint(milliseconds * 1_000_000)
    detail = _TYPE_URL + _field(b"\x12", _field(b"\x0a", delay))
    code: int = refusal.code.value[0]
    return b"\x08" + varint(code) + _field(b"\x12", refusal.details.encode()) + _field(b"\x1a", detail)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


_TYPE_URL = _field(b"\x0a", b"type.googleapis.com/google.rpc.RetryInfo")
