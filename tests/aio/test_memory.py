"""A finished call is gone at once: no reference cycle waits for the garbage collector."""

from __future__ import annotations

import pytest

from lb.testing import Backend
from tests.aio.kit import SS, SU, US, UU, Kind, channel_to, collected


@pytest.mark.parametrize("kind", [UU, US, SU, SS], ids=str)
async def test_a_finished_call_is_freed_without_the_collector(backend: Backend, kind: Kind) -> None:
    """After many calls the collector finds none of them (the server's own cycles are not ours)."""
    calls = 1000 if kind is UU else 100
    async with channel_to(backend) as channel:
        await kind.run(channel)
        with collected() as found:
            for _ in range(calls):
                await kind.run(channel)
    assert not found
