"""How connections are made under `lb.sync`: shared and not, and at what pace."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import lb
from tests.support import http2
from tests.sync.kit import HANGS_S, NO_BREAKER, UU, Kind, Server, eventually, failure, lb_threads

PATIENT = lb.Connection(backoff_s=60, max_backoff_s=60)
"""Who fails to connect does not try again in this test."""
RESTS = ("IDLE", "TRANSIENT_FAILURE")
"""The connection has ended, after the greeting or in its midst."""


def channel_for(address: str, **settings: Any) -> Any:
    """A channel to it, without a breaker."""
    return lb.sync.channel(f"static:///{address}", breaker=NO_BREAKER, **settings)


def test_a_new_channel_does_not_inherit_the_failure_of_another(kind: Kind, free_port: int) -> None:
    """The server is up: the new channel's first call passes, though another one waits before it tries again."""
    address = f"127.0.0.1:{free_port}"
    with channel_for(address, connection=PATIENT) as other:
        server = Server(port=free_port)
        assert UU.run(other) == UU.echo()
        server.stop()
        eventually(lambda: other.snapshot().endpoints[0].connectivity == "TRANSIENT_FAILURE", "it waits")
        server = Server(port=free_port)
        peers: set[str] = set()
        server.always = lambda context: peers.add(context.peer())
        try:
            with channel_for(address, connection=PATIENT) as channel:
                assert kind.run(channel) == kind.echo()
                assert UU.run(channel) == UU.echo()  # from the caller's thread
                assert kind.finish(kind.start(channel)) == kind.echo()  # from the loop
            assert len(peers) == 1  # over one connection
        finally:
            server.stop()


def test_channels_with_equal_arguments_share_a_connection(server: Server) -> None:
    """As grpcio's do."""
    peers: set[str] = set()
    server.always = lambda context: peers.add(context.peer())
    with channel_for(server.address) as one, channel_for(server.address) as other:
        for channel in (one, other):
            assert UU.run(channel) == UU.echo()
            assert UU.finish(UU.start(channel)) == UU.echo()
    assert len(peers) == 1


class HangsUp:
    """Greets each connection as HTTP/2 servers do, and hangs up."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="hangs up")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):  # the client may have gone
                connection.sendall(http2.settings().serialize())

    def stop(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(HANGS_S)


@pytest.fixture
def hangs_up() -> Iterator[HangsUp]:
    """A server that greets and hangs up."""
    server = HangsUp()
    yield server
    server.stop()


def test_connections_that_end_at_once_are_made_at_a_pace(hangs_up: HangsUp) -> None:
    """Each pause is twice the last one up to the longest, give or take a fifth; calls are told."""
    pauses = (0.05, 0.1, 0.2, 0.2, 0.2)
    with channel_for(hangs_up.address, connection=lb.Connection(backoff_s=0.05, max_backoff_s=0.2)) as channel:
        channel.subscribe(lambda state: None, try_to_connect=True)
        eventually(lambda: hangs_up.connections, "the first connection")
        since = time.monotonic()
        eventually(lambda: hangs_up.connections > len(pauses), "as many more")
        assert time.monotonic() - since > 0.7 * sum(pauses)
        assert "its connections end as soon as they are made" in failure(lambda: UU.run(channel)).details()


def test_closing_does_not_wait_for_the_pause() -> None:
    """A minute of it: the library's thread ends at once, in the best of five."""

    def took_s() -> float:
        # A server of its own: core may still have the connection of the channel before, and this one would share it.
        hangs_up = HangsUp()
        try:
            with channel_for(hangs_up.address, connection=PATIENT) as channel:
                channel.subscribe(lambda state: None, try_to_connect=True)
                eventually(lambda: hangs_up.connections, "it connects")
                eventually(lambda: channel.snapshot().endpoints[0].connectivity in RESTS, "it pauses")
                since = time.monotonic()
            eventually(lambda: not lb_threads(), "the library's thread has ended")
            return time.monotonic() - since
        finally:
            hangs_up.stop()

    assert min(took_s() for _ in range(5)) < 0.5
