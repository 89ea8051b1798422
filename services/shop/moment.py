"""Wall-clock instants as they are stored: whole microseconds since 1970, alike in every database."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp


def now_us() -> int:
    """The present instant."""
    return time.time_ns() // 1000


def timestamp(instant_us: int) -> Timestamp:
    """The instant as protobuf's message."""
    return Timestamp(seconds=instant_us // 1_000_000, nanos=instant_us % 1_000_000 * 1000)
