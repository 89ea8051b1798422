"""The two messages of gRPC's health service, against those that protobuf makes."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2

from lb.core import health


@pytest.mark.parametrize("service", ["", "shop", "größe", "x" * 300])
def test_a_request_is_the_one_that_protobuf_makes(service: str) -> None:
    """Byte for byte."""
    assert health.request(service) == health_pb2.HealthCheckRequest(service=service).SerializeToString()


@pytest.mark.parametrize("serving", health.Serving)
def test_a_response_is_read(serving: health.Serving) -> None:
    """Each status by its name; one that nobody knows yet, or none at all, is UNKNOWN."""
    number = health_pb2.HealthCheckResponse.ServingStatus.Value(serving.name)
    assert health.status(health_pb2.HealthCheckResponse(status=number).SerializeToString()) is serving
    for unreadable in (b"", b"\x08", b"\x08\x09", b"\x10\x01"):
        assert health.status(unreadable) is health.Serving.UNKNOWN


def test_the_method_is_the_services() -> None:
    """By its full name."""
    service = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert f"/{service.full_name}/{service.methods_by_name['Watch'].name}" == health.WATCH
