"""The asyncio shell: `channel`, `registration`, and `incoming` for servers."""

from __future__ import annotations

from lb.aio.channel import Channel, attempts, channel
from lb.aio.incoming import incoming
from lb.aio.registration import Registration, registration

__all__ = ["Channel", "Registration", "attempts", "channel", "incoming", "registration"]
