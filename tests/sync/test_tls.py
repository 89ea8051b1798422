"""TLS, call credentials and traces, as the server sees them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.support.tls import Certificate, NoToken, catalog
from tests.sync.kit import Kind, Server, channel_to, failure, ready

__all__ = ["catalog"]

Code = grpc.StatusCode
NAME = (("grpc.ssl_target_name_override", "catalog"),)


@pytest.fixture
def secure(catalog: Certificate) -> Iterator[Server]:
    """A server that shows it."""
    server = Server(credentials=grpc.ssl_server_credentials([(catalog.key, catalog.certificate)]))
    yield server
    server.stop()


class Token(grpc.AuthMetadataPlugin):
    """Call credentials of an application's own."""

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """As grpcio asks for it."""
        callback((("x-token", "secret"),), None)


@pytest.mark.leaks("grpcio asks the plugin in threads of its core, which stay known to Python as dummies")
def test_call_credentials_reach_the_server(secure: Server, catalog: Certificate, kind: Kind) -> None:
    """Credentials of the channel and of a call, of every kind, blocking or not."""
    credentials = grpc.ssl_channel_credentials(catalog.certificate)
    with channel_to(secure, credentials=credentials, options=NAME) as channel:
        ready(channel, 1)
        token = grpc.metadata_call_credentials(Token())
        assert kind.run(channel, credentials=token) == kind.echo()
        assert kind.finish(kind.start(channel, credentials=token)) == kind.echo()
        assert kind.run(channel) == kind.echo()
        assert [received.metadata.get("x-token") for received in secure.received] == ["secret", "secret", None]


@pytest.mark.leaks("grpcio asks the plugin in threads of its core, which stay known to Python as dummies")
def test_failing_call_credentials_blame_no_endpoint(secure: Server, catalog: Certificate, kind: Kind) -> None:
    """Who has no token fails, blocking or not, and opens no breaker for others."""
    credentials = grpc.ssl_channel_credentials(catalog.certificate)
    with channel_to(secure, credentials=credentials, options=NAME) as channel:
        ready(channel, 1)
        none = grpc.metadata_call_credentials(NoToken())
        for _ in range(4):
            assert failure(lambda: kind.run(channel, credentials=none)).code() is Code.UNAVAILABLE
            assert failure(lambda: kind.finish(kind.start(channel, credentials=none))).code() is Code.UNAVAILABLE
        assert kind.run(channel) == kind.echo()
        endpoint = channel.snapshot().endpoints[0]
        assert (endpoint.breaker, endpoint.last_error) == ("CLOSED", "")
