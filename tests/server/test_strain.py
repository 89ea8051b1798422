"""How late a loop is."""

from __future__ import annotations

from lb.server.strain import LOOP_LAG, Strain
from tests.support.stalls import hold_loop
from tests.support.wait import until


async def test_a_loop_that_is_held() -> None:
    """A loop that code of its own holds is late for most of the time; asked again, it is told of the time since."""
    strain = Strain()
    strain.start()
    try:

        async def late() -> bool:
            hold_loop(0.3)
            return strain.lag()[LOOP_LAG] > 0.4

        await until(late, within_s=30, what="it is late")
        assert strain.lag() == {LOOP_LAG: 0.0}
    finally:
        strain.stop()
