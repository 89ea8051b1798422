"""For tests of code that calls through `lb`: servers that do as they are told, a Consul, and a clock.

- `lb.testing.Backend`: a gRPC server that does what a script says (``lb.testing.backend`` has the steps).
- `lb.testing.Agent`: a small Consul agent, inside the test.
- `lb.testing.FakeClock`: time that a test moves.
- ``lb.testing.fixtures``: all of these as fixtures of pytest.
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


def __dir__() -> list[str]:
    """What is imported later is here, too."""
    return sorted({*globals(), *__all__})
