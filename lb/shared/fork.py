"""Channels in a forked child: they work, or are a clear error instead of a hang.

grpcio's asyncio layer has one thread for all its channels, which waits in core. A child has none of its
parent's threads, and while one is in core, core does not prepare for a fork (it says "skipping fork() handlers").
So what a child asks of grpcio is never answered. Core also starts its own threads again in the child. These sometimes
crash it, if the parent's asyncio layer was waiting for core to answer a call, or a watch on a connection. So:

- Before a fork channels in which no call runs close their connections, as idle ones do, and open them at the next
  call. If only channels of `lb.sync` use grpcio's asyncio layer, its thread ends, and new channels work in the child.
  That takes core's fork support, which is on by default (``GRPC_ENABLE_FORK_SUPPORT``).
- Channels of `lb.sync` in which threads wait for blocking calls keep their connections, and watch them again after
  the fork.
- Where a call runs, an `lb.aio` channel is open, or gevent is in use, every channel refuses in the child, new ones
  too. Nothing starts grpcio's thread again: its queue in core is the parent's.

A channel that was used works only in the parent either way. One that was made and not used works in the child.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Protocol

from lb.shared import threads

# The name of grpcio's thread ends so.
POLLER = "(_poll_wrapper)"

FORKED = (
    "this process was forked while a call ran or an lb.aio channel was open, and no channel of lb works in it; "
    "fork before the first call, or start the process by spawn"
)
LEFT = "this channel was used before the process was forked, and works only in the parent; make a new one in the child"

_OFF = ("0", "f", "false", "n", "no")
_POLLER_ENDS_S = 0.5


class Used(Protocol):
    """A channel that has been used."""

    def let_go(self) -> bool:
        """Before a fork: leave grpcio's asyncio layer until the next call. False when that cannot be."""

    def resume(self) -> None:
        """After the fork, in the parent."""

    def forked(self, why: str) -> None:
        """This is the child: touch nothing any more, and refuse calls with this reason."""


_used: weakref.WeakSet[Used] = weakref.WeakSet()
_alive = False
_lost = False


def remember(channel: Used) -> None:
    """This channel is in use from now on."""
    _used.add(channel)


def lost() -> bool:
    """Whether this process was forked from one in which grpcio's thread ran."""
    return _lost


def polled() -> bool:
    """Whether grpcio's thread runs."""
    names = [thread.name for thread in threading.enumerate()] + [thread.name for thread in threads.running]
    return any(POLLER in name for name in names)


def _before() -> None:
    global _alive
    supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() not in _OFF
    runs = polled()
    # Also where it does not run for a moment: a thread that waits for a blocking call is in core as well.
    gone = all([channel.let_go() for channel in list(_used)])
    if runs and gone:
        gc.collect()  # a call that failed is in a cycle with its frames, and keeps its connection
        until = time.monotonic() + _POLLER_ENDS_S
        while polled() and time.monotonic() < until:
            time.sleep(0.001)
    _alive = not gone or (runs and not supported) or polled()


def _in_parent() -> None:
    for channel in list(_used):
        channel.resume()


def _in_child() -> None:
    global _lost
    _lost = _lost or _alive
    for channel in list(_used):
        channel.forked(FORKED if _lost else LEFT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
