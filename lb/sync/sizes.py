"""Calls of `lb.sync` whose messages are counted in bytes: see `lb.aio.sizes`."""

from __future__ import annotations

from typing import Any

from lb.aio.sizes import SizedCall, Sizes, size
from lb.core.balancer import Attempt
from lb.sync import _grpcio
from lb.sync.calls import BlockingCall, Locked


class SizedLocked(SizedCall, Locked):
    """The call under a future or a stream."""


class SizedBlockingCall(SizedCall, BlockingCall):
    """A blocking call; what it sends from the caller's thread does not pass a lower call."""

    def _send(self, attempt: Attempt) -> Any:
        sizes = self.sizes[attempt] = Sizes(size(_grpcio.message_of(self._operations[1])))
        event = super()._send(attempt)
        sizes.received = size(event.batch_operations[4].message())
        return event
