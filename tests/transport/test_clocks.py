"""The wall clock is set while calls wait, pause or run: deadlines are instants of the monotonic clock."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.stepped import needs_faketime, run
from tests.transport.kit import KINDS

HOUR_S = 3600.0
MOST_S = 25.0
"""What a busy machine may need for two seconds; a call that follows the wall clock needs an hour, or none."""


@needs_faketime
@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])
@pytest.mark.parametrize("side", ["aio", "threads", "grpcio"])
async def test_a_clock_that_is_set_moves_no_deadline(side: str, ahead_s: float) -> None:
    """An hour either way: who pauses or runs goes on and succeeds; who hangs or waits ends at its own deadline."""
    ends = await asyncio.to_thread(run, "tests.transport.stepped_child", side, str(ahead_s))
    for kind in KINDS:
        for name in ("paused", "running"):
            assert ends[f"{name} {kind}"][0] == "OK", (name, kind, ends)
        for name in ("hanging", "waiting"):
            code, took_s = ends[f"{name} {kind}"]
            assert code == "DEADLINE_EXCEEDED", (name, kind, ends)
            assert 1.8 < took_s < MOST_S, (name, kind, ends)
