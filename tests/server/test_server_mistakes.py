"""What a server says that cannot be made, or cannot start: one clear message, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

from lb import sync
from lb.server import Admission, LoadReporter, LoadTrailers, Places, Server, StartError
from lb.testing import Agent
from tests.server.conftest import Service, call
from tests.support.wait import eventually

ALONE = """
import asyncio, sys
from importlib.abc import MetaPathFinder

ALLOWED = {"lb", "grpc", "tenacity", "opentelemetry", "typing_extensions", "importlib_metadata", "zipp"}

class Alone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in ALLOWED and first not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {first!r}", name=first)

sys.meta_path.insert(0, Alone())
import grpc
import lb.server

async def echo(request, context):
    return request

async def main():
    for more in ({"health": True}, {"reflection": True}, {"register": True}):
        try:
            lb.server.Server("test", **more)
        except ImportError as error:
            print(error)
    async with lb.server.Server("test") as server:
        handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            print(await channel.unary_unary("/test.Service/Echo")(b"x"))

asyncio.run(main())
"""

IMPORTED = """
import sys
import grpc.aio
before = set(sys.modules)
import lb.server
late = ("grpc_health", "grpc_reflection", "google.protobuf", "aiohttp", "consul", "opentelemetry", "lb.aio._consul")
print([name for name in set(sys.modules) - before if name.startswith(late)])
"""


async def run(program: str) -> str:
    """What a Python program prints."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(child.communicate(), 90)
    assert child.returncode == 0, errors.decode()
    return output.decode()


async def test_what_is_missing_is_named() -> None:
    """With grpcio alone a server serves; what needs the extra says so in a sentence."""
    assert (await run(ALONE)).splitlines() == [
        "health=True needs grpc_health, which is missing; install lb-mesh with its extra `server`",
        "reflection=True needs grpc_reflection, which is missing; install lb-mesh with its extra `server`",
        "register needs Consul's client (aiohttp is missing); install lb-mesh with its extra `consul`",
        "b'x'",
    ]


async def test_an_import_imports_little() -> None:
    """What not every server needs is imported by the server that needs it."""
    assert await run(IMPORTED) == "[]\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "name is 'a/b'; expected a name without blanks and slashes"),
        ({"name": ""}, "name is ''; expected a name without blanks and slashes"),
        ({"listen": "50051"}, "listen='50051': no port in '50051'; expected host:port"),
        ({"listen": "127.0.0.1:http"}, "listen='127.0.0.1:http': port is 'http'; expected a number from 0 to 65535"),
        ({"listen": 50051}, "listen is 50051; expected host:port"),
        (
            {"listen": "unix:/run/x"},
            "listen='unix:/run/x': is a socket; expected host:port, or None with add_insecure_",
        ),
        ({"drain_s": -1}, "drain_s is -1; expected seconds >= 0"),
        ({"drain_s": 5, "drain_wait_s": 5}, "drain_wait_s is 5; expected seconds below drain_s (5), or 0"),
        ({"drain_s": 0.5}, "drain_wait_s is 1; expected seconds below drain_s (0.5), or 0"),
        ({"limits": True}, "limits is True; expected a Limits, False or None"),
        ({"register": "yes"}, "register is 'yes'; expected True, False or a mapping"),
        ({"register": {"wieght": 2}}, "register has 'wieght'; expected one of address, id, weight, "),
        ({"register": True, "health": False}, "register needs the health service, which Consul asks; "),
        ({"register": {"weight": 70_000}}, "register: weight is 70000; expected a whole number from 0 to 65535"),
        ({"register": {"zone": 5}}, "register: zone is 5; expected a string"),
        ({"register": {"address": 5}}, "register: address is 5; expected a string"),
        ({"checks": ["database"]}, "checks is ['database']; expected functions by name"),
        ({"checks": {"database": None}}, "checks['database'] is None; expected a function"),
        ({"credentials": "tls"}, "credentials is 'tls'; expected grpc.ServerCredentials or None"),
        ({"load": 0.5}, "load is 0.5; expected a LoadReporter or None"),
        ({"health": "no"}, "health is 'no'; expected True, False or None"),
        ({"reflection": 1}, "reflection is 1; expected True, False or None"),
        ({"interceptors": [sync.incoming()]}, "interceptors has <"),
        ({"inner": 5}, "inner is 5; expected a sequence of grpc.aio.ServerInterceptor"),
        ({"options": {"grpc.so_reuseport": 1}}, "options is {'grpc.so_reuseport': 1}; expected a sequence of (name, "),
        ({"options": None}, "options is None; expected a sequence, which may be empty"),
        ({"interceptors": None}, "interceptors is None; expected a sequence, which may be empty"),
        ({"inner": None}, "inner is None; expected a sequence, which may be empty"),
        ({"trailers": None}, "trailers is None; expected a sequence, which may be empty"),
        ({"counts": "all"}, "counts is 'all'; expected a function or None"),
        ({"trailers": [("instance", 7)]}, "trailers has ('instance', 7); expected a string, and a string or bytes"),
        ({"trailers": [("Instance", "7")]}, "trailers has ('Instance', '7'), which gRPC cannot send as metadata"),
    ],
)
async def test_a_wrong_argument(settings: dict[str, Any], message: str) -> None:
    """It is told when the server is made, with its name, its value and what is expected."""
    with pytest.raises((ValueError, TypeError, ImportError)) as caught:
        Server(**{"name": "test", **settings})
    assert str(caught.value).startswith(message)


async def test_a_wrong_callback() -> None:
    """It is told when it is given, and not when the server ends."""
    with pytest.raises(TypeError, match=r"^callback is 5; expected a function$"):
        Server("test").on_close(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Admission, Places])
def test_wrong_limits(kind: Any) -> None:
    """A piece on its own says so, too."""
    with pytest.raises(TypeError, match=r"^limits is 5; expected a Limits or None$"):
        kind(5)


def test_wrong_reports() -> None:
    """What would break each call is told at once."""
    with pytest.raises(TypeError, match=r"^LoadTrailers\.reporter is None; expected a LoadReporter$"):
        LoadTrailers(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^LoadReporter\.application is 1; expected a function or None$"):
        LoadReporter(application=1)  # type: ignore[arg-type]


def test_a_server_without_a_loop() -> None:
    """It is made where it runs: grpcio would take a loop in which nothing ever runs."""
    with pytest.raises(RuntimeError, match="made in a running event loop"):
        Server("test")


async def test_a_plain_check_in_a_loop() -> None:
    """It might block the loop, so it is not taken for a check that passes; the server is not ready, and says why."""
    async with Server("test", checks={"database": lambda: None}) as server:  # type: ignore[dict-item, return-value]
        starting = asyncio.create_task(server.start())
        await eventually(lambda: "plain function" in server.unhealthy["database"])
        starting.cancel()


async def test_a_registration_without_a_port(agent: Agent) -> None:
    """A server that listens nowhere cannot be registered."""
    async with Server("test", listen=None, register={"consul": agent.address}) as server:
        with pytest.raises(StartError, match=r"^listen=None: what is registered needs a port"):
            await server.start()


@pytest.mark.parametrize("register", [True, False])
async def test_a_taken_port(agent: Agent, register: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it cannot listen there; the server is closed, and nothing was registered."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Server("test", listen=listen, register=register)
        with pytest.raises(StartError) as caught:
            await server.serve(signals=[])
    assert str(caught.value) == f"listen='{listen}': cannot listen there: Address already in use"
    assert caught.value.__context__ is None  # one message, not two behind each other
    assert server.state == "ended"


async def test_two_servers_never_share_a_port() -> None:
    """The second one says that it is taken."""
    async with Server("test") as first:
        await first.start()
        with pytest.raises(StartError, match="Address already in use"):
            await Server("test", listen=first.address).start()


async def test_a_host_of_others() -> None:
    """An address that is not this machine's."""
    with pytest.raises(StartError, match=r"^listen='192\.0\.2\.1:0': cannot listen there: Cannot assign"):
        await Server("test", listen="192.0.2.1:0").start()


async def test_an_address_that_nobody_can_connect_to() -> None:
    """A server on all addresses that is told to register just that."""
    async with Server("test", listen="0.0.0.0:0", register={"address": ""}) as server:
        with pytest.raises(StartError, match=r"^address='': clients cannot connect to 0\.0\.0\.0:\d+; expected host"):
            await server.start()


async def test_a_server_that_never_starts() -> None:
    """Its ports are closed with it."""
    async with Server("test", listen=None) as server:
        server.add_insecure_port("127.0.0.1:0")


async def test_a_server_on_all_addresses(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """It registers the one from which Consul is reached, and says so if that is of this machine alone."""
    async with Server("test", listen="0.0.0.0:0", register={"consul": agent.address}) as server:
        Service().add(server)
        await server.start()
        assert server.address == f"127.0.0.1:{server.port}"
        assert "clients on other machines cannot connect to it" in caplog.text


async def test_consul_is_away() -> None:
    """The server serves all the same: it registers as soon as Consul answers."""
    import grpc

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
    async with Server("test", register={"consul": away}, drain_wait_s=0) as server:
        Service().add(server)
        await asyncio.wait_for(server.start(), 60)
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await call(channel, "Echo") == b"x"
        await asyncio.wait_for(server.stop(10), 60)


async def test_a_refused_registration(agent: Agent) -> None:
    """An address that cannot be registered ends the start, and closes the server."""
    server = Server("test", register={"consul": agent.address, "address": "0.0.0.0"})
    with pytest.raises(ValueError, match="expected host:port at which clients can connect"):
        await server.serve(signals=[])
    assert server.state == "ended"
