"""The server's half for a ``grpc.server`` with threads: a whole server, and its pieces."""

from __future__ import annotations

from lb.server.threads._server import Server
from lb.server.threads.admission import Admission
from lb.server.threads.leaving import draining
from lb.server.threads.orca import LoadTrailers

__all__ = ["Admission", "LoadTrailers", "Server", "draining"]
