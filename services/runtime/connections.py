"""How a connection between two services is kept: both of its sides, in one place, since they must agree.

A client that pings more often than its server allows is sent away with GOAWAY; streams above a
server's limit are refused, and a call that may not run twice fails then. So what clients do stands
beside what servers let them do.
"""

from __future__ import annotations

import lb

CONNECTION = lb.Connection(keepalive_s=2.0, keepalive_timeout_s=2.0, keepalive_without_calls=True)
"""A client notices within about 4 seconds that an instance is gone without a word, also between calls."""

STREAMS = 1000
"""Calls that a server takes on one connection at once; those that ended count until they are cleaned up."""

LIMIT = lb.ConcurrencyLimit(limit=800, queue=200)
"""Calls of one channel that run at once on one instance: below ``STREAMS``, since health is watched there, too."""

_PINGS_AT_MOST_EVERY_MS = 1000
# A client that is gone leaves its streams behind, and what they hold.
_CLIENT_PINGED_EVERY_MS = 10_000
_CLIENT_ANSWERS_WITHIN_MS = 5_000

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", STREAMS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_AT_MOST_EVERY_MS),
    ("grpc.keepalive_time_ms", _CLIENT_PINGED_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _CLIENT_ANSWERS_WITHIN_MS),
)
"""Of a ``grpc.aio.server``."""
