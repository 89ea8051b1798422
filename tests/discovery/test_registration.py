"""Registration: what Consul knows of an instance, whatever happens to Consul."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from lb.aio import registration
from lb.aio.registration import Registration
from lb.testing import Agent
from lb.testing._listening import stop_accepting
from tests.discovery.conftest import Backend
from tests.support.consul import Embedded, Registry
from tests.support.wait import until


def register(registry: Registry, service: str, backend: Backend, **more: Any) -> Registration:
    """The registration that most tests use: quick checks, quick looks."""
    settings: dict[str, Any] = {"id": f"{service}-1", "check_interval_s": 0.1, "reassert_s": 0.1} | more
    return registration(service, address=backend.address, consul=registry.url, **settings)


async def status(registry: Registry, service: str, wanted: str, *, within_s: float = 30) -> None:
    """Waits until the instance's check has the status."""

    async def reached() -> bool:
        return await registry.status(service, f"{service}-1") == wanted

    await until(reached, within_s=within_s, what=f"{service}-1 is {wanted or 'gone'}", every_s=0.02)


async def weights(registry: Registry, service: str) -> dict[str, int]:
    """The weights in Consul."""
    (entry,) = await registry.health(service)
    found: dict[str, int] = entry["Service"]["Weights"]
    return found


async def test_registered_then_gone(registry: Registry, service: str, backend: Backend) -> None:
    """All that was given stands in Consul, critical until the check passed; afterwards nothing is left."""
    more = {"weight": 3, "warning_weight": 2, "tags": ["t"], "meta": {"pid": "7"}, "zone": "z1"}
    async with register(registry, service, backend, **more) as mine:
        (entry,) = await registry.health(service)
        got = entry["Service"]
        assert (got["ID"], got["Address"], got["Port"]) == (f"{service}-1", "127.0.0.1", backend.port)
        assert (got["Weights"], got["Tags"]) == ({"Passing": 3, "Warning": 2}, ["t"])
        assert got["Meta"] == {"pid": "7", "zone": "z1"}
        assert mine.registered
        await status(registry, service, "passing")
        await backend.serve(False)
        await status(registry, service, "critical")
    assert await registry.health(service) == []


async def test_default_id_and_no_check(registry: Registry, service: str) -> None:
    """Without a check an instance passes at once; its id says service, host and port."""
    async with registration(service, address="127.0.0.1:7", check=None, consul=registry.url) as mine:
        (entry,) = await registry.health(service, passing="")
        assert entry["Service"]["ID"] == mine.id == f"{service}-127.0.0.1-7"


@pytest.mark.parametrize("check", ["grpc", "tcp"])
async def test_checks(registry: Registry, service: str, backend: Backend, check: str) -> None:
    """Each kind of check passes for a server that is well."""
    async with register(registry, service, backend, check=check):
        await status(registry, service, "passing")


async def test_named_grpc_health(registry: Registry, service: str, backend: Backend) -> None:
    """grpc/NAME asks for the health of NAME, which this server does not know."""
    async with register(registry, service, backend, check="grpc/unknown.Service", status="passing"):
        await status(registry, service, "critical")


async def test_weight_changes_in_place(registry: Registry, service: str, backend: Backend) -> None:
    """A new weight leaves the check's status alone; 0 is 1 with the metadata that says 0."""
    async with register(registry, service, backend, check_interval_s=0.2) as mine:
        await status(registry, service, "passing")
        for weight, warning in ((5, None), (7, 3), (0, None), (2, 1)):
            await mine.set_weight(weight, warning=warning)
            (entry,) = await registry.health(service)
            assert entry["Service"]["Weights"]["Passing"] == max(1, weight)
            assert (entry["Service"]["Meta"] or {}).get("weight") == (None if weight else "0")
            assert await registry.status(service, f"{service}-1") == "passing"
        assert await weights(registry, service) == {"Passing": 2, "Warning": 1}


async def test_forgotten_and_registered_again(own_registry: Registry, service: str, backend: Backend) -> None:
    """After a restart empty the instance is back within seconds, passing, with the weight it had last."""
    # A check so slow that "passing" can only come from the registration itself.
    async with register(own_registry, service, backend, weight=2, check_interval_s=2) as mine:
        await status(own_registry, service, "passing")
        await mine.set_weight(6)
        await backend.serve(True)

        async def seen() -> bool:
            return mine._status == "passing"

        await until(seen, within_s=30, what="the registration knows that it passes", every_s=0.01)
        await own_registry.forget()
        loop = asyncio.get_running_loop()
        back = loop.time()

        async def known() -> bool:
            return bool(await own_registry.health(service))

        await until(known, within_s=30, what="registered again", every_s=0.01)
        assert loop.time() - back < 10
        (entry,) = await own_registry.health(service, passing="")
        assert entry["Service"]["Weights"]["Passing"] == 6
    assert await own_registry.health(service) == []


async def test_check_that_went_missing_is_put_back(registry: Registry, service: str, backend: Backend) -> None:
    """Somebody replaced the checks by none: the instance has its check again."""
    async with register(registry, service, backend):
        await status(registry, service, "passing")
        body = {"Name": service, "ID": f"{service}-1", "Address": "127.0.0.1", "Port": backend.port}
        await registry.put("agent/service/register", body, **{"replace-existing-checks": "true"})
        await status(registry, service, "passing")


async def test_what_is_changed_in_consul_stands(own_registry: Registry, service: str, backend: Backend) -> None:
    """An operator's weight is not overwritten, and outlives that Consul forgets it."""
    async with register(own_registry, service, backend, weight=2) as mine:
        await status(own_registry, service, "passing")
        await own_registry.set_weight(f"{service}-1", 9)

        async def adopted() -> bool:
            return mine.weight == 9

        await until(adopted, within_s=30, what="the weight is seen", every_s=0.01)
        assert (await weights(own_registry, service))["Passing"] == 9
        await own_registry.forget()
        await status(own_registry, service, "passing")
        assert (await weights(own_registry, service))["Passing"] == 9


async def test_drain_is_maintenance(registry: Registry, service: str, backend: Backend) -> None:
    """Drained: in maintenance, still listed; then gone."""
    async with register(registry, service, backend) as mine:
        await status(registry, service, "passing")
        await mine.drain()
        (entry,) = await registry.health(service)
        assert f"_service_maintenance:{service}-1" in {check["CheckID"] for check in entry["Checks"]}
    assert await registry.health(service) == []


async def test_a_predecessors_maintenance_ends(registry: Registry, service: str, backend: Backend) -> None:
    """One that died while it drained does not leave its successor in maintenance."""
    await registry.register(service, f"{service}-1", port=1)
    await registry.put(f"agent/service/maintenance/{service}-1", enable="true")
    async with register(registry, service, backend):
        await status(registry, service, "passing")
        assert len(await registry.health(service, passing="")) == 1


async def test_gives_way_to_a_successor(
    registry: Registry, service: str, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The id at another address is another instance's: not fought over, not deregistered, said once."""
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(registry, service, backend):
            await status(registry, service, "passing")
            await registry.register(service, f"{service}-1", port=4)

            async def said() -> bool:
                return "gives way" in caplog.text

            await until(said, within_s=30, what="it gives way", every_s=0.01)
        (entry,) = await registry.health(service)
        assert entry["Service"]["Port"] == 4
    assert caplog.text.count("gives way") == 1


async def test_consul_away_at_start(
    service: str, backend: Backend, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    """The server starts all the same, one line says so; once Consul is there it is registered."""
    agent = Agent(port=free_port)
    registry = Registry()
    registry.url = agent.url
    with caplog.at_level(logging.INFO, "lb.consul"):
        async with register(registry, service, backend) as mine:
            assert not mine.registered
            await mine.set_weight(4)
            await asyncio.sleep(0.35)  # several turns in vain
            assert caplog.text.count("cannot connect") == 1
            await agent.start()
            try:
                await status(registry, service, "passing")
                assert (await weights(registry, service))["Passing"] == 4
                assert mine.registered
                await mine.close()
                assert await registry.health(service) == []
            finally:
                await agent.stop()
    assert "Consul is back" in caplog.text


async def test_leaving_while_consul_is_away_is_bounded(service: str, backend: Backend) -> None:
    """Drain and close neither raise nor take long."""
    registry = Embedded()
    await registry.start()
    async with register(registry, service, backend) as mine:
        await registry.kill()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await mine.drain()
        await mine.close()
        assert loop.time() - began < 10


async def test_leaving_while_consul_hangs_is_bounded(service: str, backend: Backend) -> None:
    """The same when Consul accepts and never answers."""
    connections: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    registry = Registry()
    registry.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with register(registry, service, backend) as mine:
        assert loop.time() - began < 15
        began = loop.time()
        await mine.drain()
    assert loop.time() - began < 30
    await stop_accepting(server)
    server.close()
    for writer in connections:
        writer.close()
    await server.wait_closed()


async def test_second_agent_takes_over(service: str, backend: Backend) -> None:
    """Of several agents the next takes over; one place is left when the first is back."""
    async with Agent() as first, Agent(node="other") as second:
        one, two = Registry(), Registry()
        one.url, two.url = first.url, second.url
        both = Registry()
        both.url = f"{first.url},{second.url}"
        async with register(both, service, backend):
            await status(one, service, "passing")
            assert await two.health(service) == []
            await first.stop()
            await status(two, service, "passing")
            await first.start()

            async def left() -> bool:
                return await one.health(service) == []

            await until(left, within_s=30, what="it has left the first agent")
            assert len(await two.health(service)) == 1
        assert await two.health(service) == []


async def test_bad_consul_settings_are_named(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is a ValueError that names it, before anything is sent."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "ftp://here")
    with pytest.raises(ValueError, match="CONSUL_HTTP_ADDR: scheme of 'ftp://here' is 'ftp'; expected host:port"):
        registration(service, address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": "host"}, "address: no port in 'host'; expected host:port"),
        ({"address": "host:0"}, "port is '0'"),
        ({"address": None}, "address is None; expected host:port"),
        ({"address": "0.0.0.0:1"}, "address is '0.0.0.0:1'; expected the one that clients connect to"),
        ({"address": "[::]:1"}, "expected the one that clients connect to"),
        ({"tags": "blue"}, "tags is 'blue'; expected a sequence of texts"),
        ({"id": "a/b"}, "id is 'a/b'; expected a name without blanks and slashes"),
        ({"weight": -1}, "weight is -1; expected a whole number from 0 to 65535"),
        ({"weight": 70000}, "weight is 70000"),
        ({"weight": 1.5}, "weight is 1.5"),
        ({"weight": True}, "weight is True"),
        ({"warning_weight": -1}, "warning_weight is -1"),
        ({"meta": {"k": 1}}, "meta has 'k': 1; expected text to text"),
        ({"meta": {"weight": "1"}}, "reserved; use the argument weight"),
        ({"check": "udp"}, "check is 'udp'; expected grpc, grpc/NAME, tcp"),
        ({"check_interval_s": 0}, "check_interval_s is 0; expected a number of seconds > 0"),
        ({"reassert_s": float("nan")}, "reassert_s is nan"),
        ({"deregister_after_s": 5}, "deregister_after_s is 5; expected >= 60, or None"),
        ({"status": "good"}, "status is 'good'; expected critical, warning, passing"),
        ({"consul": "here:x"}, "consul: port is 'x'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    """Each names the argument, its value and what is accepted."""
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        registration("service", **({"address": "127.0.0.1:1"} | arguments))


def test_bad_service_name() -> None:
    """An empty name is refused."""
    with pytest.raises(ValueError, match="service is ''"):
        registration("", address="127.0.0.1:1")


async def test_bad_weight_later(service: str, backend: Backend) -> None:
    """set_weight refuses like the constructor, and changes nothing."""
    async with Agent() as agent:
        registry = Registry()
        registry.url = agent.url
        async with register(registry, service, backend) as mine:
            with pytest.raises(ValueError, match="weight is -1"):
                await mine.set_weight(-1)
            assert mine.weight == 1
