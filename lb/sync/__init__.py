"""The shell for threads: `channel`, and `incoming` for servers."""

from __future__ import annotations

from lb.sync._incoming import incoming
from lb.sync.channel import Channel, channel

__all__ = ["Channel", "channel", "incoming"]
