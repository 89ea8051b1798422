"""What an instance of the shop takes on: calls a second, of all and of each caller, and calls at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

import lb
from lb.core.outcome import PUSHBACK_KEY
from lb.server import Limits, Rate
from mesh.catalog.v1 import CatalogAsyncStub, CatalogStub, GetProductRequest
from mesh.runtime.v1 import DescribeRequest, RuntimeStub
from services.runtime.channels import connector
from services.runtime.errors import detail
from services.runtime.settings import Settings
from tests.services.conftest import Shop

MOKA = GetProductRequest(sku="moka-3")

Limited = Callable[..., Shop]


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Limited]:
    """Makes a shop with these settings."""
    async with AsyncExitStack() as stack:
        yield lambda **settings: Shop(stack, data=tmp_path / "data", **settings)


async def answers(stub: CatalogAsyncStub, calls: int) -> list[grpc.StatusCode]:
    """How so many calls end, one after the other."""
    return [await stub.GetProduct(MOKA).code() for _ in range(calls)]


async def test_more_a_second_is_refused_and_told_when_to_come_back(limited: Limited) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo, from the first call beyond the burst; tools are not counted."""
    shop = limited(rate=0.001, burst=2)
    channel = await shop.channel(await shop.start("catalog"))
    stub = CatalogStub(channel)
    assert await answers(stub, 3) == [grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetProduct(MOKA)
    told = detail(caught.value, RetryInfo)
    assert told is not None
    assert 900 < told.retry_delay.seconds <= 1000
    await RuntimeStub(channel).Describe(DescribeRequest())


async def test_each_caller_has_its_own_rate(limited: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is known by the name under which it made its channel; one that calls too often leaves others theirs."""
    shop = limited(caller_rate=0.001, caller_burst=1)
    instance = await shop.start("catalog")
    made = lb.aio.channel

    def here(_: str, **settings: Any) -> grpc.aio.Channel:
        return made(f"static:///{instance.address}", **{**settings, "retry": False})

    monkeypatch.setattr(lb.aio, "channel", here)
    ok, refused = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
    for caller in ("orders", "gateway"):
        async with connector(Settings(), caller)("catalog") as channel:
            assert await answers(CatalogStub(channel), 2) == [ok, refused], caller


async def test_more_at_once_is_refused_with_push_back(limited: Limited) -> None:
    """While one runs, others are sent away at once or after a moment in the queue, told to go elsewhere."""
    shop = limited(concurrency="1")
    stub = CatalogStub(await shop.channel(await shop.start("catalog")))
    faults = shop.faults["catalog"]
    faults.next("GetProduct", "hold")
    first = stub.GetProduct(MOKA)
    await faults.hanging.wait()
    for call in [stub.GetProduct(MOKA) for _ in range(3)]:
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(await call.trailing_metadata() or ())[PUSHBACK_KEY] == "0"
    faults.release.set()
    assert await first.code() is grpc.StatusCode.OK
    assert await answers(stub, 1) == [grpc.StatusCode.OK]


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, Limits(rate=Rate(1000.0, 2000.0), client_key="user-agent", timeout_s=60.0)),
        ({"rate": 50.0, "burst": 5.0}, Limits(rate=Rate(50.0, 5.0), client_key="user-agent", timeout_s=60.0)),
        ({"rate": 0.1}, Limits(rate=Rate(0.1, 1.0), client_key="user-agent", timeout_s=60.0)),
        (
            {"rate": 0.0, "caller_rate": 7.0},
            Limits(client_rate=Rate(7.0, 14.0), client_key="user-agent", timeout_s=60.0),
        ),
        (
            {"method_rates": "/a.B/C=5, /a.B/*=0.5", "rate": 0.0},
            Limits(
                method_rates={"/a.B/C": Rate(5.0, 10.0), "/a.B/*": Rate(0.5, 1.0)},
                client_key="user-agent",
                timeout_s=60.0,
            ),
        ),
        ({"rate": 0.0, "concurrency": "0"}, Limits(concurrency=None, client_key="user-agent", timeout_s=60.0)),
    ],
)
def test_what_settings_mean(settings: dict[str, Any], limits: Limits) -> None:
    """0 is any number; a burst that is not given is twice its rate; how many run at once, an instance finds out."""
    assert Settings(**settings).limits == limits
