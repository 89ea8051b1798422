"""The four kinds of call, and what tests of both shells ask of a channel. Each shell's kit adds how it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tenacity import wait_none

import lb
from lb.testing.backend import METHODS, STREAM_STREAM, STREAM_UNARY, UNARY_STREAM, UNARY_UNARY

REQUESTS = (b"one", b"two", b"three")
COPIES = 3
"""How often a server repeats the one request of a stream of responses."""
AT_ONCE = wait_none()
NO_BREAKER = lb.Breaker(consecutive_failures=None, failure_ratio=None)
IDEMPOTENT = lb.Retry(idempotent=METHODS, wait=AT_ONCE)
ONCE = lb.Retry(enabled=False)

RETRY_POLICY: dict[str, Any] = {
    "maxAttempts": 3,
    "initialBackoff": "0.001s",
    "maxBackoff": "0.002s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "ABORTED"],
}
"""As a service config has it."""


@dataclass(frozen=True)
class Kind:
    """One of the four kinds of call, so that one test body serves them all."""

    name: str
    method: str
    streams_requests: bool
    streams_responses: bool

    @classmethod
    def all(cls) -> tuple[Self, Self, Self, Self]:
        """Unary to unary, unary to stream, stream to unary, stream to stream."""
        return (
            cls("unary_unary", UNARY_UNARY, False, False),
            cls("unary_stream", UNARY_STREAM, False, True),
            cls("stream_unary", STREAM_UNARY, True, False),
            cls("stream_stream", STREAM_STREAM, True, True),
        )

    def stub(self, channel: Any, **serializers: Any) -> Any:
        """The multicallable."""
        return getattr(channel, self.name)(self.method, **serializers)

    def argument(self, requests: Sequence[Any] = REQUESTS) -> Any:
        """What the multicallable takes for these requests (the first alone, where there is one)."""
        return iter(requests) if self.streams_requests else requests[0]

    def echo(self, requests: Sequence[bytes] = REQUESTS, copies: int = COPIES) -> list[bytes]:
        """What a server answers."""
        if self.streams_requests:
            return list(requests) if self.streams_responses else [b"".join(requests)]
        return [requests[0]] * (copies if self.streams_responses else 1)

    def sent(self, requests: Sequence[bytes] = REQUESTS) -> list[bytes]:
        """What a server receives."""
        return list(requests) if self.streams_requests else [requests[0]]

    def __str__(self) -> str:
        return self.name


def target(*servers: Any) -> str:
    """``static:///`` over these."""
    return "static:///" + ",".join(server.address for server in servers)


def in_flight(channel: Any) -> int:
    """Attempts that have not ended, over all endpoints."""
    return sum(endpoint.in_flight for endpoint in channel.snapshot().endpoints)


def connected(channel: Any) -> int:
    """How many endpoints are."""
    return sum(endpoint.connectivity == "READY" for endpoint in channel.snapshot().endpoints)


def breakers(channel: Any) -> list[str]:
    """Their states, in the order of the endpoints."""
    return [endpoint.breaker for endpoint in channel.snapshot().endpoints]


def unblamed(channel: Any) -> bool:
    """Whether no endpoint has a failure to its name."""
    endpoints = channel.snapshot().endpoints
    return all(endpoint.breaker == "CLOSED" and not endpoint.last_error for endpoint in endpoints)
