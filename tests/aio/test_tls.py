"""TLS: the certificate is the service's, whatever address its instances have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

import lb
from lb.testing import Agent, Backend
from lb.testing.backend import METHODS
from tests.aio.kit import HANGS_S, NO_BREAKER, UU, Kind, failure, target
from tests.support.tls import Certificate, NoToken, catalog, self_signed

__all__ = ["catalog"]


@pytest.fixture
def credentials(catalog: Certificate) -> grpc.ChannelCredentials:
    """Trust in that certificate."""
    return grpc.ssl_channel_credentials(catalog.certificate)


@pytest.fixture
async def secure(catalog: Certificate) -> AsyncIterator[Backend]:
    """A backend on 127.0.0.1 that shows it."""
    async with Backend(credentials=grpc.ssl_server_credentials([(catalog.key, catalog.certificate)])) as backend:
        yield backend


async def test_the_service_name_is_the_tls_name(
    secure: Backend, credentials: grpc.ChannelCredentials, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """``consul:///catalog``: dialled by IP, checked against ``catalog``; also sent as ``:authority``."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        async with (
            lb.aio.registration("catalog", address=secure.address, check=None),
            lb.aio.channel("consul:///catalog", credentials=credentials) as channel,
        ):
            assert await kind.run(channel, timeout=HANGS_S) == kind.echo()


async def test_a_wrong_name_fails_with_a_clear_error(
    secure: Backend, credentials: grpc.ChannelCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNAVAILABLE that says which name was not in the certificate."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        async with (
            lb.aio.registration("inventory", address=secure.address, check=None),
            lb.aio.channel("consul:///inventory", credentials=credentials, breaker=NO_BREAKER) as channel,
        ):
            error = await failure(UU.start(channel, timeout=HANGS_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "inventory" in str(error.details())
    # Core says it in one way or the other, by its release.
    assert "Hostname Verification" in str(error.details()) or "Peer name inventory is not in" in str(error.details())
    assert secure.received == []


async def test_a_static_endpoint_stands_for_itself(secure: Backend, credentials: grpc.ChannelCredentials) -> None:
    """Its address is what the certificate must name."""
    async with lb.aio.channel(target(secure), credentials=credentials) as channel:
        error = await failure(UU.start(channel, timeout=HANGS_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" in str(error.details())


@pytest.mark.parametrize("option", ["grpc.default_authority", "grpc.ssl_target_name_override"])
async def test_an_option_overrides_the_name(secure: Backend, credentials: grpc.ChannelCredentials, option: str) -> None:
    """As in grpcio."""
    async with lb.aio.channel(target(secure), credentials=credentials, options=[(option, "catalog")]) as channel:
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()


@pytest.mark.parametrize("option", ["grpc.default_authority", "grpc.ssl_target_name_override"])
async def test_an_option_overrides_the_service_name(
    secure: Backend, credentials: grpc.ChannelCredentials, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Also where the target would give one."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        options = [(option, "catalog")]
        async with (
            lb.aio.registration("inventory", address=secure.address, check=None),
            lb.aio.channel("consul:///inventory", credentials=credentials, options=options) as channel,
        ):
            assert await UU.run(channel, timeout=HANGS_S) == UU.echo()


async def test_a_stranger_is_not_trusted(secure: Backend) -> None:
    """Another root: UNAVAILABLE with what the handshake said, not a hang."""
    credentials = grpc.ssl_channel_credentials(self_signed("catalog").certificate)
    options = [("grpc.default_authority", "catalog")]
    async with lb.aio.channel(target(secure), credentials=credentials, options=options) as channel:
        async with asyncio.timeout(HANGS_S):
            error = await failure(UU.start(channel))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in str(error.details())


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


async def test_plain_text_to_a_tls_port_fails(secure: Backend) -> None:
    """With an error, not a hang."""
    async with lb.aio.channel(target(secure)) as channel:
        async with asyncio.timeout(HANGS_S):
            assert (await failure(UU.start(channel))).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            (),
            "the server's certificate is not valid for '127.0.0.1' (the target's host;"
            " the option grpc.ssl_target_name_override names another): ",
        ),
        (
            (("grpc.default_authority", "shop"),),
            "the server's certificate is not valid for 'shop' (the target's name,"
            " or what grpc.default_authority says): ",
        ),
        (
            (("grpc.default_authority", "catalog"), ("grpc.ssl_target_name_override", "shop")),
            "the server's certificate is not valid for 'shop' (as grpc.ssl_target_name_override says): ",
        ),
    ],
    ids=["host", "authority", "override"],
)
async def test_a_wrong_name_is_told_with_the_one_that_was_expected(
    secure: Backend, credentials: grpc.ChannelCredentials, options: tuple[tuple[str, str], ...], expected: str
) -> None:
    """And who set it."""
    async with lb.aio.channel(target(secure), credentials=credentials, options=options) as channel:
        assert expected in str((await failure(UU.start(channel, timeout=HANGS_S))).details())


async def test_an_untrusted_certificate_is_told(secure: Backend) -> None:
    """It is the credentials that do not trust it."""
    other = grpc.ssl_channel_credentials(self_signed("other").certificate)
    async with lb.aio.channel(target(secure), credentials=other, options=[("grpc.default_authority", "catalog")]) as c:
        said = str((await failure(UU.start(c, timeout=HANGS_S))).details())
    assert "not signed by a root that the credentials trust: " in said


async def test_plain_text_against_tls_is_told(secure: Backend, credentials: grpc.ChannelCredentials) -> None:
    """Both ways round."""
    async with lb.aio.channel(target(secure)) as channel:
        said = str((await failure(UU.start(channel, timeout=HANGS_S))).details())
        assert "If it uses TLS, pass credentials=: " in said
    async with Backend() as plain, lb.aio.channel(target(plain), credentials=credentials) as channel:
        assert "the server does not use TLS" in str((await failure(UU.start(channel, timeout=HANGS_S))).details())
