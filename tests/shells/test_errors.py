"""What a call is told that cannot be made."""

from __future__ import annotations

import grpc
import pytest

from tests.aio.kit import KINDS, Told
from tests.shells.kit import Shell


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
async def test_no_endpoint_fails_at_once(shell: Shell, kind: str) -> None:
    """UNAVAILABLE with the target and the resolver's note, though the call has time."""
    async with shell.open(Told(note="no such service")) as channel:
        error = await shell.failure(channel, kind=kind, timeout=30)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "told has no endpoint: no such service"
