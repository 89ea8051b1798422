"""For tests, a user's own too: parts of a mesh that run inside a test.

``Agent``: a Consul agent that is embedded (:mod:`lb.testing.agent`).
``Backend``: a gRPC server that does as it is told (:mod:`lb.testing.backend`).
``FakeClock``: time that a test moves (:mod:`lb.testing.clock`).

As fixtures of pytest: :mod:`lb.testing.fixtures`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lb.testing.agent import Agent
    from lb.testing.backend import Backend
    from lb.testing.clock import FakeClock

__all__ = ["Agent", "Backend", "FakeClock"]

# Loaded on first use, so that each part costs only those who use it.
_HOMES = {"Agent": "lb.testing.agent", "Backend": "lb.testing.backend", "FakeClock": "lb.testing.clock"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
