"""HTTP CONNECT proxies of the environment: which names go through one, as with grpcio (gRFC A1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lb.core.proxy import proxied
from lb.testing import Backend
from tests.aio.kit import HANGS_S, UU
from tests.shells.kit import Shell, connected, port_of
from tests.support.connect import ConnectProxy
from tests.support.names import Names
from tests.support.tls import self_signed

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
PROXY = "PROXY"
"""Stands for the proxy's URL."""
GRPCIO = tuple(int(part) for part in grpc.__version__.split(".")[:2])
NEWER_RULE = ("host", ".localhost", " ")
"""Values of ``no_proxy`` that mean something else since 1.84."""


@pytest.fixture(autouse=True)
def without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def proxy() -> AsyncIterator[ConnectProxy]:
    """A proxy that knows no name yet."""
    async with ConnectProxy({}) as found:
        yield found


CASES: list[tuple[dict[str, str], list[tuple[str, Any]], bool]] = [
    ({}, [], False),
    ({"http_proxy": PROXY}, [], True),
    ({"https_proxy": PROXY}, [], True),
    ({"grpc_proxy": PROXY}, [], True),
    ({"HTTP_PROXY": PROXY}, [], False),
    ({"grpc_proxy": "", "http_proxy": PROXY}, [], False),
    ({"http_proxy": "socks5://127.0.0.1:1", "https_proxy": PROXY}, [], True),
    ({"http_proxy": "socks5://127.0.0.1:1"}, [], False),
    ({"http_proxy": "nonsense"}, [], False),
    ({"https_proxy": "https://127.0.0.1:1"}, [], False),
    ({"http_proxy": PROXY, "no_proxy": "localhost"}, [], False),
    ({"http_proxy": PROXY, "no_proxy": "LocalHost"}, [], False),
    ({"http_proxy": PROXY, "no_proxy": "a.example, localhost ,b.example"}, [], False),
    ({"http_proxy": PROXY, "no_proxy": "host"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": ".localhost"}, [], False),
    ({"http_proxy": PROXY, "no_proxy": "..localhost,*.localhost,localhost."}, [], True),
    ({"http_proxy": PROXY, "no_proxy": " "}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "*"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": ""}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "a.example,,b.example"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "127.0.0.1,::1"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "127.0.0.0/8"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "localhost", "no_grpc_proxy": "a.example"}, [], True),
    ({"http_proxy": PROXY, "no_proxy": "a.example", "no_grpc_proxy": "localhost"}, [], False),
    ({}, [("grpc.http_proxy", PROXY)], True),
    ({"http_proxy": PROXY}, [("grpc.enable_http_proxy", 0)], False),
    ({"http_proxy": PROXY}, [("grpc.enable_http_proxy", 1)], True),
    ({"http_proxy": PROXY, "no_proxy": "localhost"}, [("grpc.enable_http_proxy", 1)], False),
    ({"http_proxy": "nonsense"}, [("grpc.http_proxy", PROXY)], True),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
async def test_what_goes_through_a_proxy_is_what_grpcio_sends_there(
    shell: Shell, backend: Backend, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, case: int
) -> None:
    """By the environment, ``no_proxy`` and the channel's options; a call gets through either way."""
    environment, options, expected = CASES[case]
    host = f"localhost:{port_of(backend)}"
    proxy.known[host] = backend.address
    for name, value in environment.items():
        monkeypatch.setenv(name, proxy.url if value == PROXY else value)
    given = [(name, proxy.url if value == PROXY else value) for name, value in options]
    async with grpc.aio.insecure_channel(host, options=given) as channel:
        assert await UU.run(channel, timeout=HANGS_S) == UU.echo()
    if environment.get("no_proxy") not in NEWER_RULE or GRPCIO >= (1, 84):
        assert proxy.asked == [host] * expected
    proxy.asked = []
    async with shell.open(host, options=given) as channel:
        await shell.call(channel)
    if expected and GRPCIO >= (1, 84):
        assert set(proxy.asked) == {host}
    elif not expected:
        assert proxy.asked == []


async def test_a_name_that_only_the_proxy_knows(
    shell: Shell, backend: Backend, proxy: ConnectProxy, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not looked up; it is one endpoint, and the proxy is sent the name and the user's credentials for it."""
    names.known["hidden.test"] = []
    host = f"hidden.test:{port_of(backend)}"
    proxy.known[host] = backend.address
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:secret@"))
    async with shell.open(f"dns:///{host}", policy="least_request") as channel:
        await shell.call(channel, 3)
        assert [endpoint.address for endpoint in channel.snapshot().endpoints] == [f"dns:///{host}"]
    assert set(proxy.asked) == {host}
    assert "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.headers
    assert names.asked == []


async def test_tls_through_a_proxy(shell: Shell, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is for the target's name."""
    certificate = self_signed("hidden.test")
    monkeypatch.setenv("https_proxy", proxy.url)
    server = grpc.ssl_server_credentials([(certificate.key, certificate.certificate)])
    trust = grpc.ssl_channel_credentials(certificate.certificate)
    async with Backend(credentials=server) as backend:
        host = f"hidden.test:{port_of(backend)}"
        proxy.known[host] = backend.address
        async with shell.open(host, credentials=trust) as channel:
            await shell.call(channel)


@pytest.mark.parametrize("form", ["{}", "dns:///{}"])
async def test_no_proxy_by_name_holds_for_the_addresses(
    shell: Shell, shop: list[Backend], proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The name is exempt, so its addresses are dialled directly, though no address is exempt; and are balanced."""
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", ".test")
    async with shell.open(form.format(f"shop.test:{port_of(shop[0])}"), policy="round_robin") as channel:
        await shell.call(channel)
        await connected(channel, 3)
    assert proxy.asked == []


@pytest.mark.parametrize("form", ["{}", "ipv4:{}", "static:///{}"])
@pytest.mark.parametrize(("exempt", "direct"), [("127.0.0.0/8", True), ("127.0.0.1", True), ("10.0.0.0/8", False)])
async def test_literal_addresses(
    shell: Shell,
    backend: Backend,
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    exempt: str,
    direct: bool,
) -> None:
    """Are grpcio's to decide, by address and by network."""
    proxy.known[backend.address] = backend.address
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", exempt)
    async with shell.open(form.format(backend.address)) as channel:
        await shell.call(channel)
    assert set(proxy.asked) == (set() if direct else {backend.address})


async def test_a_name_in_a_list_of_addresses(
    shell: Shell, backend: Backend, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``static:`` may name hosts: each goes its own way by its name."""
    host = f"hidden.test:{port_of(backend)}"
    proxy.known[host] = backend.address
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "localhost")
    async with shell.open(f"static:///{host},localhost:{port_of(backend)}") as channel:
        await shell.call(channel)
        await connected(channel, 2)
    assert set(proxy.asked) == {host}


def test_a_proxy_given_as_bytes() -> None:
    """Core takes text as bytes, too."""
    assert proxied("shop", [("grpc.http_proxy", b"http://127.0.0.1:1")], {})
    assert not proxied("shop", [("grpc.http_proxy", b"\xff")], {})


def test_nonsense_is_no_proxy() -> None:
    """What is no URL at all."""
    assert not proxied("shop", [], {"http_proxy": "http://[::1"})
