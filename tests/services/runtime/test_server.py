"""A server of the mesh: health, reflection, Describe, registration, and how it leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lb.testing import Agent
from mesh.catalog.v1 import CatalogStub, GetProductRequest
from mesh.orders.v1 import OrdersStub, PriceBasketRequest
from mesh.runtime.v1 import DescribeRequest, RuntimeStub, ServingState
from services.runtime.host import Host, Service
from tests.services.conftest import BUILDS, Shop, refused
from tests.services.processes import health, nobody, running
from tests.support.consul import Embedded, Proxy
from tests.support.wait import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", sorted(BUILDS))
async def test_every_server_tells_about_itself(shop: Shop, name: str) -> None:
    """Each service is healthy under its name, found by reflection, and described; none of that counts as a call."""
    for needed in ("catalog", "inventory", "payments", "orders"):
        await shop.start(needed)
    channel = await shop.channel(shop.instances[name])
    full = f"mesh.{name}.v1.{name.capitalize()}"
    assert await health(channel) == SERVING
    assert await health(channel, full) == SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    reflecting = stub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in reflecting.ServerReflectionInfo(iter([request]))]
    listed = {service.name for service in answer.list_services_response.service}
    assert {full, "mesh.runtime.v1.Runtime", "grpc.health.v1.Health"} <= listed
    everything: Any = health_pb2_grpc.HealthStub(channel)
    every: Any = health_pb2
    statuses = (await everything.List(every.HealthListRequest())).statuses
    assert {known: answer.status for known, answer in statuses.items()} == {"": SERVING, full: SERVING}
    about = await RuntimeStub(channel).Describe(DescribeRequest())
    assert (about.service, about.instance_id, about.pid) == (name, f"{name}-1", os.getpid())
    assert (about.weight, about.state) == (1, ServingState.SERVING_STATE_SERVING)
    assert about.address == shop.instances[name].address
    assert [(dependency.name, dependency.healthy) for dependency in about.dependencies] == [("database", True)]
    assert (about.calls_total, about.in_flight) == (0, 0)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_as_tools_use_it(shop: Shop, version: str) -> None:
    """Both versions of reflection list the services; a service, a method, a message and reflection itself are found."""
    channel = await shop.channel(await shop.start("catalog"))
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    symbols = [
        "mesh.catalog.v1.Catalog",
        "mesh.catalog.v1.Catalog.GetProduct",
        "mesh.catalog.v1.Product",
        "mesh.catalog.v1.Product.sku",
        f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo",
        "mesh.catalog.v1.Catalog.NoSuchMethod",
        "no.such.Thing",
    ]
    request = reflection_pb2.ServerReflectionRequest
    asked = [request(list_services=""), *(request(file_containing_symbol=symbol) for symbol in symbols)]
    listed, *found = [answer async for answer in ask(iter(asked))]
    names = {service.name for service in listed.list_services_response.service}
    assert {"mesh.catalog.v1.Catalog", "grpc.reflection.v1.ServerReflection"} <= names
    files = [answer.file_descriptor_response.file_descriptor_proto[0] for answer in found[:5]]
    names_of = [FileDescriptorProto.FromString(file).name for file in files]
    assert names_of[:4] == ["mesh/catalog/v1/catalog.proto"] * 4
    assert names_of[4].endswith("reflection.proto")
    assert [answer.error_response.error_code for answer in found[5:]] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2


async def test_calls_are_counted(shop: Shop) -> None:
    """Describe counts business calls, failed ones too."""
    channel = await shop.channel(await shop.start("catalog"))
    await CatalogStub(channel).GetProduct(GetProductRequest(sku="moka-3"))
    await refused(CatalogStub(channel).GetProduct(GetProductRequest(sku="")))
    about = await RuntimeStub(channel).Describe(DescribeRequest())
    assert about.calls_total == 2


async def test_health_follows_the_dependencies(shop: Shop) -> None:
    """A dependency that fails makes the instance NOT_SERVING and says why; when it is back, so is the instance."""
    broken = False

    async def check() -> None:
        if broken:
            raise RuntimeError("no database today")

    async def build(host: Host) -> Service:
        nothing = grpc.method_handlers_generic_handler("test.Service", {})
        return Service(add=lambda server: server.add_generic_rpc_handlers([nothing]), checks={"database": check})

    channel = await shop.channel(await shop.start("test", build=build))
    assert await health(channel, "test.Service") == SERVING
    broken = True

    async def says(status: int) -> bool:
        return await health(channel) == status == await health(channel, "test.Service")

    await until(lambda: says(NOT_SERVING), within_s=60, what="NOT_SERVING")
    about = await RuntimeStub(channel).Describe(DescribeRequest())
    assert about.state == ServingState.SERVING_STATE_NOT_READY
    assert [(found.healthy, found.message) for found in about.dependencies] == [(False, "no database today")]
    broken = False
    await until(lambda: says(SERVING), within_s=60, what="SERVING again")


async def test_sigterm_drains(agent: Agent, tmp_path: Path) -> None:
    """SIGTERM: what is in flight ends well, who has not heard is still served, then the exit status is 0."""
    async with (
        running("catalog", agent, tmp_path) as catalog,
        nobody(agent, "inventory", "payments"),
        running("orders", agent, tmp_path, MESH_DRAIN_WAIT_S="3") as orders,
        grpc.aio.insecure_channel(orders.address) as channel,
    ):
        stub = OrdersStub(channel)
        call = stub.PriceBasket(timeout=60)
        await call.write(PriceBasketRequest(sku="moka-3", quantity=1))
        assert await call.read()
        orders.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return await health(channel) == NOT_SERVING

        await until(draining, within_s=60, what="NOT_SERVING")
        late = stub.PriceBasket(timeout=60)
        await late.write(PriceBasketRequest(sku="moka-3", quantity=1))
        assert await late.read()
        await late.done_writing()
        assert await late.read() is grpc.aio.EOF
        about = await RuntimeStub(channel).Describe(DescribeRequest())
        assert (about.state, about.in_flight) == (ServingState.SERVING_STATE_DRAINING, 1)
        await call.write(PriceBasketRequest(sku="moka-3", quantity=2))
        assert await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await orders.ended() == 0
        assert orders.events.index("draining") < len(orders.events) - 1
        assert "orders-1: deregistered" in orders.events
        catalog.process.send_signal(signal.SIGINT)
        assert await catalog.ended() == 0


@pytest.mark.parametrize("answered", [True, False])
async def test_sigterm_while_it_registers(tmp_path: Path, answered: bool) -> None:
    """Its registration is on its way, or was answered just now: it is drained, then deregistered; the exit is clean."""
    registry = Embedded()
    await registry.start()
    async with Proxy(registry) as proxy:
        sent, go = proxy.hold("PUT /v1/agent/service/register")
        if answered:
            go.set()
        async with running("catalog", proxy, tmp_path, ready=False, MESH_DRAIN_WAIT_S="0") as catalog:
            await asyncio.wait_for(sent.wait(), 90)
            catalog.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            go.set()
            assert await catalog.ended() == 0
        assert await registry.instances() == set()
        writes = [what.split("/")[-2] for what in proxy.asked if what.startswith("PUT")]
        assert writes == ["service", "maintenance", "deregister"]
    await registry.kill()


async def test_the_drain_ends(agent: Agent, tmp_path: Path) -> None:
    """A call that does not end is cancelled when the drain's time is over, and the exit status is 0 all the same."""
    async with (
        nobody(agent, "catalog", "inventory", "payments"),
        running("orders", agent, tmp_path, MESH_DRAIN_WAIT_S="0", MESH_DRAIN_S="0.5") as orders,
        grpc.aio.insecure_channel(orders.address) as channel,
    ):
        call = OrdersStub(channel).PriceBasket(timeout=60)
        await call.write(PriceBasketRequest(sku="no-such-thing", quantity=0))
        assert await call.read()
        orders.process.send_signal(signal.SIGTERM)
        assert await orders.ended() == 0
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_second_signal_cuts_the_drain_short(agent: Agent, tmp_path: Path) -> None:
    """Who signals twice does not wait for the drain."""
    async with (
        nobody(agent, "catalog", "inventory", "payments"),
        running("orders", agent, tmp_path, MESH_DRAIN_S="300") as orders,
        grpc.aio.insecure_channel(orders.address) as channel,
    ):
        call = OrdersStub(channel).PriceBasket(timeout=300)
        await call.write(PriceBasketRequest(sku="no-such-thing", quantity=0))
        assert await call.read()
        orders.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return await health(channel) == NOT_SERVING

        await until(draining, within_s=60, what="NOT_SERVING")
        orders.process.send_signal(signal.SIGTERM)
        assert await orders.ended() == 0
        call.cancel()


async def test_the_supervisors_end_is_noticed(agent: Agent, tmp_path: Path) -> None:
    """When the other end of the pipe is closed, however the supervisor died, the service drains and ends."""
    async with running("catalog", agent, tmp_path, MESH_DRAIN_WAIT_S="0") as catalog:
        os.close(catalog.supervisor_fd)
        catalog.supervisor_fd = -1
        assert await catalog.ended() == 0
        assert {"because": "the supervisor is gone"}.items() <= catalog.lines[catalog.events.index("stopping")].items()


async def test_registration(agent: Agent, tmp_path: Path) -> None:
    """An instance is in Consul with its weight, zone, pid and version, passing, and gone after its end."""

    async def seen() -> Any:
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"{agent.url}/v1/health/service/catalog?passing=1")
            return answer.json()

    async with running("catalog", agent, tmp_path, MESH_WEIGHT="5", MESH_ZONE="a", MESH_DRAIN_WAIT_S="0") as catalog:
        (entry,) = await until(seen, within_s=60, what="passing in Consul")
        service = entry["Service"]
        assert (service["ID"], service["Weights"]["Passing"]) == ("catalog-1", 5)
        assert f"{service['Address']}:{service['Port']}" == catalog.address
        assert service["Meta"]["zone"] == "a"
        assert service["Meta"]["pid"] == str(catalog.process.pid)
        assert service["Meta"]["version"]
        catalog.process.terminate()
        assert await catalog.ended() == 0
    assert await seen() == []
