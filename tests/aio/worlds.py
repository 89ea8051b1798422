"""One test body, three worlds: a channel of grpcio's, one of `lb` with one endpoint, and one with three and hedging.

An assertion in a ``test_conformance*`` file is true in all of them; where they differ on purpose,
another file says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS, Received, Step
from tests.aio.kit import NO_BREAKER, REQUESTS, SS, SU, US, UU, Kind, eventually, target

RESPONSE_STREAMS = pytest.mark.parametrize("kind", [US, SS], ids=str)
REQUEST_STREAMS = pytest.mark.parametrize("kind", [SU, SS], ids=str)
ONE_RESPONSE = pytest.mark.parametrize("kind", [UU, SU], ids=str)


@dataclass(frozen=True)
class Side:
    """Whose channel it is, and over how many backends."""

    name: str
    ours: bool
    backends: int

    def make(self, *addresses: str, credentials: grpc.ChannelCredentials | None = None, **arguments: Any) -> Any:
        """A channel to these addresses (grpcio's goes to the first), made as grpcio's functions make it."""
        if self.ours:
            text = "static:///" + ",".join(addresses)
            if self.backends > 1:  # hedges that never begin change nothing
                arguments = {"hedging": lb.Hedging(delay_s=600), "retry": lb.Retry(idempotent=METHODS)} | arguments
            return lb.aio.channel(text, credentials=credentials, breaker=NO_BREAKER, **arguments)
        if credentials is None:
            return grpc.aio.insecure_channel(addresses[0], **arguments)
        return grpc.aio.secure_channel(addresses[0], credentials, **arguments)

    def channel_for(self, text: Any, **arguments: Any) -> Any:
        """A channel for a target as it stands."""
        return (lb.aio.channel if self.ours else grpc.aio.insecure_channel)(text, **arguments)

    def to(self, backends: list[Backend], **arguments: Any) -> Any:
        """A channel to these backends."""
        return self.make(*(backend.address for backend in backends), **arguments)

    def code(self, backends: list[Backend], arguments: str = "") -> str:
        """The same as Python text, for a script that runs in a process of its own."""
        if self.ours:
            return f"lb.aio.channel({target(*backends)!r}{arguments})"
        return f"grpc.aio.insecure_channel({backends[0].address!r}{arguments})"

    def __str__(self) -> str:
        return self.name


SIDES = (Side("grpcio", False, 1), Side("lb, one endpoint", True, 1), Side("lb, three endpoints", True, 3))


class World:
    """A channel and what stands behind it."""

    def __init__(self, side: Side, channel: Any, backends: list[Backend]) -> None:
        self.side = side
        self.channel = channel
        self.backends = backends

    def always(self, step: Step | None) -> None:
        """Whichever backend gets the call."""
        for backend in self.backends:
            backend.always(step)

    @property
    def received(self) -> list[Received]:
        """By any of them."""
        return [call for backend in self.backends for call in backend.received]

    def start_quietly(self, kind: Kind) -> Any:
        """A call that writes nothing: grpcio's writer would turn a failure it runs into to INTERNAL."""
        return kind.start(self.channel, () if kind.streams_requests else REQUESTS)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the backends see."""
        await eventually(condition, "the backends see it")

    async def arrived(self) -> Received:
        """The one call, once it is there."""
        await self.until(lambda: self.received)
        (call,) = self.received
        return call
