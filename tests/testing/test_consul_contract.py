"""What we rely on in Consul's HTTP API: the same on a real Consul and on the embedded agent."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from tests.support.consul import Embedded, Registry
from tests.support.instance import Instance
from tests.support.wait import until

TTL = {"TTL": "60s", "Status": "passing"}


async def test_ready_means_a_leader(registry: Registry) -> None:
    """/v1/status/leader is a non-empty string; the agent says who it is."""
    assert (await registry.get("status/leader")).json()
    assert (await registry.get("agent/self")).json()["Config"]["Datacenter"] == "dc1"


async def test_what_health_says_of_an_instance(registry: Registry, service: str) -> None:
    """All that the resolver reads is there, as registered; the node's own check too."""
    await registry.register(
        service, f"{service}-1", "10.0.0.7", 80, weight=3, Tags=["a"], Meta={"zone": "z"}, Check=TTL
    )
    (entry,) = await registry.health(service)
    got = entry["Service"]
    assert (got["ID"], got["Service"], got["Address"], got["Port"]) == (f"{service}-1", service, "10.0.0.7", 80)
    assert (got["Weights"], got["Meta"], got["Tags"]) == ({"Passing": 3, "Warning": 1}, {"zone": "z"}, ["a"])
    assert got["CreateIndex"] > 0
    assert entry["Node"]["ID"]
    assert entry["Node"]["Address"] == "127.0.0.1"
    assert {check["CheckID"]: check["Status"] for check in entry["Checks"]} == {
        "serfHealth": "passing",
        f"service:{service}-1": "passing",
    }


async def test_unknown_service_is_an_empty_list(registry: Registry, service: str) -> None:
    """Not an error, and with an index to wait on."""
    answer = await registry.get(f"health/service/{service}")
    assert (answer.status_code, answer.json()) == (200, [])
    assert int(answer.headers["X-Consul-Index"]) >= 1
    assert answer.headers["X-Consul-KnownLeader"] == "true"


async def test_check_states(registry: Registry, service: str) -> None:
    """Warning and critical instances are listed, unless `passing` is asked for."""
    await registry.register(service, f"{service}-1", Check=TTL)
    check = f"service:{service}-1"
    for verb, status, passing in (("warn", "warning", 0), ("fail", "critical", 0), ("pass", "passing", 1)):
        assert (await registry.put(f"agent/check/{verb}/{check}", note=verb)).status_code == 200

        async def reached(wanted: str = status) -> bool:
            return await registry.status(service, f"{service}-1") == wanted

        await until(reached, within_s=30, what=status)
        assert len(await registry.health(service)) == 1
        assert len(await registry.health(service, passing="")) == passing
    update = await registry.put(f"agent/check/update/{check}", {"Status": "warning", "Output": "so so"})
    assert update.status_code == 200
    assert (await registry.get("agent/checks")).json()[check]["Output"] == "so so"


async def test_grpc_check_is_performed(registry: Registry, service: str, instance: Instance) -> None:
    """Critical until it ran, then what the server's health service says."""
    check = {"GRPC": instance.address, "Interval": "100ms", "Timeout": "1s"}
    await registry.register(service, f"{service}-1", port=instance.port, Check=check)
    for serving, status in ((True, "passing"), (False, "critical"), (True, "passing")):
        await instance.serve(serving)

        async def reached(wanted: str = status) -> bool:
            return await registry.status(service, f"{service}-1") == wanted

        await until(reached, within_s=30, what=status)
    await registry.deregister(f"{service}-1")


async def test_registering_again_keeps_the_status(registry: Registry, service: str) -> None:
    """A new weight, even with another initial status or without the check: the check stays as it was."""
    await registry.register(service, f"{service}-1", Check=TTL)
    again: list[tuple[int, dict[str, Any]]] = [
        (2, {"Check": TTL | {"Status": "critical"}}),
        (3, {}),
        (4, {"Check": TTL}),
    ]
    for weight, more in again:
        await registry.register(service, f"{service}-1", weight=weight, **more)
        (entry,) = await registry.health(service)
        assert entry["Service"]["Weights"]["Passing"] == weight
        assert await registry.status(service, f"{service}-1") == "passing"


async def test_replacing_existing_checks(registry: Registry, service: str) -> None:
    """With replace-existing-checks, what is not in the request goes."""
    await registry.register(service, f"{service}-1", Check=TTL)
    body = {"Name": service, "ID": f"{service}-1", "Port": 1}
    await registry.put("agent/service/register", body, **{"replace-existing-checks": "true"})
    assert await registry.status(service, f"{service}-1") == ""


async def test_maintenance(registry: Registry, service: str) -> None:
    """Maintenance is one more critical check; it outlives registering again, and ends when told."""
    await registry.register(service, f"{service}-1", Check=TTL)
    path = f"agent/service/maintenance/{service}-1"
    assert (await registry.put(path, enable="true", reason="drain")).status_code == 200
    await registry.register(service, f"{service}-1", weight=2, Check=TTL)
    (entry,) = await registry.health(service)
    checks = {check["CheckID"]: check for check in entry["Checks"]}
    kept = checks[f"_service_maintenance:{service}-1"]
    assert (kept["Status"], kept["Notes"]) == ("critical", "drain")
    assert (await registry.put(path, enable="false")).status_code == 200
    assert len(await registry.health(service, passing="")) == 1


async def test_agent_health_of_an_instance(registry: Registry, service: str) -> None:
    """The status code tells the health, and the body tells it from a refusal."""
    path = f"agent/health/service/id/{service}-1"
    assert (await registry.get(path)).status_code == 404
    await registry.register(service, f"{service}-1", "127.0.0.1", 7, weight=2, Check=TTL, Meta={"k": "v"})
    for verb, code, words in (("pass", 200, "passing"), ("warn", 429, "warning"), ("fail", 503, "critical")):
        await registry.put(f"agent/check/{verb}/service:{service}-1")
        answer = await registry.get(path)
        assert (answer.status_code, answer.json()["AggregatedStatus"]) == (code, words)
        found = answer.json()["Service"]
        assert (found["Address"], found["Port"], found["Meta"]) == ("127.0.0.1", 7, {"k": "v"})
        assert found["Weights"] == {"Passing": 2, "Warning": 1}
        assert [check["CheckID"] for check in answer.json()["Checks"]] == [f"service:{service}-1"]
    await registry.put(f"agent/service/maintenance/{service}-1", enable="true")
    assert (await registry.get(path)).json()["AggregatedStatus"] == "maintenance"


async def test_lists(registry: Registry, service: str) -> None:
    """The agent's and the catalog's lists know an instance until it is deregistered."""
    await registry.register(service, f"{service}-1", "127.0.0.1", 7, Tags=["t"], Check=TTL)
    assert (await registry.get("agent/services")).json()[f"{service}-1"]["Port"] == 7
    assert (await registry.get(f"agent/service/{service}-1")).json()["Service"] == service
    assert (await registry.get("catalog/services")).json()[service] == ["t"]
    (entry,) = (await registry.get(f"catalog/service/{service}")).json()
    assert (entry["ServiceID"], entry["ServicePort"], entry["ServiceTags"]) == (f"{service}-1", 7, ["t"])
    assert [c["Status"] for c in (await registry.get(f"health/checks/{service}")).json()] == ["passing"]
    everything = (await registry.get("health/state/any")).json()
    assert {"serfHealth", f"service:{service}-1"} <= {check["CheckID"] for check in everything}
    await registry.deregister(f"{service}-1")
    assert f"{service}-1" not in await registry.instances()
    assert (await registry.get(f"agent/service/{service}-1")).status_code == 404
    assert service not in (await registry.get("catalog/services")).json()


async def test_tags_must_all_match(registry: Registry, service: str) -> None:
    """Several tags are a conjunction."""
    await registry.register(service, f"{service}-1", Tags=["a", "b"])
    await registry.register(service, f"{service}-2", Tags=["a"])
    assert len(await registry.health(service, tag="a")) == 2
    assert [e["Service"]["ID"] for e in await registry.health(service, tag=["a", "b"])] == [f"{service}-1"]
    assert await registry.health(service, tag=["a", "z"]) == []


async def test_a_token_does_no_harm_without_access_control(registry: Registry, service: str) -> None:
    """Any token is accepted where there is no access control."""
    async with httpx2.AsyncClient(headers={"X-Consul-Token": "00000000-0000-0000-0000-000000000001"}) as client:
        assert (await client.get(f"{registry.url}/v1/health/service/{service}")).status_code == 200


async def test_tagged_addresses(registry: Registry, service: str) -> None:
    """Kept as given, beside those that Consul makes of an address of numbers; gone when registered without."""
    tagged = {"grpc": {"Address": "grpc://a:1", "Port": 1}, "wan": {"Address": "192.0.2.1"}}
    await registry.register(service, f"{service}-1", "10.0.0.7", 80, TaggedAddresses=tagged, Token="any")
    own = {"Address": "10.0.0.7", "Port": 80}
    wanted = {
        "grpc": {"Address": "grpc://a:1", "Port": 1},
        "wan": {"Address": "192.0.2.1", "Port": 0},
        "lan_ipv4": own,
        "wan_ipv4": own,
    }
    (entry,) = await registry.health(service)
    assert entry["Service"]["TaggedAddresses"] == wanted
    known = (await registry.knows(f"{service}-1") or {})["Service"]
    assert known["TaggedAddresses"] == wanted
    assert "Token" not in known
    await registry.register(service, f"{service}-1", "10.0.0.7", 80)
    assert set((await registry.get(f"agent/service/{service}-1")).json()["TaggedAddresses"]) == {"lan_ipv4", "wan_ipv4"}
    await registry.register(service, f"{service}-2", "::1", 80)
    assert set((await registry.get(f"agent/service/{service}-2")).json()["TaggedAddresses"]) == {"lan_ipv6", "wan_ipv6"}


async def test_case_of_names_and_ids(registry: Registry, service: str) -> None:
    """Reading minds no case of names; ids that differ in case alone are one in the catalog, two at the agent."""
    upper, one, other = service.upper(), f"{service}-one", f"{service}-ONE"
    await registry.register(upper, one, port=1)
    index = await registry.index(service)
    for name in (service, upper, service.title()):
        assert [e["Service"]["Service"] for e in await registry.health(name)] == [upper]
        assert await registry.index(name) == index
        assert [e["ServiceID"] for e in (await registry.get(f"catalog/service/{name}")).json()] == [one]
    await registry.register(service, other, port=2)
    assert {one, other} <= await registry.instances()
    assert len(await registry.health(service)) == 1
    assert await registry.knows(one.title()) is None
    await registry.register(service, f"{service}-two", port=3)
    assert len(await registry.health(upper)) == 2
    for id in (one, other, f"{service}-two"):
        await registry.deregister(id)


async def test_maintenance_keeps_its_first_reason(registry: Registry, service: str) -> None:
    """Whoever switches it on again changes nothing: an operator's reason is not lost to an instance that leaves."""
    await registry.register(service, f"{service}-1", Check=TTL)
    path = f"agent/service/maintenance/{service}-1"
    for reason in ("by hand", "leaving"):
        await registry.put(path, enable="true", reason=reason)
        assert await registry.maintenance(f"{service}-1") == "by hand"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"ID": "x"}, "Missing service name"),
        ({"Name": "x", "Weights": {"Passing": 0, "Warning": 1}}, "Passing must be greater than 0"),
        ({"Name": "x", "Weights": {"Passing": 1, "Warning": -1}}, "Warning must be greater"),
        ({"Name": "x", "Weights": {"Passing": 70000, "Warning": 1}}, "between 0 and 65535"),
        ({"Name": "x", "Port": "80"}, "cannot unmarshal"),
        ({"Name": "x", "Meta": {"k": 1}}, "cannot unmarshal"),
        ({"Name": "x", "Meta": {"bad key": "1"}}, "Key contains invalid characters"),
        ({"Name": "x", "Bogus": 1}, 'unknown field "Bogus"'),
        ({"Name": "x", "Tags": [1]}, "cannot unmarshal"),
        ({"Name": "x", "TaggedAddresses": {"lan": "10.0.0.1:1"}}, "TaggedAddresses of type structs.ServiceAddress"),
        ({"Name": "x", "Check": {"GRPC": "a:1"}}, "Interval must be > 0"),
        ({"Name": "x", "Check": {"GRPC": "a:1", "Interval": "5"}}, "duration"),
        ({"Name": "x", "Check": {"TTL": "1s", "Status": "good"}}, "Status for checks must"),
    ],
)
async def test_bad_registrations(registry: Registry, body: dict[str, Any], words: str) -> None:
    """Status 400 and words that name the trouble; nothing is registered."""
    answer = await registry.put("agent/service/register", body)
    assert answer.status_code == 400
    assert words in answer.text
    assert "x" not in await registry.instances()


@pytest.mark.parametrize(
    ("method", "path", "params", "status", "words"),
    [
        ("PUT", "agent/service/deregister/none", {}, 404, 'Unknown service ID "none"'),
        ("PUT", "agent/service/maintenance/none", {"enable": "true"}, 404, 'Unknown service ID "none"'),
        ("PUT", "agent/service/maintenance/none", {}, 400, "Missing value for enable"),
        ("PUT", "agent/check/pass/none", {}, 404, 'Unknown check ID "none"'),
        ("GET", "agent/service/none", {}, 404, "unknown service ID: none"),
        ("GET", "health/service/x", {"index": "a"}, 400, "Invalid index"),
        ("GET", "health/service/x", {"index": "1", "wait": "5"}, 400, "Invalid wait time"),
        ("GET", "health/service/x", {"passing": "maybe"}, 400, "Invalid value for ?passing"),
        ("GET", "health/service/x", {"dc": "nowhere"}, 500, "No path to datacenter"),
        ("GET", "health/service/x", {"stale": "", "consistent": ""}, 400, "conflicting semantics"),
        ("GET", "health/service/x", {"cached": "", "consistent": ""}, 400, "conflicting semantics"),
        ("GET", "health/service/x", {"ns": "a"}, 400, 'Invalid query parameter: "ns"'),
        ("POST", "health/service/x", {}, 405, "method POST not allowed"),
        ("GET", "nothing", {}, 404, ""),
    ],
)
async def test_refusals(
    registry: Registry, method: str, path: str, params: dict[str, str], status: int, words: str
) -> None:
    """Every wrong question has its status and its words."""
    async with httpx2.AsyncClient() as client:
        answer = await client.request(method, f"{registry.url}/v1/{path}", params=params)
    assert answer.status_code == status
    assert words in answer.text


# Blocking queries


async def timed(registry: Registry, service: str, **params: Any) -> tuple[float, int, int]:
    """A read: seconds it took, its index, and the number of instances."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await registry.get(f"health/service/{service}", stale="", **params)
    assert answer.status_code == 200, answer.text
    return loop.time() - began, int(answer.headers["X-Consul-Index"]), len(answer.json())


async def test_index_zero_and_lower_indexes_do_not_block(registry: Registry, service: str) -> None:
    """Index 0 and one that is behind are answered at once."""
    await registry.register(service, f"{service}-1")
    current = await registry.index(service)
    for index in (0, 1, current - 1):
        seconds, got, count = await timed(registry, service, index=index, wait="60s")
        assert seconds < 30
        assert (got, count) == (current, 1)


@pytest.mark.parametrize("ahead", [0, 1000])
async def test_wait_runs_out(registry: Registry, service: str, ahead: int) -> None:
    """At the current index, and at one from the future, the wait runs out: a return without a change."""
    await registry.register(service, f"{service}-1")
    current = await registry.index(service)
    seconds, got, count = await timed(registry, service, index=current + ahead, wait="300ms")
    assert 0.29 <= seconds < 30
    assert (got, count) == (current, 1)


async def test_a_change_ends_the_wait(registry: Registry, service: str) -> None:
    """First instance, second, weight, status, and the last one's end: each answers, with a higher index."""
    changes: list[Any] = [
        lambda: registry.register(service, f"{service}-1", Check=TTL),
        lambda: registry.register(service, f"{service}-2"),
        lambda: registry.set_weight(f"{service}-1", 5),
        lambda: registry.put(f"agent/check/warn/service:{service}-1"),
        lambda: registry.deregister(f"{service}-1"),
        lambda: registry.deregister(f"{service}-2"),
    ]
    for number, (change, instances) in enumerate(zip(changes, (1, 2, 2, 2, 1, 0), strict=True)):
        current = await registry.index(service)
        waiting = asyncio.create_task(timed(registry, service, index=current, wait="60s"))
        await asyncio.sleep(0.05)
        assert not waiting.done(), number
        await change()
        seconds, index, count = await waiting
        assert seconds < 30, number
        assert index > current, number
        assert count == instances, number


async def test_another_service_does_not_end_the_wait(registry: Registry, service: str) -> None:
    """A change elsewhere leaves the wait and the index alone."""
    await registry.register(service, f"{service}-1")
    current = await registry.index(service)
    waiting = asyncio.create_task(timed(registry, service, index=current, wait="500ms"))
    await registry.register(f"{service}-other", f"{service}-other-1")
    seconds, index, _ = await waiting
    assert seconds >= 0.49
    assert index == current


async def test_restarted_empty(own_registry: Registry, service: str) -> None:
    """Waiting queries break off; afterwards nothing is known, and the index is from the beginning."""
    for number in range(20):
        await own_registry.register(service, f"{service}-{number}")
    before = await own_registry.index(service)
    waiting = asyncio.create_task(timed(own_registry, service, index=before, wait="60s"))
    await asyncio.sleep(0.05)
    if isinstance(own_registry, Embedded):  # it is back so soon that a late question would find it
        agent = own_registry.agent

        async def asked() -> bool:
            return agent.waiting == 1

        await until(asked, within_s=30, what="the query waits")
    await own_registry.forget()
    with pytest.raises(httpx2.TransportError):
        await waiting
    assert await own_registry.health(service) == []
    assert 1 <= await own_registry.index(service) < before
