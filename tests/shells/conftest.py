"""Fixtures of the tests of both shells: the backends of the channel's tests, and a name that has three."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from lb.testing import Backend
from tests.aio.conftest import backend, fleet, kind
from tests.shells.kit import shell
from tests.support.names import Names, names

__all__ = ["backend", "fleet", "kind", "names", "shell"]


@pytest.fixture
async def shop(names: Names) -> AsyncIterator[list[Backend]]:
    """Three servers behind the name ``shop.test``, on one port."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):  # the port may be taken on another address
            first = await stack.enter_async_context(Backend("a"))
            port = int(first.address.rpartition(":")[2])
            others = [Backend(name, host=host, port=port) for name, host in (("b", "127.0.0.2"), ("c", "127.0.0.3"))]
            if all(_free(f"127.0.0.{host}:{port}") for host in (2, 3, 4)):
                break
        backends = [first, *[await stack.enter_async_context(other) for other in others]]
        names.known["shop.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        yield backends


def _free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True
