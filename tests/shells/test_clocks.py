"""The wall clock is set while calls wait, pause or run: deadlines are instants of the monotonic clock."""

from __future__ import annotations

import asyncio

import pytest

from tests.aio.kit import KINDS
from tests.support.stepped import needs_faketime, run

HOUR_S = 3600.0
MOST_S = 25.0
"""What a busy machine may need for six seconds; a call that follows the wall clock needs an hour, or none."""


SIDES = ("aio", "threads", "grpcio")


@needs_faketime
@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])
async def test_a_clock_that_is_set_moves_no_deadline(ahead_s: float) -> None:
    """An hour either way: who pauses or runs goes on and succeeds; who hangs or waits ends at its own deadline."""
    runs = [asyncio.to_thread(run, "tests.shells.stepped_child", side, str(ahead_s)) for side in SIDES]
    for side, ends in zip(SIDES, await asyncio.gather(*runs), strict=True):
        for kind in KINDS:
            for name in ("paused", "running"):
                assert ends[f"{name} {kind}"][0] == "OK", (side, name, kind, ends)
            for name in ("hanging", "waiting"):
                code, took_s = ends[f"{name} {kind}"]
                # On a machine so busy that no time is left for another attempt the failure of the first one is told.
                late = name == "hanging" and code == "UNAVAILABLE"
                assert late or (code == "DEADLINE_EXCEEDED" and took_s > 5.8), (side, name, kind, ends)
                assert took_s < MOST_S, (side, name, kind, ends)
