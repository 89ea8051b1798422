"""Call credentials over TLS. What TLS itself does is in tests/shells."""

from __future__ import annotations

import grpc
import pytest

import lb
from lb.testing import Backend
from lb.testing.backend import METHODS
from tests.aio.kit import HANGS_S, UU, Kind, failure, target
from tests.support.tls import NoToken, catalog, credentials, secure

__all__ = ["catalog", "credentials", "secure"]


async def test_call_credentials_reach_the_server(secure: Backend, credentials: grpc.ChannelCredentials) -> None:
    """On a secure channel, in every call that names them."""
    options = [("grpc.default_authority", "catalog")]
    async with lb.aio.channel(target(secure), credentials=credentials, options=options) as channel:
        await UU.run(channel, credentials=grpc.access_token_call_credentials("secret"), timeout=HANGS_S)
    assert secure.received[0].metadata["authorization"] == "Bearer secret"


class BadToken(grpc.AuthMetadataPlugin):
    """A plugin whose metadata can not be sent."""

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Give a key that is none."""
        callback((("Token\n", "x"),), None)


@pytest.mark.parametrize("plugin", [NoToken(), BadToken()], ids=["raises", "illegal"])
async def test_failing_call_credentials_blame_no_endpoint(
    secure: Backend, credentials: grpc.ChannelCredentials, plugin: grpc.AuthMetadataPlugin, kind: Kind
) -> None:
    """One caller without a token fails as on grpcio's channel, is not retried, and opens no breaker for others."""
    options = [("grpc.default_authority", "catalog")]
    retry = lb.Retry(idempotent=METHODS)
    async with lb.aio.channel(target(secure), credentials=credentials, options=options, retry=retry) as channel:
        for _ in range(10):
            call = kind.start(channel, credentials=grpc.metadata_call_credentials(plugin), timeout=HANGS_S)
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert len(lb.attempts(error)) == 1
        assert await kind.run(channel, timeout=HANGS_S) == kind.echo()
        endpoint = channel.snapshot().endpoints[0]
        assert (endpoint.breaker, endpoint.last_error) == ("CLOSED", "")
    assert len(secure.received) == 1
