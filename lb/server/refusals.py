"""How a refusal travels: as a status, with push-back in the trailing metadata, or with ``google.rpc.RetryInfo``."""

from __future__ import annotations

from lb.core.outcome import PUSHBACK_KEY
from lb.core.serving.admission import Refusal

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
    # Imported for the first refusal: a server that refuses nothing does not load it.
    from google.protobuf.any_pb2 import Any
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    delay = Duration()
    delay.FromMilliseconds(max(1, int(retry_s * 1000 + 0.999)))
    packed = Any()
    packed.Pack(RetryInfo(retry_delay=delay))
    status = Status(code=refusal.code.value[0], message=refusal.details, details=[packed])
    encoded: bytes = status.SerializeToString()
    return encoded
