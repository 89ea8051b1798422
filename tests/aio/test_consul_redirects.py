"""An agent that redirects: it is an error that says where to, and nothing is sent there, least of all the token."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from lb.aio import Registration, registration
from lb.aio.consul import ConsulError, Registry
from lb.aio.resolvers.consul import ConsulResolver
from lb.core.target import ConsulTarget
from tests.aio.conftest import Recorder
from tests.support.consul import Embedded, Proxy

STATUSES = {
    301: web.HTTPMovedPermanently,
    302: web.HTTPFound,
    303: web.HTTPSeeOther,
    307: web.HTTPTemporaryRedirect,
    308: web.HTTPPermanentRedirect,
}


class Agents:
    """An agent that can be told to redirect, and the one that it redirects to."""

    def __init__(self, first: Proxy, other: Proxy) -> None:
        self._first = first
        self._other = other
        self.url = first.url

    @property
    def asked_elsewhere(self) -> list[str]:
        """What came to the other agent."""
        return self._other.asked

    def redirect(self, of: str, status: int = 307, after: int = 0) -> None:
        """From now on, requests whose method and path begin with ``of`` are redirected, but for the first ``after``."""
        left = after

        async def answer(what: str) -> None:
            nonlocal left
            if what.startswith(of):
                left -= 1
                if left < 0:
                    raise STATUSES[status](self._other.url + what.partition(" ")[2])

        self._first.before = answer

    def words(self, path: str, status: int = 307) -> str:
        """What the error says."""
        agent = self.url.removeprefix("http://")
        return (
            f"consul {agent}: HTTP {status}: it redirects to {self._other.url}/v1/{path}, which is"
            " not followed, because the token would be sent there; name the right address as the agent's"
        )


@pytest.fixture
async def agents(embedded_consul: Embedded, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agents]:
    """Both of them pass requests on to one agent; the environment has a token."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "secret")
    async with Proxy(embedded_consul) as first, Proxy(embedded_consul) as other:
        yield Agents(first, other)


def register(agents: Agents, service: str) -> Registration:
    """An instance without a check, which nobody looks at again by itself."""
    return registration(service, address="127.0.0.1:7", id="one", check=None, consul=agents.url, reassert_s=3600)


@pytest.mark.parametrize("status", STATUSES)
async def test_a_question(agents: Agents, service: str, status: int) -> None:
    """By each status that redirects."""
    agents.redirect("GET", status)
    asked = Registry(agents.url, timeout_s=30)
    with pytest.raises(ConsulError) as caught:
        await asked.instances(service)
    await asked.close()
    assert str(caught.value) == agents.words(f"health/service/{service}", status)
    assert caught.value.status == status
    assert agents.asked_elsewhere == []


@pytest.mark.parametrize("answered", [0, 1])
async def test_a_watch(
    agents: Agents, service: str, listener: Recorder, embedded_consul: Embedded, answered: int
) -> None:
    """Its first question, and one that waits for a change: what was known stays."""
    await embedded_consul.register(service, "one")
    agents.redirect("GET", after=answered)
    host = agents.url.removeprefix("http://")
    resolver = ConsulResolver(ConsulTarget("consul:///x", service, agent=host), wait_s=0.1)
    resolver.start(listener)
    await listener.until(lambda seen: seen.errors)
    await resolver.close()
    assert listener.errors[0] == agents.words(f"health/service/{service}")
    assert len(listener.endpoints or ()) == answered
    assert agents.asked_elsewhere == []


@pytest.mark.parametrize(
    "of", ["GET /v1/agent/health/service/id/one", "PUT /v1/agent/service/register"], ids=["look", "register"]
)
async def test_registering(agents: Agents, service: str, caplog: pytest.LogCaptureFixture, of: str) -> None:
    """It is tried again, as when Consul is away, and the log says why."""
    agents.redirect(of)
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(agents, service) as mine:
            assert not mine.registered
    assert f"one: {agents.words(of.partition('/v1/')[2])}; trying again" in caplog.messages
    assert agents.asked_elsewhere == []


async def test_leaving(
    agents: Agents, service: str, caplog: pytest.LogCaptureFixture, embedded_consul: Embedded
) -> None:
    """Maintenance and deregistration: the log says that they could not be done, and why."""
    async with register(agents, service) as mine:
        assert mine.registered
        agents.redirect("PUT")
        with caplog.at_level(logging.WARNING, "lb.consul"):
            await mine.drain()
            await mine.close()
    assert [words.partition(": consul ")[2] for words in caplog.messages] == [
        agents.words(f"agent/service/{what}/one").removeprefix("consul ") for what in ("maintenance", "deregister")
    ]
    assert await embedded_consul.instances() == {"one"}
    assert agents.asked_elsewhere == []
