"""Run a set of processes and keep them running, by the standard library alone."""

from __future__ import annotations

from lb.server.supervising.child import Spec
from lb.server.supervising.delay import RestartDelay
from lb.server.supervising.instances import HOPELESS, how_many, run
from lb.server.supervising.output import LineWriter
from lb.server.supervising.supervisor import Supervisor

__all__ = ["HOPELESS", "LineWriter", "RestartDelay", "Spec", "Supervisor", "how_many", "run"]
