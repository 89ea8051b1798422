"""What a server needs besides its handlers. So far: the life of its process."""

from __future__ import annotations

from lb.server.life import Life, live
from lb.server.reasons import NotOpenError

__all__ = ["Life", "NotOpenError", "live"]
