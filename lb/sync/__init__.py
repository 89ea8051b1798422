"""The shell for threads: `channel`, and `incoming` for servers."""

from __future__ import annotations

from lb.sync._channel import Channel, channel
from lb.sync._incoming import incoming

__all__ = ["Channel", "channel", "incoming"]
