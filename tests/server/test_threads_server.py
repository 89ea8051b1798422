"""A whole server with threads: ready, registered, serving, draining, ended."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import lb
from lb.core.orca import KEYS
from lb.server import Behavior, Concurrency, Limits, LoadReporter, Rate, StartError, cost
from lb.server.threads import Admission, Server, draining
from lb.server.threads.leaving import Gate
from lb.shared.handlers import Handlers, behavior_of
from lb.testing import Agent
from tests.support.consul import Embedded, Proxy
from tests.support.wait import eventually, until

WITHIN_S = 60.0


class Service:
    """An echo, a method that waits for ``go``, and a stream that lasts until its server drains."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()

    def echo(self, request: bytes, context: Any) -> bytes:
        """The request."""
        cost("rows", 3)
        return request

    def wait(self, request: bytes, context: Any) -> bytes:
        """The request, later."""
        self.begun.set()
        assert self.go.wait(WITHIN_S)
        return request

    def watch(self, request: bytes, context: Any) -> Iterator[bytes]:
        """News until the server drains."""
        leaving = draining()
        yield b"first"
        assert leaving.wait(WITHIN_S)
        yield b"last"

    def add(self, server: grpc.Server) -> None:
        """Serve it there."""
        handlers: dict[str, Any] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])


def unary(channel: grpc.Channel, method: str) -> Any:
    """A multicallable of the service."""
    return channel.unary_unary(f"/test.Service/{method}")


def code(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    """How a call ends."""
    found: grpc.StatusCode = unary(channel, method).future(b"x", timeout=WITHIN_S).code()
    return found


def health(channel: grpc.Channel, service: str = "") -> int:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WITHIN_S).status)


async def test_leaving_tells_streams_and_finishes_calls() -> None:
    """A stream ends by itself, a call in flight is answered, and a new one is refused with push-back 0."""
    service = Service()
    with Server("test", drain_wait_s=0.0) as server:
        service.add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            assert health(channel) == health(channel, "test.Service") == health_pb2.HealthCheckResponse.SERVING
            assert unary(channel, "Echo")(b"x", timeout=WITHIN_S) == b"x"
            watch: Any = channel.unary_stream("/test.Service/Watch")
            stream = watch(b"", timeout=WITHIN_S)
            assert next(stream) == b"first"
            waiting = unary(channel, "Wait").future(b"y", timeout=WITHIN_S)
            assert service.begun.wait(WITHIN_S)
            ended = server.stop(WITHIN_S)
            assert list(stream) == [b"last"]
            assert not ended.is_set()
            service.go.set()
            assert waiting.result() == b"y"
            assert ended.wait(WITHIN_S)


def test_a_shut_gate_refuses_and_tells_who_runs() -> None:
    """UNAVAILABLE with push-back 0, at once; gRPC's own services are served, and the call that runs is told."""
    service = Service()
    admission = Admission(threads=1)
    gate = Gate(admission.pool, [("who", "me")])
    server = grpc.server(admission.pool, interceptors=[gate, admission])
    service.add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch: Any = channel.unary_stream("/test.Service/Watch")
            stream = watch(b"", timeout=WITHIN_S)
            assert next(stream) == b"first"
            gate.shut()
            assert list(stream) == [b"last"]
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel, "Echo")(b"x", timeout=WITHIN_S)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert {("who", "me"), ("grpc-retry-pushback-ms", "0")} <= set(error.trailing_metadata())
            with pytest.raises(grpc.RpcError) as caught:
                health(channel)
            error = caught.value
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(None).wait()
        admission.pool.shutdown()


async def test_a_handler_that_never_ends_holds_up_nobody() -> None:
    """Its call is cancelled when the time is over, and the server has ended."""
    service = Service()
    with Server("test", drain_wait_s=0.0) as server:
        service.add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            waiting = unary(channel, "Wait").future(b"y", timeout=WITHIN_S)
            assert service.begun.wait(WITHIN_S)
            assert server.stop(0.5).wait(WITHIN_S)
            assert waiting.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert server.admission.in_flight == 1
        service.go.set()
        await eventually(lambda: server.admission.in_flight == 0)


async def test_it_is_ready_once_what_it_depends_on_is_well() -> None:
    """`start` returns then, not before; until then the reason is told."""
    well = threading.Event()

    def database() -> None:
        if not well.is_set():
            raise RuntimeError("no connection")

    with Server("test", checks={"database": database}) as server:
        Service().add(server)
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        await eventually(lambda: server.unhealthy == {"database": "no connection"})
        assert not starting.done()
        well.set()
        await starting
        assert server.unhealthy == {"database": ""}


async def test_a_server_that_never_got_ready_can_be_stopped() -> None:
    """`start` returns, and the server has ended."""

    def database() -> None:
        raise RuntimeError("no connection")

    with Server("test", checks={"database": database}) as server:
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        await eventually(lambda: server.unhealthy == {"database": "no connection"})
        assert await asyncio.to_thread(server.stop(None).wait, WITHIN_S)
        await starting


async def test_it_is_registered_while_it_serves(agent: Agent) -> None:
    """A client finds it by its name, and it is gone from Consul after its end."""
    with Server("test", register={"consul": agent.address}, drain_wait_s=0.0) as server:
        Service().add(server)
        await asyncio.to_thread(server.start)
        async with lb.aio.channel(f"consul://{agent.address}/test") as channel:
            echo: Any = channel.unary_unary("/test.Service/Echo")
            assert await echo(b"x", timeout=WITHIN_S, wait_for_ready=True) == b"x"
        assert await asyncio.to_thread(server.stop(WITHIN_S).wait, WITHIN_S)
    assert "0 services" in repr(agent)


def test_a_port_that_is_taken_is_told() -> None:
    """As a `StartError`, and what was opened is closed."""
    with Server("one") as one:
        one.start()
        with Server("two", listen=one.address) as two, pytest.raises(StartError, match="cannot listen there"):
            two.start()


def test_an_answer_carries_the_load_and_the_cost() -> None:
    """In the trailing metadata."""
    with Server("test", load=LoadReporter(every_s=1e-6)) as server:
        Service().add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            _, call = unary(channel, "Echo").with_call(b"x", timeout=WITHIN_S)
            found = {pair[0]: pair[1] for pair in call.trailing_metadata()}
    assert [b"rows" in found[key] for key in KEYS if key in found] == [True]  # core keeps gRPC's own key to itself


class Seen(grpc.ServerInterceptor):
    """An interceptor that notes the calls whose handlers run within it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[str] = []
        self._handlers = Handlers(self._around)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Note it, and go on."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        self.asked.append(method)
        return handler if handler is None else self._handlers.wrapped(method, handler)

    def _around(self, method: str, handler: Any) -> Behavior:
        behavior = behavior_of(handler)

        def handle(*arguments: Any) -> Any:
            self.calls.append(method)
            return behavior(*arguments)

        return handle


def test_what_stands_around_a_handler() -> None:
    """A refusal of the admission is seen by the interceptors around it, and runs nothing of those within."""
    outer, inner = Seen(), Seen()
    limits = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))
    service = Service()
    with Server("test", limits=limits, interceptors=[outer], inner=[inner]) as server:
        service.add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            waiting = unary(channel, "Wait").future(b"x", timeout=WITHIN_S)
            assert service.begun.wait(WITHIN_S)
            assert code(channel, "Echo") is grpc.StatusCode.UNAVAILABLE
            assert health(channel) == health_pb2.HealthCheckResponse.SERVING
            service.go.set()
            assert waiting.result() == b"x"
            assert code(channel, "Echo") is grpc.StatusCode.OK
    wait, echo = "/test.Service/Wait", "/test.Service/Echo"
    assert [method for method in outer.asked if method.startswith("/test.")] == [wait, echo, echo]
    assert [method for method in inner.calls if method.startswith("/test.")] == [wait, echo]


def test_at_the_end_its_callbacks_run() -> None:
    """Once no call runs, also behind one that raises."""
    told: list[int] = []

    def breaks() -> None:
        raise RuntimeError("as it was asked to")

    service = Service()
    with Server("test", drain_wait_s=0.0) as server:
        service.add(server)
        server.on_close(breaks)
        server.on_close(lambda: told.append(server.admission.in_flight))
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            waiting = unary(channel, "Wait").future(b"x", timeout=WITHIN_S)
            assert service.begun.wait(WITHIN_S)
            ended = server.stop(WITHIN_S)
            assert told == []
            service.go.set()
            assert waiting.result() == b"x"
            assert ended.wait(WITHIN_S)
            assert (told, server.state) == ([0], "ended")


def test_a_callback_that_never_ends_holds_up_nobody() -> None:
    """It has the time for leaving, and no more."""
    never = threading.Event()
    with Server("test", drain_wait_s=0.0) as server:
        server.on_close(never.wait)
        server.start()
        assert server.stop(0.3).wait(WITHIN_S)
    never.set()


def test_what_counts_is_its_own_work() -> None:
    """Only that is limited, and known to health."""
    limits = Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=0))
    service = Service()
    with Server("test", limits=limits, counts=lambda method: not method.startswith("/test.")) as server:
        service.add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            waiting = unary(channel, "Wait").future(b"x", timeout=WITHIN_S)
            assert service.begun.wait(WITHIN_S)
            assert code(channel, "Echo") is grpc.StatusCode.OK
            service.go.set()
            assert waiting.result() == b"x"
            with pytest.raises(grpc.RpcError) as caught:
                health(channel, "test.Service")
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_call_that_comes_too_late() -> None:
    """While it leaves Consul its port is still open: the call is refused so that another server is asked at once.

    No interceptor of the user's sees it.
    """
    seen = Seen()
    registry = Embedded()
    await registry.start()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hang(what: str) -> None:
        if "deregister" in what:
            asked.set()
            await answer.wait()

    async with Proxy(registry) as proxy:
        register = {"id": "test-1", "consul": proxy.url}
        own: Any = {"trailers": [("id", "test-1")], "interceptors": [seen]}
        with Server("test", register=register, drain_wait_s=0.0, **own) as server:
            Service().add(server)
            await asyncio.to_thread(server.start)
            await until(registry.instances, within_s=WITHIN_S, what="it is registered")
            proxy.before = hang
            with grpc.insecure_channel(server.address) as channel:
                assert await asyncio.to_thread(code, channel, "Echo") is grpc.StatusCode.OK
                ended = server.stop(WITHIN_S)
                await asyncio.wait_for(asked.wait(), WITHIN_S)
                assert server.state == "draining"
                late = unary(channel, "Echo").future(b"x", timeout=WITHIN_S)
                assert await asyncio.to_thread(late.code) is grpc.StatusCode.UNAVAILABLE
                assert sorted(late.trailing_metadata()) == [("grpc-retry-pushback-ms", "0"), ("id", "test-1")]
                assert [method for method in seen.asked if method.startswith("/test.")] == ["/test.Service/Echo"]
                answer.set()
                assert await asyncio.to_thread(ended.wait, WITHIN_S)
    await registry.kill()


def test_what_its_admission_refuses_says_who_refused_it() -> None:
    """As what it refuses while it drains."""
    limits = Limits(rate=Rate(0.001, burst=1))
    with Server("test", limits=limits, trailers=[("id", "test-1")]) as server:
        Service().add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            assert code(channel, "Echo") is grpc.StatusCode.OK
            refused = unary(channel, "Echo").future(b"x", timeout=WITHIN_S)
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ("id", "test-1") in [tuple(pair) for pair in refused.trailing_metadata()]


def test_reflection_tells_what_it_serves() -> None:
    """Both versions of it; not, if it is not wanted."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    def listed(**settings: Any) -> set[str]:
        with Server("test", **settings) as server:
            Service().add(server)
            server.start()
            with grpc.insecure_channel(server.address) as channel:
                stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=WITHIN_S)
                return {service.name for service in answer.list_services_response.service}

    versions = {f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")}
    assert listed() == {"test.Service", "grpc.health.v1.Health", *versions}
    with pytest.raises(grpc.RpcError) as caught:
        listed(reflection=False)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_ports_of_your_own() -> None:
    """With ``listen=None`` the first port that is added is the server's, and others may follow."""
    with Server("test", listen=None) as server:
        Service().add(server)
        first, second = server.add_insecure_port("127.0.0.1:0"), server.add_insecure_port("127.0.0.1:0")
        assert server.state == "made"
        server.start()
        assert (server.port, server.address, server.state) == (first, f"127.0.0.1:{first}", "serving")
        for port in (first, second):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert code(channel, "Echo") is grpc.StatusCode.OK
        with pytest.raises(RuntimeError, match="starts once"):
            server.start()


HUNG = """
import logging, sys, threading
import grpc
from lb.server.threads import Server

def hang(request, context):
    print("hangs", flush=True)
    threading.Event().wait()

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
with Server("test", drain_s=1.0, drain_wait_s=0.0) as server:
    handlers = {"Hang": grpc.unary_unary_rpc_method_handler(hang)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    server.serve()
"""


def test_a_process_ends_without_a_handler_that_never_does() -> None:
    """On SIGTERM, with status 0: threads of handlers do not hold up the end."""
    with subprocess.Popen([sys.executable, "-c", HUNG], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            with grpc.insecure_channel(ready.split()[-1]) as channel:
                call = unary(channel, "Hang").future(b"", timeout=WITHIN_S)
                assert process.stdout.readline() == "hangs\n"
                process.terminate()
                assert process.wait(WITHIN_S) == 0
                assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        finally:
            process.kill()


GREEN = """
from gevent import monkey; monkey.patch_all()
import grpc.experimental.gevent; grpc.experimental.gevent.init_gevent()
import gevent, grpc, threading
from lb.server import Concurrency, Limits
from lb.server.threads import Admission

admission = Admission(Limits(concurrency=Concurrency(limit=2, adaptive=False)), threads=2)
server = grpc.server(admission.pool, interceptors=[admission])
go, begun = threading.Event(), threading.Semaphore(0)

def wait(request, context):
    begun.release()
    go.wait()
    return request

handlers = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    call = channel.unary_unary("/test.Service/Wait")
    calls = [gevent.spawn(call, b"x", timeout=60) for _ in range(2)]
    for _ in calls:
        begun.acquire()
    try:
        call(b"x", timeout=60)
    except grpc.RpcError as error:
        print(error.code().name)
    go.set()
    print([job.get() for job in calls], call(b"y", timeout=60))
server.stop(None).wait()
admission.pool.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="needs the package gevent")
def test_beside_gevent_admission_does_the_same() -> None:
    """Where threads are greenlets: two run, a third is refused at once, and places are given back."""
    command = [sys.executable, "-c", GREEN]
    said = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=True).stdout
    assert said.splitlines() == ["UNAVAILABLE", "[b'x', b'x'] b'y'"]


def test_draining_is_for_handlers() -> None:
    """Elsewhere it says so."""
    with pytest.raises(RuntimeError, match="for handlers"):
        draining()


@pytest.mark.parametrize(
    "named", [{"limits": 5}, {"register": "yes"}, {"checks": [1]}, {"threads": "8"}, {"load": 1}, {"credentials": 1}]
)
def test_wrong_arguments_are_told(named: Any) -> None:
    """When the server is made, by name."""
    with pytest.raises(TypeError, match=rf"^{next(iter(named))} is "):
        Server("test", **named)


def test_a_callback_that_is_no_function_is_told() -> None:
    """When it is given, and not when the server ends; and a missing sequence when it is made."""
    with pytest.raises(TypeError, match=r"^options is None; expected a sequence, which may be empty$"):
        Server("test", options=None)  # type: ignore[arg-type]
    with Server("test") as server, pytest.raises(TypeError, match=r"^callback is 5; expected a function$"):
        server.on_close(5)  # type: ignore[arg-type]


def test_a_wait_as_long_as_leaving_is_told() -> None:
    """No time would be left for the calls in flight. Without any wait it may end at once."""
    with pytest.raises(ValueError, match=r"^drain_wait_s is 8; expected seconds below drain_s \(7\), or 0$"):
        Server("test", drain_s=7, drain_wait_s=8)
    Server("test", drain_s=0, drain_wait_s=0).close()


@pytest.mark.parametrize("name", ["interceptors", "inner"])
def test_interceptors_of_asyncio_are_told(name: str) -> None:
    """They would end grpcio's thread, and with it the whole server."""
    given: Any = {name: [lb.aio.incoming()]}
    with pytest.raises(TypeError, match=rf"^{name} has <.*; expected a sequence of grpc\.ServerInterceptor$"):
        Server("test", **given)


async def test_a_check_for_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that nobody awaits has asked nothing: the server is not ready, and says why."""

    async def ask() -> None:
        raise AssertionError("it is never awaited")

    with Server("test", checks={"database": ask}) as server:
        starting = threading.Thread(target=server.start)
        starting.start()
        await eventually(lambda: "`async def`" in server.unhealthy["database"])
        await eventually(lambda: "test: not serving: database: the check is `async def`" in caplog.text)
        server.close()
        await asyncio.to_thread(starting.join, WITHIN_S)


def test_a_server_starts_once() -> None:
    """Once more is an error, and the first life goes on."""
    service = Service()
    with Server("test") as server:
        service.add(server)
        server.start()
        for again in (server.start, server.serve):
            with pytest.raises(RuntimeError, match="a server starts once; make a new one"):
                again()
        with grpc.insecure_channel(server.address) as channel:
            assert unary(channel, "Echo")(b"x", timeout=WITHIN_S) == b"x"


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="this release of grpcio's health has no List")
def test_health_is_listed() -> None:
    """Each service and its status, as with asyncio; `grpcurl` and others ask for it."""
    with Server("test") as server:
        Service().add(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            every: Any = health_pb2
            statuses = stub.List(every.HealthListRequest(), timeout=WITHIN_S).statuses
    serving = health_pb2.HealthCheckResponse.SERVING
    assert {name: each.status for name, each in statuses.items()} == {"": serving, "test.Service": serving}
