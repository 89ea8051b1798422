"""A whole server: what stands around its handlers, what it serves beside them, and its life from start to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

import lb
import lb.server
from lb.core.orca import decode
from lb.core.outcome import PUSHBACK_KEY, REPORT_KEY
from lb.server import Concurrency, Limits, Server
from lb.testing import Agent
from tests.server.conftest import Seen, Service, call, failed, health
from tests.support.consul import Embedded, Proxy
from tests.support.wait import eventually, until

END = signal.SIGUSR1
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def end() -> None:
    """Give this process a reason to end."""
    os.kill(os.getpid(), END)


async def test_a_server_in_a_test() -> None:
    """It serves from `start` to the end of the block: its own service, and health by name; a call is counted."""
    async with Server("test") as server:
        Service().add(server)
        assert (server.port, server.address, server.state) == (0, "", "made")
        await server.start()
        assert server.address == f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await call(channel, "Echo") == b"x"
            assert await health(channel) == await health(channel, "test.Service") == SERVING
        await asyncio.wait_for(server.meter.idle(), 30)  # the handler ends after its status
        assert (server.state, server.meter.calls_total) == ("serving", 1)
        with pytest.raises(RuntimeError, match="starts once"):
            await server.start()
    assert server.state == "ended"


async def test_ports_of_your_own() -> None:
    """With ``listen=None`` the first port that is added is the server's, and others may follow."""
    async with Server("test", listen=None) as server:
        Service().add(server)
        first, second = server.add_insecure_port("127.0.0.1:0"), server.add_insecure_port("127.0.0.1:0")
        await server.start()
        assert (server.port, server.address) == (first, f"127.0.0.1:{first}")
        for port in (first, second):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await call(channel, "Echo") == b"x"


async def test_a_socket_of_its_own(tmp_path: Path) -> None:
    """Not on the network at all."""
    async with Server("test", listen=None) as server:
        Service().add(server)
        server.add_insecure_port(f"unix:{tmp_path}/socket")
        await server.start()
        assert server.address == f"unix:{tmp_path}/socket"
        async with grpc.aio.insecure_channel(server.address) as channel:
            assert await call(channel, "Echo") == b"x"


async def test_clients_have_time_to_notice() -> None:
    """Between saying that it leaves and refusing, it serves: also a server that is not registered anywhere."""
    async with Server("test", drain_wait_s=300, drain_s=600) as server:
        Service().add(server)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        async with grpc.aio.insecure_channel(server.address) as channel:
            end()

            async def leaving() -> bool:
                return await health(channel) == NOT_SERVING

            await until(leaving, within_s=30, what="NOT_SERVING")
            assert await call(channel, "Echo") == b"x"
            end()
            await asyncio.wait_for(serving, 30)


async def test_a_life(agent: Agent) -> None:
    """It is in Consul when it is ready. A signal ends it: streams are told, calls end well, and Consul forgets it."""
    in_flight: list[int] = []

    async def flush() -> None:
        in_flight.append(server.meter.in_flight)

    register = {"id": "test-1", "weight": 3, "zone": "a", "consul": agent.address}
    async with Server("test", register=register, drain_wait_s=0) as server:
        service = Service()
        service.add(server)
        server.on_close(flush)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        async with (
            lb.aio.channel(f"consul://{agent.address}/test") as found,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            assert await call(found, "Echo", timeout=60, wait_for_ready=True) == b"x"
            (instance,) = (endpoint.id for endpoint in found.snapshot().endpoints)
            assert instance == "test-1"
            waiting, watching = call(channel, "Wait"), call(channel, "Watch")
            assert await watching.read() == b"first"
            await asyncio.wait_for(service.begun.wait(), 30)
            end()
            assert await watching.read() == b"last"
            assert server.state == "draining"
            service.go.set()
            assert await waiting == b"x"
            await asyncio.wait_for(serving, 30)
        assert (server.state, in_flight) == ("ended", [0])
        async with lb.aio.channel(f"consul://{agent.address}/test") as found:
            assert (await failed(call(found, "Echo", timeout=30))).code() is grpc.StatusCode.UNAVAILABLE


async def test_leaving_has_one_time_for_all(caplog: pytest.LogCaptureFixture) -> None:
    """A call and a callback that never end are cancelled, and the callback has had its own part of the time."""
    told: list[str] = []

    async def never() -> None:
        told.append(f"flush with {server.meter.in_flight} in flight")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("cancelled")

    async with Server("test", drain_s=1, drain_wait_s=0, flush_s=0.4) as server:
        service = Service()
        service.add(server)
        server.on_close(never)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        async with grpc.aio.insecure_channel(server.address) as channel:
            waiting = asyncio.ensure_future(failed(call(channel, "Wait")))
            await asyncio.wait_for(service.begun.wait(), 30)
            end()
            await asyncio.wait_for(serving, 30)
            assert (await waiting).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert told == ["flush with 0 in flight", "cancelled"]
        assert "test: the time for leaving has passed; calls that are cancelled: 1" in caplog.text


async def test_a_signal_before_it_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    """It ends at once: no client knows of it. The log says why."""
    caplog.set_level("INFO", "lb.server")

    async def broken() -> None:
        raise ConnectionError("away")

    async with Server("test", checks={"database": broken}, drain_wait_s=300, drain_s=600) as server:
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.unhealthy["database"] == "away")
        end()
        await asyncio.wait_for(serving, 30)
    assert caplog.messages[-1] == "test: ends before it is ready: SIGUSR1"


async def test_callbacks_leave_time_for_calls(caplog: pytest.LogCaptureFixture) -> None:
    """However long they may take: a stream that ends when it is told, and a call that ends then, are not cancelled."""
    caplog.set_level("INFO", "lb.server")
    flushed: list[bool] = []

    async def flush() -> None:
        flushed.append(True)

    async with Server("test", drain_s=60, drain_wait_s=0, flush_s=60) as server:
        Service().add(server)
        server.on_close(flush)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        async with grpc.aio.insecure_channel(server.address) as channel:
            watching = call(channel, "Watch")
            assert await watching.read() == b"first"
            end()
            assert await watching.read() == b"last"
            assert await watching.code() is grpc.StatusCode.OK
            await asyncio.wait_for(serving, 30)
    assert flushed == [True]
    assert "has passed" not in caplog.text
    assert caplog.messages[-1].startswith("test: has left, after ")


async def test_consul_hangs_while_it_leaves() -> None:
    """It has no more time than all else: the server ends, its callbacks called, while Consul still says nothing."""
    flushed: list[bool] = []

    async def flush() -> None:
        flushed.append(True)

    registry = Embedded()
    await registry.start()
    async with Proxy(registry) as proxy:
        register = {"id": "test-1", "consul": proxy.url}
        async with Server("test", register=register, drain_s=1, drain_wait_s=0, flush_s=0.4) as server:
            Service().add(server)
            server.on_close(flush)
            serving = asyncio.create_task(server.serve(signals=[END]))
            await eventually(lambda: server.state == "serving")
            await until(registry.instances, within_s=30, what="it is registered")
            answer = asyncio.Event()

            async def hang(what: str) -> None:
                await answer.wait()

            proxy.before = hang
            began = asyncio.get_running_loop().time()
            end()
            await asyncio.wait_for(serving, 30)
            assert asyncio.get_running_loop().time() - began < 6  # Consul alone would be given 16
            assert flushed == [True]
            answer.set()
            await until(lambda: _gone(registry), within_s=30, what="what was sent to Consul goes on")
            await eventually(lambda: not [task for task in asyncio.all_tasks() if "leaves" in task.get_name()])
    await registry.kill()


async def test_a_call_that_comes_too_late() -> None:
    """While it leaves Consul its port is still open: the call is refused so that another server is asked at once."""
    registry = Embedded()
    await registry.start()
    async with Proxy(registry) as proxy:
        register = {"id": "test-1", "consul": proxy.url}
        async with Server("test", register=register, drain_wait_s=0, trailers=[("id", "test-1")]) as server:
            service = Service()
            service.add(server)
            serving = asyncio.create_task(server.serve(signals=[END]))
            await eventually(lambda: server.state == "serving")
            await until(lambda: _there(registry), within_s=30, what="it is registered")
            asked, answer = asyncio.Event(), asyncio.Event()

            async def hang(what: str) -> None:
                if "deregister" in what:
                    asked.set()
                    await answer.wait()

            proxy.before = hang
            async with grpc.aio.insecure_channel(server.address) as channel:
                waiting = asyncio.ensure_future(call(channel, "Wait"))
                await asyncio.wait_for(service.begun.wait(), 30)
                end()
                await asyncio.wait_for(asked.wait(), 30)
                for method in ("Echo", "Watch"):
                    late = call(channel, method)
                    error = await failed(late if method == "Echo" else late.read())
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert sorted(error.trailing_metadata()) == [(PUSHBACK_KEY, "0"), ("id", "test-1")]
                assert await health(channel) == NOT_SERVING
                assert server.meter.in_flight == 1
                service.go.set()
                assert await waiting == b"x"
                answer.set()
                await asyncio.wait_for(serving, 30)
    await registry.kill()


async def _there(registry: Embedded) -> bool:
    return await registry.instances() != set()


async def _gone(registry: Embedded) -> bool:
    return await registry.instances() == set()


async def test_a_second_signal_ends_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the calls nor the callbacks are waited for."""
    told: list[str] = []

    async def flush() -> None:
        told.append("flush")

    async with Server("test", drain_s=300) as server:
        service = Service()
        service.add(server)
        server.on_close(flush)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        async with grpc.aio.insecure_channel(server.address) as channel:
            waiting = asyncio.ensure_future(failed(call(channel, "Wait")))
            await asyncio.wait_for(service.begun.wait(), 30)
            end()
            await eventually(lambda: server.state == "draining")
            end()
            await asyncio.wait_for(serving, 30)
            await waiting
    assert told == []
    assert "test: ends at once; calls that are cancelled: 1" in caplog.text


async def test_the_supervisors_end_is_a_reason() -> None:
    """End-of-file on the pipe that it was given."""
    reading, writing = os.pipe()
    async with Server("test", drain_wait_s=0) as server:
        serving = asyncio.create_task(server.serve(parent_fd=reading, signals=[]))
        await eventually(lambda: server.state == "serving")
        os.close(writing)
        await asyncio.wait_for(serving, 30)
    os.close(reading)


async def test_health_follows_what_it_depends_on(caplog: pytest.LogCaptureFixture) -> None:
    """It is ready once every check passes; one that raises, or hangs, makes it NOT_SERVING until it passes again."""
    caplog.set_level(logging.WARNING, "lb.server")
    wrong: list[Any] = [RuntimeError("no database today")]

    async def database() -> None:
        if wrong[-1] == "hangs":
            await asyncio.Event().wait()
        if wrong[-1]:
            raise wrong[-1]

    async def cache() -> None:
        pass

    async with Server("test", checks={"database": database, "cache": cache}) as server:
        Service().add(server)
        starting = asyncio.create_task(server.start())
        await eventually(lambda: server.unhealthy["database"] == "no database today")
        assert server.unhealthy["cache"] == ""
        async with grpc.aio.insecure_channel(server.address) as channel:

            async def says(status: int) -> bool:
                return await health(channel) == status == await health(channel, "test.Service")

            assert await says(NOT_SERVING)
            assert not starting.done()
            assert "test: not serving: database: no database today" in caplog.text
            wrong.append(None)
            await asyncio.wait_for(starting, 30)
            assert await says(SERVING)
            wrong.append("hangs")
            await until(lambda: says(NOT_SERVING), within_s=60, what="NOT_SERVING")
            assert server.unhealthy == {"database": "no answer within 2 s", "cache": ""}
            assert "test: not serving: database: no answer within 2 s" in caplog.text
            wrong.append(None)
            await until(lambda: says(SERVING), within_s=60, what="SERVING again")


async def test_what_stands_around_a_handler() -> None:
    """A refusal of the admission is seen by the interceptors around it, not by those within; health never is."""
    outer, inner = Seen(), Seen()
    limits = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))
    async with Server(
        "test", limits=limits, interceptors=[outer], inner=[inner], trailers=[("id", "test-1")]
    ) as server:
        service = Service()
        service.add(server)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            waiting = asyncio.ensure_future(call(channel, "Wait"))
            await asyncio.wait_for(service.begun.wait(), 30)
            error = await failed(call(channel, "Echo"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert dict([*error.trailing_metadata()]) == {PUSHBACK_KEY: "0", "id": "test-1"}
            assert await health(channel) == SERVING
            service.go.set()
            assert await waiting == b"x"
            assert await call(channel, "Echo") == b"x"
    business = [method for method in outer.calls if method.startswith("/test.")]
    assert business == ["/test.Service/Wait", "/test.Service/Echo", "/test.Service/Echo"]
    assert [method for method in inner.calls if method.startswith("/test.")] == business[:2]


@pytest.mark.parametrize("limits", [Limits(concurrency=Concurrency(limit=4, adaptive=False)), False])
async def test_it_reports_its_load(limits: Any) -> None:
    """The part of its places that was in use, and the loop's lag; without a limit, the processor's use alone."""
    async with Server("test", limits=limits) as server:
        service = Service()
        service.add(server)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            waiting = [asyncio.ensure_future(call(channel, "Wait")) for _ in range(2)]

            async def reported() -> lb.LoadReport | None:
                echo = call(channel, "Echo")
                await echo
                encoded = dict([*await echo.trailing_metadata()]).get(REPORT_KEY)
                report = decode(encoded) if encoded else None
                expected = pytest.approx(0.5, abs=0.15) if limits else 0.0
                return report if report and report.application_utilization == expected else None

            report = await until(reported, within_s=60, what="half of the places")
            assert report is not None
            assert 0.0 <= report.utilization["loop_lag"] < 1.0
            service.go.set()
            await asyncio.gather(*waiting)


async def test_draining_is_for_handlers() -> None:
    """Elsewhere it says so."""
    with pytest.raises(RuntimeError, match="is for handlers"):
        await lb.server.draining()


async def test_a_server_with_tls() -> None:
    """Credentials are those of its port."""
    from tests.support.tls import self_signed

    pair = self_signed("localhost")
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
    async with Server("test", listen="localhost:0", credentials=credentials) as server:
        Service().add(server)
        await server.start()
        roots = grpc.ssl_channel_credentials(pair.certificate)
        async with grpc.aio.secure_channel(f"localhost:{server.port}", roots) as channel:
            assert await call(channel, "Echo") == b"x"
