"""What a server registers in Consul beside its name."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from lb.server import Server
from lb.server.registering import registering
from lb.testing import Agent
from tests.support.tls import self_signed

CONSUL = "http://127.0.0.1:8500"
OTHERS_CANNOT = "clients on other machines cannot connect to it"


async def test_the_check_of_a_server_with_tls_uses_tls(agent: Agent) -> None:
    """Unless the registration says otherwise. (The embedded agent refuses a check over TLS, and so tells it.)"""
    pair = self_signed("localhost")
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
    settings: dict[str, Any] = {"consul": agent.address}
    async with Server("test", register=settings, credentials=credentials, drain_wait_s=0) as server:
        with pytest.raises(ValueError, match="does no gRPC check over TLS"):
            await server.start()
    for more, keys in (({"check_tls": False}, credentials), ({}, None)):
        async with Server("test", register=settings | more, credentials=keys, drain_wait_s=0) as server:
            await server.start()
    async with Server("test", register=settings | {"check_tls": True}, drain_wait_s=0) as server:
        with pytest.raises(ValueError, match="does no gRPC check over TLS"):
            await server.start()


@pytest.mark.parametrize(
    ("settings", "bound", "found", "warns"),
    [
        ({}, "0.0.0.0:7", "127.0.0.1:7", True),
        ({}, "[::]:7", "127.0.0.1:7", True),
        ({}, "127.0.0.1:7", "127.0.0.1:7", False),
        ({"address": "auto"}, "0.0.0.0:7", "127.0.0.1:7", False),
        ({"address": "127.0.0.1"}, "0.0.0.0:7", "127.0.0.1:7", False),
        ({"address": "catalog.local"}, "0.0.0.0:7", "catalog.local:7", False),
    ],
)
async def test_an_address_of_this_machine_alone(
    settings: dict[str, Any], bound: str, found: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Who listens for other machines, and leaves the address to us, is told that they cannot connect to it."""
    registers = registering({"consul": CONSUL, **settings}, health=True, tls=False)
    assert registers is not None
    assert await registers.address(bound) == found
    told = [line for line in caplog.messages if OTHERS_CANNOT in line]
    assert len(told) == warns
    assert all(line.startswith(f"registered is {found}, ") for line in told)
