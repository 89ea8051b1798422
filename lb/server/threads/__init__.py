"""The server's half for a ``grpc.server`` with threads: admission, with the pool that it needs."""

from __future__ import annotations

from lb.server.threads.admission import Admission

__all__ = ["Admission"]
