"""Operations of a stream that the calling thread gives to core itself, past the loop, once the call is committed.

::

    before    caller ──► loop ──► core ──► poller ──► loop ──► events' thread ──► caller
    then      caller ──► core ──► poller ──► whichever loop takes the event ──► caller

grpcio's asyncio layer starts a batch of operations in any thread. It hands over the batch's end to the loop that it
was given: here an `Operation` stands for that loop, and for the future that its coroutine waits for.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from lb.aio._grpcio import InternalError, cygrpc
from lb.sync import _grpcio

_log = logging.getLogger("lb.channel")


class Operation:
    """Operations that are one batch, from their start in a thread to their event, which this is as well."""

    __slots__ = ("_due", "_first", "_steps", "batch_operations", "tag")
    completion_type = _grpcio.OPERATION_COMPLETE
    success = True

    def __init__(
        self, call: Any, operations: tuple[Any, ...], tag: Any, deliver: Callable[[Operation], object]
    ) -> None:
        """It is delivered once, when core has carried it out, or at `give_up`."""
        self.batch_operations = operations
        self.tag = tag
        self._due = [deliver]
        # Core may have carried it out before the coroutine waits for that, and one that runs cannot be resumed. So of
        # the two, who started it and who tells its end, the second goes on. To pop is one step to all threads.
        self._first = [False, True]
        self._steps = steps = cygrpc.execute_batch(call, operations, self).__await__()
        try:
            next(steps)
        except InternalError as error:  # as grpcio's own call says it
            raise ValueError(str(error)) from None
        if not self._first.pop():
            self._over()

    def give_up(self) -> None:
        """Nobody may be left to tell its end: deliver it now, if it is still due."""
        try:
            deliver = self._due.pop()
        except IndexError:
            return
        try:
            deliver(self)
        except Exception:  # noqa: BLE001  # in whatever loop this is, other events wait
            _log.exception("an event of a stream")

    def _over(self) -> None:
        steps, self._steps = self._steps, None
        # The operations take what has come; also when one of them has failed, as in grpcio's layer for threads.
        next(steps, None)
        self.give_up()

    # ---- as a loop, and as a future ----

    def create_future(self) -> Operation:
        """See asyncio."""
        return self

    def call_soon_threadsafe(self, function: Callable[..., object], *arguments: Any) -> None:
        """See asyncio; at once."""
        function(*arguments)

    def cancelled(self) -> bool:
        """See asyncio."""
        return False

    def set_result(self, _: Any) -> None:
        """See asyncio."""
        if not self._first.pop():
            self._over()

    set_exception = set_result

    __await__ = staticmethod(functools.partial(iter, (None,)))
