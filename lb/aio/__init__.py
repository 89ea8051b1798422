"""The asyncio shell: `channel` and `registration`."""

from __future__ import annotations

from lb.aio.channel import Channel, attempts, channel
from lb.aio.registration import Registration, registration

__all__ = ["Channel", "Registration", "attempts", "channel", "registration"]
