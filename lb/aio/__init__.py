"""The asyncio shell: `channel`, `registration`, and `incoming` for servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lb.aio._channel import Channel, channel
from lb.aio._incoming import incoming
from lb.core.later import later

if TYPE_CHECKING:
    from lb.aio._registration import Registration, registration
else:
    __getattr__ = later(__name__, dict.fromkeys(("Registration", "registration"), "lb.aio._registration"))

__all__ = ["Channel", "Registration", "channel", "incoming", "registration"]


def __dir__() -> list[str]:
    """What is imported later is here, too."""
    return sorted({*globals(), *__all__})
