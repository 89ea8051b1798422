"""What a server needs besides its handlers: a whole one, its pieces, and the life of its process."""

from __future__ import annotations

from lb.core.serving.priority import Priority
from lb.core.serving.settings import Concurrency, Limits, Rate
from lb.server._server import Server
from lb.server.admission import Admission
from lb.server.gate import Meter
from lb.server.leaving import draining
from lb.server.life import Life, live
from lb.server.mistakes import StartError
from lb.server.orca import LoadReporter, LoadTrailers, cost
from lb.server.places import Place, Places, RefusedError
from lb.server.reasons import NotOpenError
from lb.server.supervising.instances import instances
from lb.shared.asynchronous import behavior_of
from lb.shared.handlers import Around, Behavior

__all__ = [
    "Admission",
    "Around",
    "Behavior",
    "Concurrency",
    "Life",
    "Limits",
    "LoadReporter",
    "LoadTrailers",
    "Meter",
    "NotOpenError",
    "Place",
    "Places",
    "Priority",
    "Rate",
    "RefusedError",
    "Server",
    "StartError",
    "behavior_of",
    "cost",
    "draining",
    "instances",
    "live",
]
