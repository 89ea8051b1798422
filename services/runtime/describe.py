"""mesh.runtime.v1.Runtime: what an instance says about itself."""

from __future__ import annotations

import importlib.metadata
import os
import time
from dataclasses import dataclass, field

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from lb.server import Server
from mesh.runtime.v1 import (
    Dependency,
    DescribeRequest,
    DescribeResponse,
    RuntimeServicer,
    ServingState,
)


def version() -> str:
    """Version of the installed project."""
    try:
        return importlib.metadata.version("lb-mesh")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_STATES = {
    "serving": ServingState.SERVING_STATE_SERVING,
    "draining": ServingState.SERVING_STATE_DRAINING,
}


@dataclass
class Description:
    """What ``Describe`` answers, beside what the server itself knows."""

    service: str
    instance_id: str
    weight: int
    zone: str
    version: str = field(default_factory=version)
    started_at: Timestamp = field(default_factory=lambda: Timestamp(seconds=int(time.time())))


class Runtime(RuntimeServicer):
    """The servicer."""

    def __init__(self, description: Description, server: Server) -> None:
        self._description = description
        self._server = server

    async def Describe(
        self, request: DescribeRequest, context: grpc.aio.ServicerContext[DescribeRequest, DescribeResponse]
    ) -> DescribeResponse:
        """The instance that answers."""
        about, server = self._description, self._server
        return DescribeResponse(
            service=about.service,
            instance_id=about.instance_id,
            pid=os.getpid(),
            started_at=about.started_at,
            version=about.version,
            weight=about.weight,
            zone=about.zone,
            address=server.address,
            calls_total=server.meter.calls_total,
            in_flight=server.meter.in_flight,
            state=_STATES.get(server.state, ServingState.SERVING_STATE_NOT_READY),
            dependencies=[
                Dependency(name=name, healthy=not why, message=why) for name, why in sorted(server.unhealthy.items())
            ],
        )
