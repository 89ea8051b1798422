"""What `docs/upstream.md` proposes to change in grpcio, done from outside, in a process that counts what it saves.

Where grpcio has compiled code, Python stands here in its place, so the change itself saves a little more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from grpc import _observability
from grpc._cython import cygrpc

_log = logging.getLogger("grpc._cython.cygrpc")


def get_plugin() -> None:
    """No generator and no lock as long as there is no plugin."""
    locked = _observability.get_plugin
    nothing = contextlib.nullcontext()

    def get_plugin() -> Any:
        return nothing if _observability._OBSERVABILITY_PLUGIN is None else locked()

    _observability.get_plugin = get_plugin


def running_loop() -> None:
    """The text of a debug line is made when somebody reads it."""

    def _get_running_loop() -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        _log.debug("[_cygrpc] Loaded running loop: id(loop)=%d", id(loop))
        return loop

    cygrpc._get_running_loop = _get_running_loop


MENDS = {"get_plugin": get_plugin, "running loop": running_loop}
