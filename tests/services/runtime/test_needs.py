"""A service waits at its start until it has seen each service that it calls."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

import lb
from lb.server import Server, live
from services.runtime.host import Host, Service
from services.runtime.instance import Instance
from services.runtime.settings import Settings
from tests.services.processes import health
from tests.support.ports import free_ports
from tests.support.wait import eventually, until

SERVING, NOT_SERVING = 1, 2
PATIENT_S = 300.0
WAITS = "test: not serving: services: no instance of needed yet"


class World:
    """An instance that calls a service ``needed`` on a port where nobody listens yet."""

    def __init__(self, data: Path, patience_s: float) -> None:
        with free_ports(1) as (self.port,):
            pass
        self.begun = 0
        self.instance = Instance(
            "test", self.build, Settings(data=data), register=False, connect=self.connect, patience_s=patience_s
        )
        self.asked = asyncio.Event()

    def connect(self, service: str) -> grpc.aio.Channel:
        """The way to the service that it needs."""
        assert service == "needed"
        self.asked.set()
        return lb.aio.channel(f"static:///127.0.0.1:{self.port}", health="")

    async def build(self, host: Host) -> Service:
        """A service that calls another one."""
        await host.channel("needed")
        nothing: Any = grpc.method_handlers_generic_handler("test.Service", {})
        return Service(add=lambda server: server.add_generic_rpc_handlers([nothing]), begin=self.begin)

    def begin(self) -> None:
        """What it does besides answering calls."""
        self.begun += 1

    def needed(self) -> Server:
        """The service that it calls."""
        return Server("needed", listen=f"127.0.0.1:{self.port}")


async def test_it_waits_before_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Until then it is NOT_SERVING, has begun nothing, and one warning says for whom it waits."""
    world = World(tmp_path, patience_s=0)
    starting = asyncio.create_task(world.instance.start())
    try:
        await eventually(lambda: WAITS in caplog.messages)
        async with grpc.aio.insecure_channel(world.instance.address) as channel:
            assert await health(channel) == NOT_SERVING == await health(channel, "test.Service")
            assert not starting.done()
            assert world.begun == 0
            async with world.needed() as needed:
                await needed.start()
                await asyncio.wait_for(starting, 60)
                assert await health(channel) == SERVING
                assert world.begun == 1

            async def goes_on() -> bool:
                return await health(channel) == SERVING

            await until(goes_on, within_s=10, what="SERVING, although what it had seen is gone")
        assert caplog.messages.count(WAITS) == 1
    finally:
        starting.cancel()
        await world.instance.close()


async def test_what_starts_with_it_is_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It waits for some seconds before it says so."""
    world = World(tmp_path, patience_s=PATIENT_S)
    starting = asyncio.create_task(world.instance.start())
    try:
        await asyncio.wait_for(world.asked.wait(), 60)
        async with world.needed() as needed:
            await needed.start()
            assert (world.begun, world.instance.address) == (0, "")
            await asyncio.wait_for(starting, 60)
            assert world.begun == 1
        assert not [line for line in caplog.messages if "not serving" in line]
    finally:
        starting.cancel()
        await world.instance.close()


@pytest.mark.parametrize("patience_s", [0.0, PATIENT_S])
async def test_a_signal_ends_the_wait(tmp_path: Path, patience_s: float) -> None:
    """At once: it has taken no call, and has begun nothing."""
    world = World(tmp_path, patience_s)
    living = asyncio.create_task(live(world.instance, signals=[signal.SIGUSR1], leave_s=None))
    await asyncio.wait_for(world.asked.wait(), 60)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(living, 30)
    assert world.begun == 0
