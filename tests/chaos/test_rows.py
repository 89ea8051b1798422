"""The faults of ``make chaos`` in their short forms: what they promise, not how fast it is."""

from __future__ import annotations

import pytest

from tests.chaos.rig import Rig
from tests.chaos.rows import ROWS, Row

pytestmark = pytest.mark.alone

# A machine that is busy with other things must not make calls time out in masses: gentler than the full form.
IN_FLIGHT = 16
ATTEMPT_TIMEOUT_S = 1.0
FAULTS = [row for row in ROWS if row.number != "0"]
WITH_CONSUL = [row for row in ROWS if row.number == "10"]


def _name(row: Row) -> str:
    return f"{row.number} {row.name}" + (" threads" if row.threads else "")


async def _kept(row: Row, *, real_consul: bool) -> None:
    async with Rig(
        in_flight=IN_FLIGHT, attempt_timeout_s=ATTEMPT_TIMEOUT_S, real_consul=real_consul, threads=row.threads
    ) as rig:
        lines = await row.run(rig, row, row.short_s)
    assert lines
    for line in lines:
        assert line.figures.calls > 0, f"{line.name}: no call ended"
        assert not line.broken, f"{line.name}: {line.broken} {line.figures.errors}"


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=_name(row), marks=getattr(pytest.mark, row.needs) if row.needs else ()) for row in FAULTS],
)
async def test_the_promises_of_each_fault_are_kept(row: Row) -> None:
    """No idempotent call fails while an endpoint lives; with none calls say so; what is cancelled leaves nothing."""
    await _kept(row, real_consul=False)


@pytest.mark.consul
@pytest.mark.parametrize("row", WITH_CONSUL, ids=_name)
async def test_the_same_with_a_real_consul(row: Row) -> None:
    """What holds with the embedded agent holds with Consul itself, which comes back empty."""
    await _kept(row, real_consul=True)
