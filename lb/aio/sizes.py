"""Messages counted in bytes, on a channel with ``measure_sizes``. Other channels pay nothing for it.

Counted are serialized messages on their way to core and back, hence before compression and after it was
undone: grpcio tells Python neither the compressed size nor whether a message was compressed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def size(message: object) -> int:
    """Its bytes; 0 for what is none: the end of a stream, a request that was not serialized."""
    return len(message) if isinstance(message, bytes) else 0


class Sizes:
    """Bytes of one attempt's messages."""

    __slots__ = ("_reading", "_tell", "received", "sent")

    def __init__(self, sent: int = 0) -> None:
        self.sent = sent
        self.received = 0
        self._reading = False
        self._tell: Callable[[], None] | None = None

    def reads(self) -> None:
        """A message is on its way here."""
        self._reading = True

    def has_read(self) -> None:
        """It is here, or will not come."""
        self._reading = False
        if self._tell is not None:
            self._tell()

    def over(self, tell: Callable[[], None]) -> None:
        """The attempt has ended: call ``tell`` once its last message is here, which may be a moment later."""
        if self._reading:
            self._tell = tell
        else:
            tell()


class Counted:
    """A lower call of grpcio's, with its messages counted."""

    __slots__ = ("_lower", "_sizes")

    def __init__(self, lower: Any, sizes: Sizes) -> None:
        self._lower = lower
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lower, name)

    def uncounted(self) -> Any:
        """The lower call itself, for grpcio's own functions."""
        return self._lower

    async def unary_unary(self, request: bytes, *arguments: Any) -> bytes | None:
        """See `LowerCall`."""
        self._sizes.sent += size(request)
        response: bytes | None = self._received(await self._lower.unary_unary(request, *arguments))
        return response

    async def stream_unary(self, *arguments: Any) -> bytes | None:
        """See `LowerCall`."""
        response: bytes | None = self._received(await self._lower.stream_unary(*arguments))
        return response

    async def initiate_unary_stream(self, request: bytes, *arguments: Any) -> None:
        """See `LowerCall`."""
        self._sizes.sent += size(request)
        await self._lower.initiate_unary_stream(request, *arguments)

    async def send_serialized_message(self, message: bytes) -> None:
        """See `LowerCall`."""
        self._sizes.sent += size(message)
        await self._lower.send_serialized_message(message)

    async def receive_serialized_message(self) -> Any:
        """See `LowerCall`."""
        self._sizes.reads()
        try:
            return self._received(await self._lower.receive_serialized_message())
        finally:
            self._sizes.has_read()

    def _received(self, message: Any) -> Any:
        self._sizes.received += size(message)
        return message
