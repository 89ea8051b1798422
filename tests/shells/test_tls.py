"""TLS: the certificate is the service's, whatever address its instances have."""

from __future__ import annotations

import asyncio

import grpc
import pytest

import lb
from lb.testing import Agent, Backend
from tests.aio.kit import HANGS_S, Kind, target
from tests.shells.kit import Shell
from tests.support.tls import catalog, credentials, secure, self_signed

__all__ = ["catalog", "credentials", "secure"]

Trust = grpc.ChannelCredentials


async def test_the_service_name_is_the_tls_name(
    shell: Shell, secure: Backend, credentials: Trust, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """``consul:///catalog``: dialled by IP, checked against ``catalog``; also sent as ``:authority``."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        async with (
            lb.aio.registration("catalog", address=secure.address, check=None),
            shell.open("consul:///catalog", credentials=credentials) as channel,
        ):
            await shell.call(channel, kind=kind.name)


async def test_a_wrong_name_fails_with_a_clear_error(
    shell: Shell, secure: Backend, credentials: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNAVAILABLE that says which name was not in the certificate."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        async with (
            lb.aio.registration("inventory", address=secure.address, check=None),
            shell.open("consul:///inventory", credentials=credentials) as channel,
        ):
            error = await shell.failure(channel, timeout=HANGS_S)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "inventory" in str(error.details())
    # Core says it in one way or the other, by its release.
    assert "Hostname Verification" in str(error.details()) or "Peer name inventory is not in" in str(error.details())
    assert secure.received == []


async def test_a_static_endpoint_stands_for_itself(shell: Shell, secure: Backend, credentials: Trust) -> None:
    """Its address is what the certificate must name."""
    async with shell.open(target(secure), credentials=credentials) as channel:
        error = await shell.failure(channel, timeout=HANGS_S)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" in str(error.details())


@pytest.mark.parametrize("option", ["grpc.default_authority", "grpc.ssl_target_name_override"])
async def test_an_option_overrides_the_name(shell: Shell, secure: Backend, credentials: Trust, option: str) -> None:
    """As in grpcio."""
    async with shell.open(target(secure), credentials=credentials, options=[(option, "catalog")]) as channel:
        await shell.call(channel)


@pytest.mark.parametrize("option", ["grpc.default_authority", "grpc.ssl_target_name_override"])
async def test_an_option_overrides_the_service_name(
    shell: Shell, secure: Backend, credentials: Trust, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Also where the target would give one."""
    async with Agent() as agent:
        monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.url)
        options = [(option, "catalog")]
        async with (
            lb.aio.registration("inventory", address=secure.address, check=None),
            shell.open("consul:///inventory", credentials=credentials, options=options) as channel,
        ):
            await shell.call(channel)


async def test_a_stranger_is_not_trusted(shell: Shell, secure: Backend) -> None:
    """Another root: UNAVAILABLE with what the handshake said, not a hang."""
    credentials = grpc.ssl_channel_credentials(self_signed("catalog").certificate)
    options = [("grpc.default_authority", "catalog")]
    async with shell.open(target(secure), credentials=credentials, options=options) as channel:
        async with asyncio.timeout(HANGS_S):
            error = await shell.failure(channel)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in str(error.details())


async def test_plain_text_to_a_tls_port_fails(shell: Shell, secure: Backend) -> None:
    """With an error, not a hang."""
    async with shell.open(target(secure)) as channel:
        async with asyncio.timeout(HANGS_S):
            assert (await shell.failure(channel)).code() is grpc.StatusCode.UNAVAILABLE


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
    shell: Shell,
    secure: Backend,
    credentials: Trust,
    options: tuple[tuple[str, str], ...],
    expected: str,
) -> None:
    """And who set it."""
    async with shell.open(target(secure), credentials=credentials, options=options) as channel:
        assert expected in str((await shell.failure(channel, timeout=HANGS_S)).details())


async def test_an_untrusted_certificate_is_told(shell: Shell, secure: Backend) -> None:
    """It is the credentials that do not trust it."""
    other = grpc.ssl_channel_credentials(self_signed("other").certificate)
    async with shell.open(target(secure), credentials=other, options=[("grpc.default_authority", "catalog")]) as c:
        said = str((await shell.failure(c, timeout=HANGS_S)).details())
    assert "not signed by a root that the credentials trust: " in said


async def test_plain_text_against_tls_is_told(shell: Shell, secure: Backend, credentials: Trust) -> None:
    """Both ways round."""
    async with shell.open(target(secure)) as channel:
        said = str((await shell.failure(channel, timeout=HANGS_S)).details())
        assert "If it uses TLS, pass credentials=: " in said
    async with Backend() as plain, shell.open(target(plain), credentials=credentials) as channel:
        assert "the server does not use TLS" in str((await shell.failure(channel, timeout=HANGS_S)).details())
