"""How a handler learns that its server drains: for streams that would never end by themselves.

::

    async def Watch(self, request, context):
        leaving = asyncio.ensure_future(lb.server.draining())
        ...  # end the stream when it is done; the client opens another one elsewhere

The event of the server is in a context variable of the call, so whatever a handler awaits or starts finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

_leaving: ContextVar[asyncio.Event | None] = ContextVar("lb.server.leaving", default=None)


enter: Callable[[asyncio.Event], object] = _leaving.set
"""The current task carries out a call of a server that sets this event when it takes no more calls."""


async def draining() -> None:
    """Wait until the server that carries out this call drains. Await it in a handler, or in a task of one.

    It returns once clients have had their time to notice, and new calls are refused. A stream that ends then costs
    nothing: its client opens another one, on another server.

    Raises:
        RuntimeError: this is no call of a `Server`.
    """
    leaving = _leaving.get()
    if leaving is None:
        raise RuntimeError("lb.server.draining() is for handlers of lb.server.Server, and this is no call of one")
    await leaving.wait()
