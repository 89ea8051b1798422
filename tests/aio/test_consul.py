"""`lb.aio.consul.Registry`: all instances of a service, asked once, by a real Consul and the embedded one."""

from __future__ import annotations

import pytest

from lb.aio.consul import ConsulError, Registry
from tests.support.consul import Registry as Running

NOBODY = "127.0.0.1:1"


async def test_healthy_or_not(registry: Running, service: str) -> None:
    """Each instance comes with its status, a passing one as usable; a service that nobody knows has none."""
    for id, status in (("a", "passing"), ("b", "critical")):
        await registry.register(service, id, "10.0.0.7", 80, weight=3, Check={"TTL": "60s", "Status": status})
    asked = Registry(registry.address, timeout_s=30)
    try:
        found = {each.endpoint.id: each for each in await asked.instances(service)}
        assert {id: (each.status, each.usable) for id, each in found.items()} == {
            "a": ("passing", True),
            "b": ("critical", False),
        }
        assert (found["a"].endpoint.address, found["a"].endpoint.weight) == ("10.0.0.7:80", 3)
        assert await asked.instances(f"no-{service}") == ()
    finally:
        await asked.close()


async def test_the_first_agent_that_answers(registry: Running, service: str) -> None:
    """An agent that is away costs its part of the time; when all are, the error names the last one."""
    asked = Registry(f"{NOBODY},{registry.address}", timeout_s=60)
    assert await asked.instances(service) == ()
    await asked.close()
    asked = Registry(NOBODY)
    with pytest.raises(ConsulError, match=f"consul {NOBODY}: cannot connect"):
        await asked.instances(service)
    await asked.close()


def test_a_wrong_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is made, before anything is asked: by its argument or by its variable."""
    with pytest.raises(ValueError, match=r"^consul: "):
        Registry("ftp://x")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "ftp://x")
    with pytest.raises(ValueError, match=r"^CONSUL_HTTP_ADDR: "):
        Registry()
