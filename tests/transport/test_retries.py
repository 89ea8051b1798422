"""Which failed attempts are followed by another, where, and when no more."""

from __future__ import annotations

from lb.testing.backend import fail
from tests.transport.conftest import Fleet
from tests.transport.kit import Kind, channel_to, failure, ready


async def test_a_servers_own_words_do_not_say_that_nothing_was_sent(fleet: Fleet, kind: Kind) -> None:
    """A service may pass on its own dependency's "failed to connect": the method has run, and is not idempotent."""
    one, two = await fleet(2)
    words = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: Connection refused"
    one.always(fail(details=words))
    two.always(fail(details=words))
    async with channel_to(one, two) as channel:
        await ready(channel, 2)
        error = await failure(kind.start(channel))
    assert error.details() == words
    assert len(one.received) + len(two.received) == 1
