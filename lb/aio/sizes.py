"""Calls whose messages are counted in bytes: what a channel with ``measure_sizes`` makes in place of plain ones.

A class of their own, chosen once per channel, so that other channels pay nothing for it. Counted
are serialized messages on their way to core and back, hence before compression and after it was
undone: grpcio tells Python neither the compressed size nor whether a message was compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from lb.aio._grpcio import ResponseStream
from lb.aio.calls import LogicalCall
from lb.core.attempt import Attempt
from lb.core.outcome import Outcome


def size(message: object) -> int:
    """Its bytes; 0 for what is none: the end of a stream, a request that was not serialized."""
    return len(message) if isinstance(message, bytes) else 0


class Sizes:
    """Bytes of one attempt's messages."""

    __slots__ = ("reading", "received", "sent", "tell")

    def __init__(self, sent: int = 0) -> None:
        self.sent = sent
        self.received = 0
        self.reading = False
        """Whether a message is on its way here."""
        self.tell: Callable[[], None] | None = None
        """What to do once it is here: the attempt has ended."""


class _Counted:
    """A lower call of grpcio's, with its messages counted."""

    __slots__ = ("_call", "_sizes")

    def __init__(self, call: Any, sizes: Sizes) -> None:
        self._call = call
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def unary_unary(self, request: bytes, *arguments: Any) -> bytes | None:
        self._sizes.sent += size(request)
        response: bytes | None = self._received(await self._call.unary_unary(request, *arguments))
        return response

    async def stream_unary(self, *arguments: Any) -> bytes | None:
        response: bytes | None = self._received(await self._call.stream_unary(*arguments))
        return response

    async def send_serialized_message(self, message: bytes) -> None:
        self._sizes.sent += size(message)
        await self._call.send_serialized_message(message)

    async def receive_serialized_message(self) -> Any:
        sizes = self._sizes
        sizes.reading = True
        try:
            return self._received(await self._call.receive_serialized_message())
        finally:
            sizes.reading = False
            if sizes.tell is not None:
                sizes.tell()

    def _received(self, message: Any) -> Any:
        self._sizes.received += size(message)
        return message


class _CountedStream(ResponseStream):
    __slots__ = ("_sizes",)

    def __init__(self, counted: _Counted, ended: Callable[[ResponseStream], None]) -> None:
        super().__init__(counted._call, ended)
        self._sizes = counted._sizes
        self.receive_serialized_message = counted.receive_serialized_message
        self.send_serialized_message = counted.send_serialized_message

    def initiate_unary_stream(self, request: bytes, *arguments: Any) -> Coroutine[Any, Any, None]:
        self._sizes.sent += size(request)
        return super().initiate_unary_stream(request, *arguments)


class SizedCall(LogicalCall):
    """A `LogicalCall` that measures its attempts' messages. (`lb.sync` puts it over its own kinds.)"""

    def __init__(self, *arguments: Any) -> None:
        self.sizes: dict[Attempt, Sizes] = {}
        super().__init__(*arguments)

    def lower_call(self, attempt: Attempt, to_wall_clock: float | None = None) -> Any:
        """See `LogicalCall`."""
        sizes = self.sizes[attempt] = Sizes()
        return _Counted(super().lower_call(attempt, to_wall_clock), sizes)

    def stream_of(self, real: _Counted) -> Any:
        """See `LogicalCall`."""
        return _CountedStream(real, self._status_arrived)

    def hand_back(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        """See `LogicalCall`."""
        super().hand_back(attempt, outcome, now)
        sizes = self.sizes.pop(attempt, None)
        if not self._channel.metrics.on or sizes is None:
            return

        def tell() -> None:
            self._channel.metrics.attempt_sizes(self.call, attempt, sizes.sent, sizes.received)

        if sizes.reading:  # the status may be here a moment before its last message
            sizes.tell = tell
        else:
            tell()
