"""The asyncio shell: `channel`, `registration`, and `incoming` for servers."""

from __future__ import annotations

from lb.aio._incoming import incoming
from lb.aio._registration import Registration, registration
from lb.aio.channel import Channel, channel

__all__ = ["Channel", "Registration", "channel", "incoming", "registration"]
