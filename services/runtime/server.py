"""A business service as a process, or as several ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from lb.server.supervising import HOPELESS, Spec, how_many, run
from services.runtime.host import Build
from services.runtime.instance import Instance
from services.runtime.process import main, told_in_one_line
from services.runtime.settings import ServiceSettings, load, trace_collector
from services.runtime.telemetry import Telemetry


def serve(name: str, build: Build) -> None:
    """Serve the service ``name`` until there is a reason to end; several instances are a process each, under this."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}")
    parser.add_argument("--instances", metavar="N", help="how many processes, or auto; wins over MESH_INSTANCES")
    if (wished := parser.parse_args().instances) is not None:
        os.environ["MESH_INSTANCES"] = wished
    with told_in_one_line(name):
        settings = load(ServiceSettings)
        number = how_many(settings.instances)
        if number > 1:
            trace_collector()
            sys.exit(
                run(
                    lambda say: specs(name, number, settings, say),
                    drain_s=settings.drain_s,
                    parent_fd=settings.parent_fd,
                )
            )

    def make(settings: ServiceSettings, traces: Telemetry) -> Instance:
        return Instance(name, build, settings, interceptors=traces.server_interceptors(), flush=traces.flush)

    main(name, ServiceSettings, make)


def specs(name: str, number: int, settings: ServiceSettings, say: Callable[[str], None]) -> list[Spec]:
    """The processes of the instances. Their log lines say who wrote them, so they are shown as they are."""

    def show(line: str) -> bool:
        say(line)
        return True

    made = []
    for each in range(1, number + 1):
        env = {"MESH_INSTANCES": "1"}
        if settings.instance_id:
            env["MESH_INSTANCE_ID"] = f"{settings.instance_id}-{each}"
        command = (sys.executable, "-m", f"services.{name}")
        made.append(Spec(f"{name}-{each}", command, env, on_line=show, hopeless=HOPELESS))
    return made
