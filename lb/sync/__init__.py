"""The shell for threads: `channel`."""

from __future__ import annotations

from lb.sync.channel import Channel, channel

__all__ = ["Channel", "channel"]
