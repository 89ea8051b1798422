"""The life of a process: it starts, works, leaves well when there is a reason to end, and at once at the second one.

::

    start ─► run ─ done, or a reason to end ─► leave ─ done, one more reason, or its time is over ─► close
      └─────────── a reason to end ──────────────┘

What counts as a reason is in `lb.server.reasons`. Nothing here knows gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from signal import Signals

from lb.core import checks
from lb.server.reasons import SIGNALS, listening

_log = logging.getLogger("lb.server")


class Life:
    """The start, work and shutdown of a process.

    A subclass overrides what it needs; `live` calls each method at most once, in order.
    """

    async def start(self) -> None:
        """Open resources. A signal cancels it; an error ends the process's life."""

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT cancels it. If it returns before, shutdown begins."""
        await asyncio.Event().wait()

    async def leave(self, because: str) -> None:
        """Shut down gracefully: tell clients, finish running calls. A second signal cancels it, and so
        does the end of the time that `live` gives it.

        ``because`` is the reason in words, empty when ``run`` returned by itself. Called as well when ``start`` was
        cancelled.
        """

    async def close(self) -> None:
        """Release everything, at once. Always called, also after an error."""


async def live(
    life: Life,
    *,
    parent_fd: int | None = None,
    signals: Sequence[Signals] = SIGNALS,
    leave_s: float | None = 30.0,
) -> None:
    """Run ``life`` until it ends or a signal arrives. Raises what its methods raise.

    Needs an event loop that handles signals; asyncio's loops on Windows do not.

    Args:
        life: what to do.
        parent_fd: the reading end of a pipe whose end-of-file means that the supervisor is gone; None without one.
        signals: which signals are reasons to end.
        leave_s: how long `Life.leave` may take, in seconds, >= 0. None: it bounds itself.

    Raises:
        NotOpenError: ``parent_fd`` is not an open descriptor.
        ValueError: ``leave_s`` is below 0.
        TypeError: ``leave_s`` is no number.
    """
    if leave_s is not None:
        checks.number("leave_s", leave_s)
    with listening(parent_fd, signals) as reasons:
        try:
            if await reasons.do_until(1, life.start()):
                await reasons.do_until(1, life.run())
            because = reasons.heard[0] if reasons.heard else ""
            try:
                async with asyncio.timeout(leave_s) as time:
                    await reasons.do_until(2 if because else 1, life.leave(because))
            except TimeoutError:
                if not time.expired():
                    raise
                _log.warning("the time for leaving has passed, %g s; what was not done is cut off", leave_s)
        finally:
            await life.close()
