"""What a server promises about its handlers and its end, as far as a client, Consul or a handler can tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

import lb.aio
from lb.server import Around, Behavior, Limits, Server, StartError, behavior_of
from lb.testing import Backend
from tests.server.conftest import Seen, Service, call, failed
from tests.support.consul import Embedded, Proxy
from tests.support.wait import eventually, until

END = signal.SIGUSR1


def end() -> None:
    """Give this process a reason to end."""
    os.kill(os.getpid(), END)


async def test_consul_is_told_before_it_is_left() -> None:
    """Maintenance first, so that clients notice while calls are still served; then the entry goes."""
    registry = Embedded()
    await registry.start()
    async with Proxy(registry) as proxy:
        register = {"id": "test-1", "consul": proxy.url}
        async with Server("test", register=register, drain_wait_s=0) as server:
            Service().add(server)
            serving = asyncio.create_task(server.serve(signals=[END]))
            await eventually(lambda: server.state == "serving")
            await until(registry.instances, within_s=30, what="it is registered")
            proxy.asked.clear()
            end()
            await asyncio.wait_for(serving, 30)
            told = [what.rpartition("/v1/agent/service/")[2].partition("/")[0] for what in proxy.asked if "PUT" in what]
            assert [word for word in told if word in ("maintenance", "deregister")] == ["maintenance", "deregister"]
    await registry.kill()


async def test_a_callback_that_fails_keeps_none_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    """The others are called, the log has the error, and the end is a good one."""
    called: list[str] = []

    async def breaks() -> None:
        called.append("breaks")
        raise RuntimeError("no collector")

    async def flush() -> None:
        called.append("flush")

    async with Server("test", drain_wait_s=0) as server:
        server.on_close(breaks)
        server.on_close(flush)
        serving = asyncio.create_task(server.serve(signals=[END]))
        await eventually(lambda: server.state == "serving")
        end()
        await asyncio.wait_for(serving, 30)
    assert sorted(called) == ["breaks", "flush"]
    assert "test: a callback of on_close failed" in caplog.text
    assert "no collector" in caplog.text


async def test_stop_has_the_time_that_it_is_given() -> None:
    """A call that never ends is cancelled when this time is over, whatever ``drain_s`` says."""
    async with Server("test", drain_s=3600, drain_wait_s=0) as server:
        service = Service()
        service.add(server)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            waiting = asyncio.ensure_future(failed(call(channel, "Wait")))
            await asyncio.wait_for(service.begun.wait(), 30)
            await asyncio.wait_for(server.stop(0.5), 30)
            await waiting
        assert server.state == "ended"


async def test_a_start_that_fails_closes_what_it_opened() -> None:
    """Its port is free at once: another server can have it, while the one that failed is still in its block."""
    async with Server("other") as other:
        await other.start()
        port = other.port
    async with Server("test", listen=f"127.0.0.1:{port}", register={"address": "not an address:0"}) as server:
        with pytest.raises(StartError, match=r"^address="):
            await server.start()
        assert server.state == "ended"
        async with Server("next", listen=f"127.0.0.1:{port}") as following:
            await following.start()


async def test_the_calls_of_a_handler_inherit() -> None:
    """The deadline and the priority of the call that it answers, with nothing said in the handler."""
    async with Backend() as backend, lb.aio.channel(f"static:///{backend.address}") as onward, Server("test") as server:

        async def forward(request: bytes, context: Any) -> bytes:
            echo: Any = onward.unary_unary("/lb.testing.Echo/UnaryUnary")
            answer: bytes = await echo(request)
            return answer

        handlers: dict[str, Any] = {"Forward": grpc.unary_unary_rpc_method_handler(forward)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            await call(channel, "Forward", timeout=60, metadata=[("lb-priority", "critical")])
        (received,) = backend.received
    assert received.timeout_s is not None
    assert 30 < received.timeout_s < 61
    assert received.metadata["lb-priority"] == "critical"


async def test_a_stream_ends_in_the_task_that_ran_it() -> None:
    """Also when its client leaves while it writes: what it holds is given back there, not by the garbage collector."""
    tasks: list[Any] = []

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        tasks.append(asyncio.current_task())
        try:
            while True:
                yield bytes(3 << 20)  # far more than a connection takes from a stream that nobody reads
        finally:
            tasks.append(asyncio.current_task())

    async with Server("test") as server:
        handlers: dict[str, Any] = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            watching = call(channel, "Watch")
            await eventually(lambda: tasks, "it runs")
            watching.cancel()
            await eventually(lambda: len(tasks) == 2, "it ends")
    assert tasks[0] is tasks[1]


async def test_interceptors_of_ones_own_stand_within_the_gate() -> None:
    """A call that comes too late does not reach them: nothing begins for it."""
    registry = Embedded()
    await registry.start()
    seen = Seen()
    async with Proxy(registry) as proxy:
        register = {"id": "test-1", "consul": proxy.url}
        async with Server("test", register=register, drain_wait_s=0, interceptors=[seen]) as server:
            Service().add(server)
            serving = asyncio.create_task(server.serve(signals=[END]))
            await eventually(lambda: server.state == "serving")
            await until(registry.instances, within_s=30, what="it is registered")
            asked, answer = asyncio.Event(), asyncio.Event()

            async def hang(what: str) -> None:
                if "deregister" in what:
                    asked.set()
                    await answer.wait()

            proxy.before = hang
            async with grpc.aio.insecure_channel(server.address) as channel:
                assert await call(channel, "Echo") == b"x"
                end()
                await asyncio.wait_for(asked.wait(), 30)
                assert (await failed(call(channel, "Echo"))).details() == "the instance is shutting down"
                answer.set()
                await asyncio.wait_for(serving, 30)
    await registry.kill()
    assert [method for method in seen.calls if method.startswith("/test.")] == ["/test.Service/Echo"]


async def never() -> None:
    """A check that never answers."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("turns", range(12))
async def test_closed_while_it_starts(turns: int) -> None:
    """The start and both closings end, at whatever step: the start raises, and the port is free."""
    server = Server("test", checks={"database": never})
    starting = asyncio.create_task(server.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing = [asyncio.create_task(server.close()) for _ in range(2)]
    with pytest.raises(
        RuntimeError, match=r"^server test: (it was closed before it was ready|a server starts once; .*)$"
    ):
        await asyncio.wait_for(starting, 30)
    await asyncio.wait_for(asyncio.gather(*closing), 30)
    assert server.state == "ended"
    if server.port:
        socket.create_server(("127.0.0.1", server.port)).close()


async def test_closed_while_its_checks_fail() -> None:
    """The start does not wait for them any more."""
    server = Server("test", checks={"database": never})
    starting = asyncio.create_task(server.start())
    await eventually(lambda: server.state == "not ready" and server.port)
    await asyncio.wait_for(server.close(), 30)
    with pytest.raises(RuntimeError, match="closed before it was ready"):
        await asyncio.wait_for(starting, 30)
    assert server.state == "ended"


async def test_closed_while_it_registers() -> None:
    """The start ends, and the registration that was under way is taken back."""
    registry = Embedded()
    await registry.start()
    async with Proxy(registry) as proxy:
        sent, go = proxy.hold("PUT /v1/agent/service/register")
        server = Server("test", register={"consul": proxy.url}, drain_wait_s=0)
        starting = asyncio.create_task(server.start())
        await asyncio.wait_for(sent.wait(), 30)
        closing = asyncio.create_task(server.close())
        await eventually(starting.done)
        go.set()
        await asyncio.wait_for(closing, 60)
        with pytest.raises(RuntimeError, match="closed before it was ready"):
            await starting
        assert await registry.instances() == set()
    await registry.kill()


async def test_closed_while_it_serves() -> None:
    """`serve` returns: it has nothing to serve any more."""
    server = Server("test")
    serving = asyncio.create_task(server.serve(signals=()))
    await eventually(lambda: server.state == "serving")
    await asyncio.wait_for(server.close(), 30)
    await asyncio.wait_for(serving, 30)


class Notes(Around):
    """An interceptor outside of admission that notes how often a call's task is asked to end, after its handler."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def note(self) -> None:
        """Note it."""
        task = asyncio.current_task()
        assert task is not None
        self.asked.append(task.cancelling())

    def around(self, method: str, handler: Any) -> Behavior:
        """The handler, and then a note."""
        behavior = behavior_of(handler)

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await behavior(request, context)
            finally:
                self.note()

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in behavior(request, context):
                    yield response
            finally:
                self.note()

        return stream if handler.response_streaming else unary


@pytest.mark.parametrize("method", ["Wait", "Watch"])
async def test_a_call_that_took_too_long_is_not_being_cancelled(method: str) -> None:
    """Its handler was, and that is over: interceptors around it may still wait, within `asyncio.timeout` as well."""
    notes = Notes()
    async with Server("test", limits=Limits(timeout_s=0.05), interceptors=[notes]) as server:
        Service().add(server)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            late = call(channel, method)
            if method == "Wait":
                await failed(late)
            else:
                assert [response async for response in read_until_it_fails(late)] in ([], [b"first"])
            assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: notes.asked)
    assert notes.asked == [0]


async def read_until_it_fails(stream: Any) -> AsyncIterator[bytes]:
    """The responses of a stream that ends with an error."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for response in stream:
            yield response
