"""The calls that go without a task: those that start in one turn of the loop are sent together, in the next turn.

Sent one by one, each response would come alone, and each thread on the way would wake for one event: a tenth of a call.
"""

from __future__ import annotations

from asyncio import get_running_loop
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lb.aio.unary import UnaryCall


class Departures:
    """Such calls of one channel. In the channel's event loop."""

    __slots__ = ("_starting", "running")

    def __init__(self) -> None:
        self.running: set[UnaryCall] = set()
        """Those that have started and not ended. A call adds and removes itself."""
        self._starting: list[UnaryCall] = []

    def send_soon(self, call: UnaryCall) -> None:
        """Send this call in the loop's next turn."""
        starting = self._starting
        if not starting:
            get_running_loop().call_soon(self._send)
        starting.append(call)

    def _send(self) -> None:
        starting, self._starting = self._starting, []
        for number, call in enumerate(starting, 1):
            try:
                call.context.run(call.send)
            except BaseException:  # Ctrl-C in a serializer: the others go on
                for other in starting[number:]:
                    self.send_soon(other)
                raise
