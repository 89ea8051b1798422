"""A business service as a process."""

from __future__ import annotations

from services.runtime.host import Build
from services.runtime.instance import Instance
from services.runtime.process import main
from services.runtime.settings import Settings
from services.runtime.telemetry import Telemetry


def serve(name: str, build: Build) -> None:
    """Serve one instance of the service ``name`` until there is a reason to end."""

    def make(settings: Settings, traces: Telemetry) -> Instance:
        return Instance(name, build, settings, interceptors=traces.server_interceptors(), flush=traces.flush)

    main(name, Settings, make)
