"""What is changed of a channel, and what it says of itself."""

from __future__ import annotations

import pytest

import lb
from tests.aio.conftest import Fleet
from tests.aio.kit import target
from tests.shells.kit import Shell


async def test_changed_weights_are_followed(shell: Shell, fleet: Fleet) -> None:
    """From the next call on, and no longer once they are taken back."""
    one, two = await fleet(2)
    async with shell.open(target(one, two)) as channel:
        await shell.ready(channel, 2)
        channel.change_weights({one.address: 3})
        await shell.call(channel, 8)
        assert (len(one.received), len(two.received)) == (6, 2)
        channel.change_weights({})
        await shell.call(channel, 8)
        assert (len(one.received), len(two.received)) == (10, 6)
        with pytest.raises(ValueError, match="weights"):
            channel.change_weights({one.address: -1})
        with pytest.raises(ValueError, match=r"weights\['a'\] is 10000000000; expected a whole number >= 0, at most"):
            channel.change_weights({"a": 10**10})
        with pytest.raises(TypeError, match="weights is None; expected weights by endpoint id"):
            channel.change_weights(None)


async def test_it_can_be_looked_at(shell: Shell, fleet: Fleet) -> None:
    """The snapshot tells the policy and each endpoint's state, also as text."""
    one, two = await fleet(2)
    async with shell.open(target(one, two), policy="round_robin") as channel:
        await shell.ready(channel, 2)
        assert "READY" in str(channel.snapshot())
        assert channel.snapshot().policy == "round_robin"
        channel.change_policy(lb.WeightedRoundRobin())
        assert channel.snapshot().policy == "weighted_round_robin"
