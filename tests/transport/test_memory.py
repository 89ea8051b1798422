"""A finished call is gone at once: no reference cycle waits for the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

from lb.testing import Backend
from tests.transport.kit import SS, SU, US, UU, Kind, channel_to

OURS = ("LogicalCall", "Call", "Attempt", "Outcome", "Outbox", "UnaryUnaryCall", "UnaryStreamCall")


@pytest.mark.parametrize("kind", [UU, US, SU, SS], ids=str)
async def test_a_finished_call_is_freed_without_the_collector(backend: Backend, kind: Kind) -> None:
    """After many calls the collector finds none of them (the server's own cycles are not ours)."""
    calls = 1000 if kind is UU else 100
    async with channel_to(backend) as channel:
        await kind.run(channel)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(calls):
                await kind.run(channel)
            gc.collect()
            found: Counter[Any] = Counter(type(item).__name__ for item in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not {name: found[name] for name in OURS if found[name]}
