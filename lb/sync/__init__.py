"""The shell for threads: `channel`, and `incoming` for servers."""

from __future__ import annotations

from lb.sync.channel import Channel, attempts, channel
from lb.sync.incoming import incoming

__all__ = ["Channel", "attempts", "channel", "incoming"]
