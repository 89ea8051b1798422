"""What a server needs besides its handlers: reports of its load, and the life of its process."""

from __future__ import annotations

from lb.server.life import Life, live
from lb.server.orca import LoadReporter, LoadTrailers, cost
from lb.server.reasons import NotOpenError
from lb.shared.handlers import Around, Behavior, behavior_of

__all__ = [
    "Around",
    "Behavior",
    "Life",
    "LoadReporter",
    "LoadTrailers",
    "NotOpenError",
    "behavior_of",
    "cost",
    "live",
]
