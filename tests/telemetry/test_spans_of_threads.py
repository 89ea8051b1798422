"""Spans of calls that block, and of futures and streams of threads."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.sync.kit import IDEMPOTENT, KINDS, Kind, Server, channel_to, eventually, fail, ready
from tests.telemetry.kit import Recording

Code = grpc.StatusCode


@pytest.fixture
def server() -> Iterator[Server]:
    """One server, ``a``."""
    server = Server()
    yield server
    server.stop()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_spans(server: Server, kind: Kind) -> None:
    """A call has a span and one for each attempt, blocking or not; the server gets the attempt's context."""
    with channel_to(server, retry=IDEMPOTENT) as channel:
        ready(channel, 1)
        for blocking in (True, False):
            recording = Recording()
            recording.of(channel)
            server.reset()
            server.script(fail(Code.UNAVAILABLE))
            assert (kind.run(channel) if blocking else kind.finish(kind.start(channel))) == kind.echo()
            eventually(lambda recording=recording: len(recording.spans) == 3, "all spans ended")  # type: ignore[misc]
            assert [span.parent.span_id for span in recording.attempts] == [recording.call.context.span_id] * 2
            sent = [str(received.metadata["traceparent"]).split("-")[2] for received in server.received]
            assert sent == [f"{span.context.span_id:016x}" for span in recording.attempts]
