"""The shell for threads: `channel`, and `incoming` for servers."""

from __future__ import annotations

from lb.sync.channel import Channel, channel
from lb.sync.incoming import incoming

__all__ = ["Channel", "channel", "incoming"]
