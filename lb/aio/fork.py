"""Channels in a forked child: a clear error instead of a hang.

grpcio's asyncio layer has one thread for all its channels, and a child has none of its parent's
threads: what it is asked there is never answered, and nothing starts it anew. So once it ran in
the parent, every channel refuses in the child: those of the parent and new ones. A channel that
was made and not used, while no other was in use, works in the child as in any process.

Core's own threads are another matter: it starts them again in the child, and with a channel in
use they crash one child in four, grpcio's own channels alike (measured with 1.85). The variable
``GRPC_ENABLE_FORK_SUPPORT=0`` keeps it from that.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from lb import threads

# The name of grpcio's thread ends so.
POLLER = "(_poll_wrapper)"

FORKED = (
    "grpcio's asyncio layer was in use when this process was forked, and does not work in the child; "
    "fork before the first use of a channel, or start the process by spawn"
)


class Used(Protocol):
    """A channel that has been used."""

    def forked(self) -> None:
        """This is the child: touch nothing any more."""


_used: weakref.WeakSet[Used] = weakref.WeakSet()
_alive = False
_lost = False


def remember(channel: Used) -> None:
    """This channel is in use from now on."""
    _used.add(channel)


def lost() -> bool:
    """Whether this process was forked from one in which grpcio's thread ran."""
    return _lost


def _before() -> None:
    global _alive
    names = [thread.name for thread in threading.enumerate()] + [thread.name for thread in threads.running]
    _alive = any(POLLER in name for name in names)


def _in_child() -> None:
    global _lost
    _lost = _lost or _alive
    for channel in list(_used):
        channel.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
