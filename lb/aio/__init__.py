"""The asyncio shell: `channel` and `registration`."""

from __future__ import annotations

from lb.aio.channel import Channel, attempts, channel

__all__ = ["Channel", "attempts", "channel"]
