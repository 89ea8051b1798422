"""How a refusal travels in trailing metadata."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from lb.core.serving.admission import Refusal
from lb.server.refusals import DETAILS_KEY, trailers


@pytest.mark.parametrize("retry_s", [1e-6, 0.0101, 0.25, 1.0004, 59.9999, 86400.0])
def test_nobody_is_asked_to_come_back_too_early(retry_s: float) -> None:
    """``google.rpc.RetryInfo`` has whole milliseconds, rounded up."""
    ((key, value),) = trailers(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", retry_s=retry_s))
    assert key == DETAILS_KEY
    assert isinstance(value, bytes)
    info = RetryInfo()
    assert Status.FromString(value).details[0].Unpack(info)
    assert retry_s <= info.retry_delay.ToNanoseconds() / 1e9 <= retry_s + 0.001001
