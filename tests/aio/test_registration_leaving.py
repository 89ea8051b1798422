"""Registration: what was sent to an agent is left there again, whatever happened to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from lb.testing import Agent
from tests.support.consul import Consul, Embedded, Proxy, Registry
from tests.support.doors import stop_accepting
from tests.support.instance import Instance, register, status
from tests.support.wait import until

REGISTER = "PUT /v1/agent/service/register"


def at(*urls: str) -> Registry:
    """The HTTP API of the first of these agents; a registration gets them all."""
    found = Registry()
    found.url = ",".join(urls)
    return found


async def gone(registry: Registry, id: str) -> None:
    """Waits until the agent does not know the instance."""

    async def left() -> bool:
        return id not in await registry.instances()

    await until(left, within_s=30, what=f"{id} is gone", every_s=0.01)


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The URL of an agent that accepts connections and never answers."""
    connections: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_accepting(server)
        server.close()
        for writer in connections:
            writer.close()
        await server.wait_closed()


async def test_cancelled_at_any_moment_of_the_start(registry: Registry, service: str, instance: Instance) -> None:
    """Nothing stays in Consul, however far the start had come."""
    for step in range(40):
        mine = register(registry, service, instance, check=None, id=f"{service}-{step}")
        entering = asyncio.create_task(mine.__aenter__())
        await asyncio.sleep(step / 4000)
        entering.cancel()
        if not (await asyncio.wait([entering]))[0].pop().cancelled():
            await mine.close()
    assert await registry.health(service) == []


def held() -> tuple[asyncio.Event, asyncio.Event, Callable[[str], Awaitable[None]]]:
    """A proxy's hook that holds a registration: it is there, it may go on, and the hook."""
    here, go = asyncio.Event(), asyncio.Event()

    async def hold(what: str) -> None:
        if what == REGISTER:
            here.set()
            await go.wait()

    return here, go, hold


@pytest.mark.parametrize("forwarded", [False, True])
async def test_cancelled_while_the_registration_is_on_its_way(
    registry: Registry, service: str, instance: Instance, forwarded: bool
) -> None:
    """Sent, and the agent has not begun with it or has not answered: the caller is cancelled, and it is left."""
    async with Proxy(registry) as proxy:
        here, go, hold = held()
        if forwarded:
            proxy.after = hold
        else:
            proxy.before = hold
        mine = register(at(proxy.url), service, instance)
        entering = asyncio.create_task(mine.__aenter__())
        await here.wait()
        entering.cancel()
        await asyncio.sleep(0.05)
        entering.cancel()  # and again, while it leaves
        await asyncio.wait([entering])
        assert (mine.id in await registry.instances()) is forwarded
        go.set()
        await mine.close()
        assert await registry.instances() & {mine.id} == set()
        assert proxy.asked.count(REGISTER) == 1


@pytest.mark.parametrize("close_first", [False, True])
async def test_an_agent_that_answers_writes_slowly(
    embedded_consul: Embedded, service: str, instance: Instance, close_first: bool
) -> None:
    """Its answers come after the patience of 2 s: the instance is drained and deregistered all the same."""
    registry = embedded_consul
    async with Proxy(registry) as proxy:

        async def slowly(what: str) -> None:
            if what.startswith("PUT"):
                await asyncio.sleep(2.2)

        proxy.after = slowly
        mine = register(at(proxy.url), service, instance, check_interval_s=0.1)
        await mine.__aenter__()
        assert not mine.registered
        if not close_first:
            await mine.drain()
            assert await registry.maintenance(mine.id) is not None
        await mine.close()
        assert mine.id not in await registry.instances()
        assert proxy.asked.count(REGISTER) == 1, "it is not sent again while the first may still be answered"


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_registration_whose_line_broke(
    registry: Registry, service: str, instance: Instance, arrives: bool
) -> None:
    """The line broke before the answer, and it arrives a moment later or was never read: nothing stays behind."""
    async with Proxy(registry) as proxy:
        late: list[asyncio.Task[None]] = []

        async def broken(what: str) -> None:
            if what == REGISTER:
                if arrives:

                    async def arrive() -> None:
                        await asyncio.sleep(0.3)
                        await registry.register(service, f"{service}-1", port=instance.port)

                    late.append(asyncio.create_task(arrive()))
                raise ConnectionResetError

        proxy.before = broken
        mine = register(at(proxy.url), service, instance, reassert_s=60)
        await mine.__aenter__()
        assert not mine.registered
        await mine.close()
        await asyncio.gather(*late)
        assert mine.id not in await registry.instances()


async def test_a_drain_during_the_start(registry: Registry, service: str, instance: Instance) -> None:
    """SIGTERM while the start waits for the agent's answer: what was sent is drained, then left."""
    async with Proxy(registry) as proxy:
        here, go, hold = held()
        proxy.after = hold
        mine = register(at(proxy.url), service, instance)
        entering = asyncio.create_task(mine.__aenter__())
        await here.wait()
        draining = asyncio.create_task(mine.drain())
        await asyncio.sleep(0.05)
        go.set()
        await draining
        assert await registry.maintenance(mine.id) is not None
        await mine.close()
        await entering
        assert mine.id not in await registry.instances()


async def test_a_weight_set_while_it_leaves_registers_nothing(
    registry: Registry, service: str, instance: Instance
) -> None:
    """Whatever runs beside leaving puts nothing back."""
    async with register(registry, service, instance) as mine:
        setting = [asyncio.create_task(mine.set_weight(weight)) for weight in range(2, 12)]
        await asyncio.sleep(0.01)
        await mine.close()
        await asyncio.gather(*setting)
        assert mine.id not in await registry.instances()


async def test_the_caller_of_close_is_cancelled(registry: Registry, service: str, instance: Instance) -> None:
    """Leaving goes on."""
    mine = register(registry, service, instance)
    await mine.__aenter__()
    closing = asyncio.create_task(mine.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await gone(registry, mine.id)
    await mine.close()


async def test_leaving_while_consul_is_away_is_bounded(service: str, instance: Instance) -> None:
    """Drain and close neither raise nor take long."""
    registry = Embedded()
    await registry.start()
    async with register(registry, service, instance) as mine:
        await registry.kill()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await mine.drain()
        await mine.close()
        assert loop.time() - began < 10


async def test_leaving_while_consul_hangs_is_bounded(service: str, instance: Instance) -> None:
    """The same when Consul accepts and never answers."""
    async with hanging() as url:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with register(at(url), service, instance) as mine:
            assert loop.time() - began < 15
            began = loop.time()
            await mine.drain()
        assert loop.time() - began < 30


# Several agents


async def test_second_agent_takes_over(service: str, instance: Instance) -> None:
    """Of several agents the next takes over, with all that was changed; the first is left when it is back."""
    async with Agent() as first, Agent(node="other") as second:
        one, two = at(first.url), at(second.url)
        async with register(at(first.url, second.url), service, instance) as mine:
            await status(one, service, "passing")
            assert await two.health(service) == []
            await one.set_weight(mine.id, 7)
            await one.put(f"agent/service/maintenance/{mine.id}", enable="true", reason="by hand")
            await mine.set_weight(8)
            await first.stop()
            await status(two, service, "passing")
            assert await two.maintenance(mine.id) == "by hand"
            await first.start()
            await gone(one, mine.id)
            known = (await two.knows(mine.id) or {})["Service"]
            assert known["Weights"]["Passing"] == 8
        assert await two.health(service) == []


@pytest.mark.parametrize("kind", ["dead", "hanging"])
async def test_each_agent_is_left_by_itself(service: str, instance: Instance, kind: str) -> None:
    """It had moved to the second when the first died or hung: the second is drained and left, at once."""
    first = Agent()
    await first.start()
    async with Agent(node="other") as second:
        one, two = at(first.url), at(second.url)
        async with Proxy(one) as proxy:
            mine = register(at(proxy.url, second.url), service, instance)
            await mine.__aenter__()
            await status(one, service, "passing")
            for_ever = asyncio.Event()

            async def away(what: str) -> None:
                if kind == "dead":
                    raise ConnectionResetError
                await for_ever.wait()

            proxy.before = away
            await status(two, service, "passing")
            draining = asyncio.create_task(mine.drain())

            async def drained() -> bool:
                return await two.maintenance(mine.id) is not None

            await until(drained, within_s=30, what="the second is drained", every_s=0.01)
            assert kind == "dead" or not draining.done(), "the first is still being waited for"
            await draining
            closing = asyncio.create_task(mine.close())
            await gone(two, mine.id)
            assert kind == "dead" or not closing.done(), "the first is still being waited for"
            await closing
            for_ever.set()
    await first.stop()


@pytest.mark.consul
async def test_a_real_cluster_of_two_agents(two_nodes: tuple[Consul, Consul], service: str, instance: Instance) -> None:
    """Registered at one node, then, with that one cut off, at the other; both entries go, and one endpoint is seen."""
    server, client = two_nodes
    async with Proxy(client) as proxy:
        mine = register(at(proxy.url, server.url), service, instance)
        async with mine:
            await status(server, service, "passing")
            (entry,) = await server.health(service)
            assert entry["Node"]["Node"] == "other"

            async def away(what: str) -> None:
                raise ConnectionResetError

            back, proxy.before = proxy.before, away

            async def both() -> bool:
                return {e["Node"]["Node"] for e in await server.health(service)} == {"other", "test"}

            await until(both, within_s=30, what="it is registered at both")
            proxy.before = back

            async def moved() -> bool:
                return {e["Node"]["Node"] for e in await server.health(service)} == {"test"}

            await until(moved, within_s=30, what="the first is left")
            proxy.before = away
        assert await server.health(service) == []
