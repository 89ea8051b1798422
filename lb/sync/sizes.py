"""Calls of `lb.sync` whose messages are counted in bytes: see `lb.aio.sizes`."""

from __future__ import annotations

from lb.aio.sizes import SizedCall, Sizes, size
from lb.core.attempt import Attempt
from lb.sync import _grpcio
from lb.sync.calls import BlockingCall, Locked, Sent


class SizedLocked(SizedCall, Locked):
    """The call under a future or a stream."""


class SizedBlockingCall(SizedCall, BlockingCall):
    """A blocking call; what it sends from the caller's thread does not pass a lower call."""

    def _send(self, attempt: Attempt) -> Sent:
        sizes = self.sizes[attempt] = Sizes(size(_grpcio.message_of(self._operations[1])))
        sent = super()._send(attempt)
        sizes.received = size(sent.event.batch_operations[4].message())
        return sent
