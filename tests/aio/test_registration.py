"""Registration: what Consul knows of an instance, whatever happens to Consul."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import grpc.aio
import pytest

from lb.aio import Registration, registration
from lb.core.presence import LEAVING
from lb.testing import Agent
from tests.support.consul import Registry
from tests.support.instance import Instance, register, status
from tests.support.wait import until


async def weights(registry: Registry, service: str) -> dict[str, int]:
    """The weights in Consul."""
    (entry,) = await registry.health(service)
    found: dict[str, int] = entry["Service"]["Weights"]
    return found


async def test_registered_then_gone(registry: Registry, service: str, instance: Instance) -> None:
    """All that was given stands in Consul, critical until the check passed; afterwards nothing is left."""
    more = {"weight": 3, "warning_weight": 2, "tags": ["t"], "meta": {"pid": "7"}, "zone": "z1"}
    async with register(registry, service, instance, **more) as mine:
        (entry,) = await registry.health(service)
        got = entry["Service"]
        assert (got["ID"], got["Address"], got["Port"]) == (f"{service}-1", "127.0.0.1", instance.port)
        assert (got["Weights"], got["Tags"]) == ({"Passing": 3, "Warning": 2}, ["t"])
        assert got["Meta"] == {"pid": "7", "zone": "z1"}
        assert mine.registered
        await status(registry, service, "passing")
        await instance.serve(False)
        await status(registry, service, "critical")
    assert await registry.health(service) == []


async def test_default_id_and_no_check(registry: Registry, service: str) -> None:
    """Without a check an instance passes at once; its id says service, host and port."""
    async with registration(service, address="127.0.0.1:7", check=None, consul=registry.url) as mine:
        (entry,) = await registry.health(service, passing="")
        assert entry["Service"]["ID"] == mine.id == f"{service}-127.0.0.1-7"


@pytest.mark.parametrize("check", ["grpc", "tcp"])
async def test_checks(registry: Registry, service: str, instance: Instance, check: str) -> None:
    """Each kind of check passes for a server that is well."""
    async with register(registry, service, instance, check=check):
        await status(registry, service, "passing")


async def test_named_grpc_health(registry: Registry, service: str, instance: Instance) -> None:
    """grpc/NAME asks for the health of NAME, which this server does not know."""
    async with register(registry, service, instance, check="grpc/unknown.Service", status="passing"):
        await status(registry, service, "critical")


async def test_weight_changes_in_place(registry: Registry, service: str, instance: Instance) -> None:
    """A new weight leaves the check's status alone; 0 is 1 with the metadata that says 0."""
    async with register(registry, service, instance, check_interval_s=0.2) as mine:
        await status(registry, service, "passing")
        for weight, warning in ((5, None), (7, 3), (0, None), (2, 1)):
            await mine.set_weight(weight, warning=warning)
            (entry,) = await registry.health(service)
            assert entry["Service"]["Weights"]["Passing"] == max(1, weight)
            assert (entry["Service"]["Meta"] or {}).get("weight") == (None if weight else "0")
            assert await registry.status(service, f"{service}-1") == "passing"
        assert await weights(registry, service) == {"Passing": 2, "Warning": 1}


async def test_forgotten_and_registered_again(own_registry: Registry, service: str, instance: Instance) -> None:
    """After a restart empty the instance is back within seconds, passing, with the weight it had last."""
    # A check so slow that "passing" can only come from the registration itself.
    async with register(own_registry, service, instance, weight=2, check_interval_s=2) as mine:
        await status(own_registry, service, "passing")
        await mine.set_weight(6)
        await instance.serve(True)

        # Its next look, which takes over that it passes, takes over this as well.
        await own_registry.set_weight(mine.id, 6 + 1)

        async def seen() -> bool:
            return mine.weight == 7

        await until(seen, within_s=30, what="the registration has looked", every_s=0.01)
        await own_registry.forget()
        loop = asyncio.get_running_loop()
        back = loop.time()

        async def known() -> bool:
            return bool(await own_registry.health(service))

        await until(known, within_s=30, what="registered again", every_s=0.01)
        assert loop.time() - back < 10
        (entry,) = await own_registry.health(service, passing="")
        assert entry["Service"]["Weights"]["Passing"] == 7
    assert await own_registry.health(service) == []


async def test_check_that_went_missing_is_put_back(registry: Registry, service: str, instance: Instance) -> None:
    """Somebody replaced the checks by none: the instance has its check again."""
    async with register(registry, service, instance):
        await status(registry, service, "passing")
        body = {"Name": service, "ID": f"{service}-1", "Address": "127.0.0.1", "Port": instance.port}
        await registry.put("agent/service/register", body, **{"replace-existing-checks": "true"})
        await status(registry, service, "passing")


async def test_what_is_changed_in_consul_stands(own_registry: Registry, service: str, instance: Instance) -> None:
    """An operator's weight is not overwritten, and outlives that Consul forgets it."""
    async with register(own_registry, service, instance, weight=2) as mine:
        await status(own_registry, service, "passing")
        await own_registry.set_weight(f"{service}-1", 9)

        async def adopted() -> bool:
            return mine.weight == 9

        await until(adopted, within_s=30, what="the weight is seen", every_s=0.01)
        assert (await weights(own_registry, service))["Passing"] == 9
        await own_registry.forget()
        await status(own_registry, service, "passing")
        assert (await weights(own_registry, service))["Passing"] == 9


async def test_drain_is_maintenance(registry: Registry, service: str, instance: Instance) -> None:
    """Drained: in maintenance, still listed; then gone."""
    async with register(registry, service, instance) as mine:
        await status(registry, service, "passing")
        await mine.drain()
        (entry,) = await registry.health(service)
        assert f"_service_maintenance:{service}-1" in {check["CheckID"] for check in entry["Checks"]}
    assert await registry.health(service) == []


async def test_a_predecessors_leaving_ends(registry: Registry, service: str, instance: Instance) -> None:
    """One that died while it left does not leave its successor in maintenance."""
    predecessor = register(registry, service, instance)
    await predecessor.__aenter__()
    await predecessor.drain()
    assert await registry.maintenance(f"{service}-1") == LEAVING
    async with register(registry, service, instance):
        await status(registry, service, "passing")
        assert len(await registry.health(service, passing="")) == 1
    await predecessor.close()


async def test_an_operators_maintenance_stands_over_a_restart(
    registry: Registry, service: str, instance: Instance
) -> None:
    """The instance is started again, at the same address or another: it stays out until the operator says otherwise."""
    await registry.register(service, f"{service}-1", port=1, Meta={"pid": "1", "note": "hands off"})
    path = f"agent/service/maintenance/{service}-1"
    await registry.put(path, enable="true", reason="disk is being replaced")
    for more in ({}, {"weight": 3}):
        await registry.register(service, f"{service}-1", port=1 if not more else instance.port, Meta={"note": "x"})
        async with register(registry, service, instance, meta={"pid": "2"}, **more) as mine:
            await status(registry, service, "passing")
            assert await registry.maintenance(mine.id) == "disk is being replaced"
            (entry,) = await registry.health(service)
            assert entry["Service"]["Meta"] == {"pid": "2", "note": "x"}, "what another one set and we do not stands"
            if not more:  # as if it had died
                copy = entry["Service"]
            else:
                await registry.put(path, enable="false")
                await registry.set_weight(mine.id, 8)

                async def looked(mine: Registration = mine) -> bool:
                    return mine.weight == 8

                await until(looked, within_s=30, what="the next look", every_s=0.01)
                assert await registry.maintenance(mine.id) is None, "it is not switched on again"
        if not more:
            await registry.register(service, f"{service}-1", port=1, Meta=copy["Meta"])
            await registry.put(path, enable="true", reason="disk is being replaced")


async def test_an_operators_maintenance_stands_when_consul_forgets(
    own_registry: Registry, service: str, instance: Instance
) -> None:
    """So does what somebody else set: metadata, a tagged address, a tag."""
    async with register(own_registry, service, instance) as mine:
        await status(own_registry, service, "passing")
        known = (await own_registry.knows(mine.id) or {})["Service"]
        tagged = known["TaggedAddresses"] | {"public": {"Address": "192.0.2.1", "Port": 7}}
        await own_registry.register(
            service, mine.id, port=instance.port, weight=4, Tags=["t"], Meta={"k": "v"}, TaggedAddresses=tagged
        )
        await own_registry.put(f"agent/service/maintenance/{mine.id}", enable="true", reason="by hand")

        async def seen() -> bool:
            return mine.weight == 4 and await own_registry.maintenance(mine.id) == "by hand"

        await until(seen, within_s=30, what="the change is seen", every_s=0.01)
        await mine.set_weight(5)  # looks, too
        await own_registry.forget()

        async def out() -> bool:
            return await own_registry.maintenance(mine.id) == "by hand"

        await until(out, within_s=30, what="it is registered again, and out", every_s=0.01)
        await status(own_registry, service, "passing")
        again = (await own_registry.knows(mine.id) or {})["Service"]
        assert (again["Weights"]["Passing"], again["Tags"], again["Meta"]) == (5, ["t"], {"k": "v"})
        assert again["TaggedAddresses"]["public"] == {"Address": "192.0.2.1", "Port": 7}


async def test_what_is_set_at_the_same_moment_stands(registry: Registry, service: str, instance: Instance) -> None:
    """A weight set here takes over what was set in Consul since the last look, and does not overwrite it."""
    async with register(registry, service, instance, reassert_s=60) as mine:
        await registry.register(service, mine.id, port=instance.port, Meta={"k": "v"}, Tags=["t"])
        await mine.set_weight(6)
        known = (await registry.knows(mine.id) or {})["Service"]
        assert (known["Weights"]["Passing"], known["Meta"], known["Tags"]) == (6, {"k": "v"}, ["t"])


async def test_tagged_addresses(registry: Registry, service: str, instance: Instance) -> None:
    """Each by its label; `grpc` is the registered address as a URL, unless it is said."""
    async with register(registry, service, instance, tagged_addresses={"wan": "192.0.2.7:443"}):
        (entry,) = await registry.health(service)
        tagged = entry["Service"]["TaggedAddresses"]
        assert tagged["grpc"] == {"Address": f"grpc://{instance.address}", "Port": instance.port}
        assert tagged["wan"] == {"Address": "192.0.2.7", "Port": 443}
    async with register(registry, service, instance, tagged_addresses={"grpc": "grpc://out.example:443"}):
        (entry,) = await registry.health(service)
        assert entry["Service"]["TaggedAddresses"]["grpc"] == {"Address": "grpc://out.example:443", "Port": 443}


async def test_gives_way_to_a_successor(
    registry: Registry, service: str, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of another address or service is another instance's: not fought over, not deregistered, said once."""
    for name, port in ((service, 4), (f"{service}-other", instance.port)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lb.consul"):
            async with register(registry, service, instance) as mine:
                await status(registry, service, "passing")
                assert mine.registered
                await registry.register(name, f"{service}-1", port=port)

                async def gone(mine: Registration = mine) -> bool:
                    return not mine.registered

                await until(gone, within_s=30, what="it says that it is not registered", every_s=0.01)
                for _ in range(2):
                    await mine.set_weight(2)
                assert not mine.registered
            (entry,) = await registry.health(name)
            assert entry["Service"]["Port"] == port
        assert caplog.text.count("this instance is no longer registered") == 1
        assert f"another process registered this id ({name} at 127.0.0.1:{port})" in caplog.text
        await registry.deregister(f"{service}-1")


@pytest.mark.parametrize("other", ["", "-other"])
async def test_takes_over_an_id_that_is_in_use(
    registry: Registry, service: str, instance: Instance, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    """The one that starts last has the id. Of one that still passed, or of another service, it says so."""
    await registry.register(f"{service}{other}", f"{service}-1", port=4)
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(registry, service, instance) as mine:
            await status(registry, service, "passing")
            assert mine.registered
            (entry,) = await registry.health(service)
            assert entry["Service"]["Port"] == instance.port
    words = f"{service}-1: replaced the registration of {service}{other} at 127.0.0.1:4, which still passed its check. "
    words += "Do two processes use this id?"
    assert [record.message for record in caplog.records] == [words]


async def test_names_differ_by_more_than_case(registry: Registry, service: str, instance: Instance) -> None:
    """Consul minds no case in a service's name: the same name in capitals is ours."""
    async with register(registry, service, instance, reassert_s=60) as mine:
        await registry.register(service.upper(), mine.id, port=instance.port)
        await mine.set_weight(2)
        assert mine.registered


async def test_wait_until_registered(service: str, instance: Instance, free_port: int) -> None:
    """It ends when Consul has it; when it is left before, or was never entered, that is said."""
    agent = Agent(port=free_port)
    registry = Registry()
    registry.url = agent.url
    mine = register(registry, service, instance)
    with pytest.raises(RuntimeError, match="called before its"):
        await mine.wait_registered()
    async with mine:
        waiting = [asyncio.create_task(mine.wait_registered()) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        async with agent:
            await asyncio.wait_for(asyncio.gather(*waiting), 30)
            assert await registry.instances() == {mine.id}
            await mine.close()
    with pytest.raises(RuntimeError, match="called after its"):
        await mine.wait_registered()


async def test_leaving_ends_the_wait(service: str, instance: Instance, free_port: int) -> None:
    """Whoever waits for a registration that is left is told."""
    registry = Registry()
    registry.url = f"http://127.0.0.1:{free_port}"
    async with register(registry, service, instance) as mine:
        waiting = asyncio.create_task(mine.wait_registered())
        await asyncio.sleep(0)
        await mine.drain()
        with pytest.raises(RuntimeError, match="called after its"):
            await waiting


async def test_entering_twice(registry: Registry, service: str, instance: Instance) -> None:
    """A clear error, and the first one goes on."""
    async with register(registry, service, instance) as mine:
        with pytest.raises(RuntimeError, match=f"{service}-1 was already used; make a new one"):
            await mine.__aenter__()
        assert mine.registered
    with pytest.raises(RuntimeError, match="was already used"):
        await mine.__aenter__()
    assert await registry.health(service) == []


async def test_what_consul_refuses_as_invalid_raises(registry: Registry, service: str, instance: Instance) -> None:
    """HTTP 400 is a mistake in the call: a ValueError with Consul's words, at once."""
    with pytest.raises(ValueError, match=rf"registration: {service}-1 is refused: .* HTTP 400: .*invalid characters"):
        await register(registry, service, instance, meta={"bad key": "1"}).__aenter__()
    assert await registry.health(service) == []


async def test_what_is_refused_later_is_said(
    service: str, instance: Instance, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Consul was away at the start: then the log says it once, and whoever waits gets the error."""
    agent = Agent(port=free_port)
    registry = Registry()
    registry.url = agent.url
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(registry, service, instance, meta={"bad key": "1"}) as mine:
            waiting = asyncio.create_task(mine.wait_registered())
            async with agent:
                with pytest.raises(ValueError, match="invalid characters"):
                    await asyncio.wait_for(waiting, 30)
                for _ in range(3):
                    await mine.set_weight(2)
    assert caplog.text.count("invalid characters") == 1


async def test_a_server_without_the_health_service_is_told(
    registry: Registry, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its check can never pass: one line says what to add."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with caplog.at_level(logging.WARNING, "lb.consul"):
        mine = registration(
            service, address=f"127.0.0.1:{port}", consul=registry.url, check_interval_s=0.1, reassert_s=0.05
        )
        async with mine:

            async def said() -> bool:
                return "grpcio-health-checking" in caplog.text

            await until(said, within_s=30, what="it is said", every_s=0.02)
            for _ in range(3):
                await mine.set_weight(2)
    await server.stop(None)
    assert caplog.text.count("grpcio-health-checking") == 1
    assert "does not serve grpc.health.v1.Health" in caplog.text


async def test_a_health_name_that_is_not_set_is_told(
    registry: Registry, service: str, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    """So is a name that the server's health service does not know."""
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(registry, service, instance, check="grpc/shop.Service"):

            async def said() -> bool:
                return "does not know the health of 'shop.Service'" in caplog.text

            await until(said, within_s=30, what="it is said", every_s=0.02)


@pytest.mark.parametrize("id", ["a%b", "a?b", "a#b", "a:b", "a..b", "ü", "a;b", "a+b", "A"])
async def test_ids_with_odd_characters(registry: Registry, service: str, instance: Instance, id: str) -> None:
    """Whatever is a name in a URL's path is found again, and left."""
    async with register(registry, service, instance, id=f"{service}{id}") as mine:
        await mine.set_weight(2)
        assert mine.registered
        assert mine.id in await registry.instances()
    assert mine.id not in await registry.instances()


async def test_consul_away_at_start(
    service: str, instance: Instance, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    """The server starts all the same, one line says so; once Consul is there it is registered."""
    agent = Agent(port=free_port)
    registry = Registry()
    registry.url = agent.url
    with caplog.at_level(logging.INFO, "lb.consul"):
        async with register(registry, service, instance) as mine:
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
        ({"address": "0.0.0.0:1"}, "address is '0.0.0.0:1'; expected host:port at which clients can connect"),
        ({"address": "[::]:1"}, "expected host:port at which clients can connect"),
        ({"tags": "blue"}, "tags is 'blue'; expected a sequence of strings"),
        ({"tags": [1]}, "tags is [1]; expected a sequence of strings"),
        ({"id": "."}, "id is '.', which means another place in a URL"),
        ({"id": ".."}, "id is '..', which means another place in a URL"),
        ({"id": "a\0b"}, "id is 'a\\x00b'; expected a name"),
        ({"id": ""}, "id is ''; expected a name"),
        ({"id": 7}, "id is 7; expected a name"),
        ({"check": False}, "check is False; expected grpc, grpc/NAME, tcp"),
        ({"zone": 1}, "zone is 1; expected a string"),
        ({"meta": ["k"]}, "meta is ['k']; expected a mapping"),
        ({"consul": 8500}, "consul is 8500; expected host:port or a URL"),
        (
            {"tagged_addresses": {"wan": "10.0.0.1"}},
            "tagged_addresses['wan']: no port in '10.0.0.1'; expected host:port",
        ),
        ({"tagged_addresses": {"wan": 1}}, "tagged_addresses has 'wan': 1; expected string to string"),
        ({"id": "a/b"}, "id is 'a/b'; expected a name without blanks and slashes"),
        ({"weight": -1}, "weight is -1; expected a whole number from 0 to 65535"),
        ({"weight": 70000}, "weight is 70000"),
        ({"weight": 1.5}, "weight is 1.5"),
        ({"weight": True}, "weight is True"),
        ({"warning_weight": -1}, "warning_weight is -1"),
        ({"meta": {"k": 1}}, "meta has 'k': 1; expected string to string"),
        ({"meta": {"weight": "1"}}, "reserved; expected the argument weight"),
        ({"check": "udp"}, "check is 'udp'; expected grpc, grpc/NAME, tcp"),
        ({"check_interval_s": 0}, "check_interval_s is 0; expected seconds > 0"),
        ({"reassert_s": float("nan")}, "reassert_s is nan"),
        ({"deregister_after_s": 5}, "deregister_after_s is 5; expected seconds >= 60, or None"),
        ({"status": "good"}, "status is 'good'; expected critical or warning or passing"),
        ({"consul": "here:x"}, "consul: port is 'x'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    """Each names the argument, its value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        registration("service", **({"address": "127.0.0.1:1"} | arguments))


def test_bad_service_name() -> None:
    """An empty name is refused."""
    with pytest.raises(ValueError, match="service is ''"):
        registration("", address="127.0.0.1:1")


async def test_bad_weight_later(service: str, instance: Instance) -> None:
    """set_weight refuses like the constructor, and changes nothing."""
    async with Agent() as agent:
        registry = Registry()
        registry.url = agent.url
        async with register(registry, service, instance) as mine:
            with pytest.raises(ValueError, match="weight is -1"):
                await mine.set_weight(-1)
            assert mine.weight == 1
