"""Names as targets: what gRPC says of them holds for channels of asyncio and of threads."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import Any

import grpc
import pytest

import lb
import lb.sync
from lb.testing import Backend
from tests.aio.kit import HANGS_S, IDEMPOTENT, Told, endpoints
from tests.shells.kit import Shell, connected, port_of
from tests.support.names import Names
from tests.support.tls import self_signed
from tests.support.wait import until
from tests.sync import kit as sync_kit

FORMS = ("{}", "dns:{}", "dns:///{}")


# ---- what a name means ----


@pytest.mark.parametrize("form", FORMS)
async def test_the_addresses_of_a_name_are_balanced(shell: Shell, shop: list[Backend], form: str) -> None:
    """With or without a scheme: each address is an endpoint, and the policy spreads the calls."""
    target = form.format(f"shop.test:{port_of(shop[0])}")
    async with shell.open(target, policy="round_robin") as channel:
        await shell.call(channel)
        await connected(channel, 3)
        for backend in shop:
            backend.received.clear()
        await shell.call(channel, 9)
        assert [len(backend.received) for backend in shop] == [3, 3, 3]


@pytest.mark.parametrize("form", FORMS)
async def test_a_name_obeys_its_policy(shell: Shell, shop: list[Backend], form: str) -> None:
    """Another policy, another choice: one endpoint has all calls."""
    async with shell.open(form.format(f"shop.test:{port_of(shop[0])}"), policy="pick_first") as channel:
        await shell.call(channel)
        await connected(channel, 3)
        for backend in shop:
            backend.received.clear()
        await shell.call(channel, 6)
        assert sorted(len(backend.received) for backend in shop) == [0, 0, 6]


async def test_an_address_list_obeys_its_policy(shell: Shell, shop: list[Backend]) -> None:
    """``ipv4:`` with several addresses is as many endpoints."""
    target = "ipv4:" + ",".join(backend.address for backend in shop)
    async with shell.open(target, policy="round_robin") as channel:
        await shell.call(channel)
        await connected(channel, 3)
        for backend in shop:
            backend.received.clear()
        await shell.call(channel, 6)
        assert [len(backend.received) for backend in shop] == [2, 2, 2]


@pytest.mark.parametrize("form", FORMS)
async def test_a_literal_address_is_one_endpoint(shell: Shell, backend: Backend, names: Names, form: str) -> None:
    """Nothing is looked up."""
    names.known["127.0.0.1"] = []
    async with shell.open(form.format(backend.address)) as channel:
        await shell.call(channel)
        assert [endpoint.address for endpoint in channel.snapshot().endpoints] == [backend.address]
    assert names.asked == []


@pytest.mark.parametrize("form", FORMS)
async def test_a_dead_address_of_localhost(shell: Shell, backend: Backend, names: Names, form: str) -> None:
    """The server listens on one of ::1 and 127.0.0.1: no call fails, and none waits once it is connected."""
    names.known["localhost"] = ["::1", "127.0.0.1"]
    async with shell.open(form.format(f"localhost:{port_of(backend)}"), breaker=lb.Breaker()) as channel:
        await shell.call(channel, 20)
        picks = {endpoint.address: endpoint.picks for endpoint in channel.snapshot().endpoints}
        assert picks == {f"[::1]:{port_of(backend)}": 0, backend.address: 20}


async def test_a_unix_socket(shell: Shell, tmp_path: Any) -> None:
    """It is one endpoint."""
    server = grpc.aio.server()
    address = f"unix:{tmp_path}/echo.sock"
    server.add_insecure_port(address)
    handler: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lb.testing.Echo", {"UnaryUnary": handler}),))
    await server.start()
    async with shell.open(address, policy="least_request") as channel:
        await shell.call(channel)
        assert [endpoint.address for endpoint in channel.snapshot().endpoints] == [address]
    await server.stop(None)


async def _echo(request: bytes, context: Any) -> bytes:
    return request


@pytest.mark.parametrize("form", ["localhost:{}", "dns:localhost:{}", "dns:///LOCALHOST:{}", "127.0.0.1:{}"])
def test_the_authority_is_grpcios(form: str) -> None:
    """``:authority`` is the name as written, and not the address that was found."""
    seen: list[str] = []
    server = sync_kit.Server()
    server.always = lambda context: seen.append(sync_kit.authority_of(context))
    target = form.format(server.port)
    for make in (grpc.insecure_channel, lb.sync.channel):
        with make(target) as channel:
            sync_kit.UU.run(channel, timeout=HANGS_S)
    server.stop()
    assert seen[0] == seen[1] == target.rpartition("dns:")[2].removeprefix("///")


@pytest.mark.parametrize("form", ["localhost:{}", "127.0.0.1:{}"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "options",
    [
        {"grpc.ssl_target_name_override": "catalog"},
        {"grpc.default_authority": "catalog"},
        {"grpc.ssl_target_name_override": "catalog", "grpc.default_authority": "a.catalog"},
    ],
    ids=lambda options: "+".join(options),
)
def test_the_authority_of_an_option_is_grpcios(form: str, secure: bool, options: dict[str, str]) -> None:
    """Options that name the server otherwise have grpcio's effect, whatever the target is."""
    seen: list[str] = []
    certificate = self_signed("catalog")
    server = sync_kit.Server(
        credentials=grpc.ssl_server_credentials([(certificate.key, certificate.certificate)]) if secure else None
    )
    server.always = lambda context: seen.append(sync_kit.authority_of(context))
    target, given = form.format(server.port), list(options.items())
    trust = grpc.ssl_channel_credentials(certificate.certificate)
    theirs = grpc.secure_channel(target, trust, given) if secure else grpc.insecure_channel(target, given)
    ours = lb.sync.channel(target, credentials=trust if secure else None, options=given)
    for channel in (theirs, ours):
        with channel:
            sync_kit.UU.run(channel, timeout=HANGS_S)
    server.stop()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("form", FORMS)
async def test_the_tls_name_is_the_targets(shell: Shell, names: Names, form: str) -> None:
    """Dialled by address, the certificate is for the name."""
    certificate = self_signed("shop.test")
    names.known["shop.test"] = ["127.0.0.1"]
    server = grpc.ssl_server_credentials([(certificate.key, certificate.certificate)])
    trust = grpc.ssl_channel_credentials(certificate.certificate)
    async with Backend(credentials=server) as backend:
        target = form.format(f"shop.test:{port_of(backend)}")
        async with shell.open(target, credentials=trust) as channel:
            await shell.call(channel)


async def test_a_name_that_does_not_exist(shell: Shell, names: Names) -> None:
    """A call fails at once, and says so."""
    names.known["shop.test"] = []
    async with shell.open("shop.test:1") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            await shell.call(channel, timeout=HANGS_S)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "shop.test: Name or service not known" in str(error.details())


# ---- looking it up again ----


@pytest.mark.parametrize("form", FORMS)
async def test_a_replaced_server_is_found_at_once(shell: Shell, shop: list[Backend], names: Names, form: str) -> None:
    """A lost connection is a reason to look again; the next lookup would be due in an hour."""
    first, second, _ = shop
    names.known["shop.test"] = ["127.0.0.1"]
    target = form.format(f"shop.test:{port_of(first)}?interval=3600")
    async with shell.open(target, retry=IDEMPOTENT) as channel:
        await shell.call(channel)
        names.known["shop.test"] = ["127.0.0.2"]
        await first.stop()
        await shell.call(channel, 5, wait_for_ready=True)
        assert len(second.received) == 5
        assert [endpoint.address for endpoint in channel.snapshot().endpoints] == [second.address]


async def test_a_server_that_appears_later(shell: Shell, shop: list[Backend], names: Names) -> None:
    """Connecting fails, and DNS is right a moment after: it is asked again, though no connection was ever lost."""

    async def asked_twice() -> bool:
        return len(names.asked) >= 2

    names.known["shop.test"] = ["127.0.0.9"]
    target = f"shop.test:{port_of(shop[0])}?interval=3600"
    async with shell.open(target) as channel:
        calling = asyncio.ensure_future(shell.call(channel, wait_for_ready=True))
        await until(asked_twice, within_s=HANGS_S, what="a second lookup")
        names.known["shop.test"] = ["127.0.0.2"]
        await calling
    assert len(shop[1].received) == 1


async def test_a_replacement_that_says_nothing(shell: Shell, shop: list[Backend], names: Names) -> None:
    """Connecting to it neither succeeds nor fails for a long time: meanwhile the name is looked up again."""
    first, second, _ = shop
    names.known["shop.test"] = ["127.0.0.1"]
    with socket.create_server(("127.0.0.4", int(port_of(first)))):  # it never answers
        async with shell.open(f"shop.test:{port_of(first)}?interval=3600", retry=IDEMPOTENT) as channel:
            await shell.call(channel)
            names.known["shop.test"] = ["127.0.0.4"]
            asked = len(names.asked)
            await first.stop()

            async def asked_again() -> bool:
                return len(names.asked) >= asked + 2

            # Not after the time that connecting may take (20 s): then it has failed.
            await until(asked_again, within_s=15, what="a second lookup")
            names.known["shop.test"] = ["127.0.0.2"]
            await shell.call(channel, wait_for_ready=True)
            assert len(second.received) == 1


class Asked(Told):
    """A resolver of the test's own that counts how often it is asked to look again."""

    def __init__(self, *known: lb.Endpoint) -> None:
        super().__init__(*known)
        self.asked = 0

    def resolve_now(self) -> Any:
        """Count it."""
        self.asked += 1


async def test_a_resolver_of_ones_own_is_asked_again(shell: Shell, fleet: Any) -> None:
    """When a connection is lost, and when the next one fails, in the channel's loop."""
    first, second = await fleet(2)
    resolver = Asked(*endpoints(first))
    async with shell.open(resolver, retry=IDEMPOTENT) as channel:
        await shell.call(channel, 3)
        assert resolver.asked == 0
        await first.stop()

        async def asked() -> bool:
            return resolver.asked >= 2

        await until(asked, within_s=HANGS_S, what="being asked for the loss and for the failure")
        resolver.say(*endpoints(second))
        await shell.call(channel, wait_for_ready=True)


class Raising(Asked):
    """It can not look again."""

    def resolve_now(self) -> Any:
        """Fail."""
        super().resolve_now()
        raise KeyError("no source")


class Waiting(Asked):
    """It takes itself for a coroutine function."""

    async def resolve_now(self) -> Any:
        """Never runs."""


@pytest.mark.parametrize("kind", [Raising, Waiting])
async def test_a_resolver_that_cannot_look_again(
    shell: Shell, backend: Backend, caplog: pytest.LogCaptureFixture, kind: type[Asked]
) -> None:
    """That is in the log, and the channel goes on."""
    async with shell.open(kind(*endpoints(backend)), retry=IDEMPOTENT) as channel:
        await shell.call(channel)
        with caplog.at_level(logging.ERROR, "lb.channel"):
            await backend.stop()

            async def logged() -> bool:
                return any("told: the resolver's resolve_now() raised" in r.getMessage() for r in caplog.records)

            await until(logged, within_s=HANGS_S, what="a word in the log")
        await backend.start()
        await shell.call(channel, wait_for_ready=True)


# ---- what is no target ----


@pytest.mark.parametrize("make", [lb.aio.channel, lb.sync.channel], ids=["aio", "sync"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "target is ''"),
        (" shop:1", "Did you mean 'shop:1'?"),
        ("http://shop:1", "Did you mean 'dns:///shop:1'?"),
        ("dns://shop:1", "Did you mean 'dns:///shop:1'?"),
        ("consull:///shop", "Did you mean 'consul:///shop'?"),
        (b"http://shop:1", "Did you mean 'dns:///shop:1'?"),
        (b"\xff:1", "host is '\\\\xff'"),
    ],
)
def test_what_is_no_target_is_an_error_at_once(make: Any, text: Any, says: str) -> None:
    """Not at the first call."""
    with pytest.raises(ValueError, match="target") as raised:
        make(text)
    assert says in str(raised.value)


async def test_shares_of_a_name_with_one_address(shell: Shell, backend: Backend, names: Names) -> None:
    """The common case: one address, one endpoint, under the address."""
    names.known["shop.test"] = ["127.0.0.1"]
    async with shell.open(f"shop.test:{port_of(backend)}") as channel:
        await shell.call(channel, 4)
        assert Counter({e.address: e.picks for e in channel.snapshot().endpoints}) == Counter({backend.address: 4})
