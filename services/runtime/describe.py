"""mesh.runtime.v1.Runtime: what an instance says about itself."""

from __future__ import annotations

import importlib.metadata
import os
import time
from dataclasses import dataclass, field

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.runtime.v1 import (
    Dependency,
    DescribeRequest,
    DescribeResponse,
    RuntimeServicer,
    ServingState,
)
from services.runtime.interceptors import Meter


def version() -> str:
    """Version of the installed project."""
    try:
        return importlib.metadata.version("lb-mesh")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@dataclass
class Description:
    """What ``Describe`` answers; the server keeps it true."""

    service: str
    instance_id: str
    weight: int
    zone: str
    meter: Meter
    address: str = ""
    state: ServingState.ValueType = ServingState.SERVING_STATE_NOT_READY
    unhealthy: dict[str, str] = field(default_factory=dict)
    """Every dependency by name, and why it is not healthy; empty when it is."""
    version: str = field(default_factory=version)
    started_at: Timestamp = field(default_factory=lambda: Timestamp(seconds=int(time.time())))


class Runtime(RuntimeServicer):
    """The servicer."""

    def __init__(self, description: Description) -> None:
        self._description = description

    async def Describe(
        self, request: DescribeRequest, context: grpc.aio.ServicerContext[DescribeRequest, DescribeResponse]
    ) -> DescribeResponse:
        """The instance that answers."""
        about = self._description
        return DescribeResponse(
            service=about.service,
            instance_id=about.instance_id,
            pid=os.getpid(),
            started_at=about.started_at,
            version=about.version,
            weight=about.weight,
            zone=about.zone,
            address=about.address,
            calls_total=about.meter.calls_total,
            in_flight=about.meter.in_flight,
            state=about.state,
            dependencies=[
                Dependency(name=name, healthy=not why, message=why) for name, why in sorted(about.unhealthy.items())
            ],
        )
