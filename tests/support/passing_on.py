"""A server whose handlers fail in words that they pass on, as a gateway does with what its own clients met."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from lb.core.words import TABLE, Words

EACH_WORDING = pytest.mark.parametrize("words", TABLE, ids=lambda words: words.begins or words.ends)


@dataclass
class PassingOn:
    """``words``: what every handler fails with, UNAVAILABLE and without metadata."""

    address: str = ""
    words: str = ""
    calls: int = 0
    """How many came so far."""

    def say(self, words: Words) -> None:
        """Fail in words of core's table, which name this server where core would."""
        self.words = (
            f"{words.begins}: ipv4:{self.address}{words.ends}" if words.addressed else words.begins + words.ends
        )


@asynccontextmanager
async def passing_on(methods: dict[str, str]) -> AsyncIterator[PassingOn]:
    """Serves these methods: path by kind (``unary_unary``, ...)."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    peer = PassingOn()

    async def refuse(_: Any, context: Any) -> bytes:
        peer.calls += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, peer.words)
        return b""

    for kind, path in methods.items():
        service, _, method = path[1:].partition("/")
        handler = getattr(grpc, f"{kind}_rpc_method_handler")(refuse)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    peer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield peer
    finally:
        await server.stop(None)
