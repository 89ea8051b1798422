"""gRPC's health service as a client watches it (``grpc.health.v1``, gRFC A17): its two messages."""

from __future__ import annotations

import enum

from lb.core.wire import varint

WATCH = "/grpc.health.v1.Health/Watch"
PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
"""A watch that ends is begun again after ``PAUSE_S``, doubling up to this."""

_NAME = b"\x0a"
_STATUS = b"\x08"


class Serving(enum.Enum):
    """What a server says of a service."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def request(service: str) -> bytes:
    """A ``HealthCheckRequest``."""
    name = service.encode()
    return _NAME + varint(len(name)) + name if name else b""


def status(response: bytes) -> Serving:
    """What a ``HealthCheckResponse`` says; a number of a later version is UNKNOWN."""
    number = response[1] if response[:1] == _STATUS and len(response) > 1 else 0
    return Serving(number) if number <= Serving.SERVICE_UNKNOWN.value else Serving.UNKNOWN
