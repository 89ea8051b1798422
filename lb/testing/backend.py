"""A gRPC server for tests: it echoes, and fails as a script says.

::

    async with Backend("a") as backend:
        backend.script(fail(StatusCode.UNAVAILABLE), pushback(0))
        ...  # the first call fails, the second is refused, from the third on it echoes
        assert backend.received[0].metadata["x-user"] == "7"

Four methods of the service ``lb.testing.Echo`` take and return bytes, so you need no stubs:
``channel.unary_unary(UNARY_UNARY)``.

================  =====================================================================
`UNARY_UNARY`     answers with the request
`UNARY_STREAM`    answers with the request, `Backend.copies` times
`STREAM_UNARY`    answers with all requests joined
`STREAM_STREAM`   answers each request with itself
================  =====================================================================

Each answer has the backend's name in the trailing metadata, under `NAME_KEY` (see `answered_by`). A script is a list
of steps, one for each call. After the last step calls are echoed.

Servicers of your own follow the same script, and answer where it has ended::

    Backend(add=lambda server: add_CatalogServicer_to_server(Catalog(), server))
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from lb.core.target import join_host_port
from lb.testing._steps import Gate, Step, echo, fail, hang, hold, pushback

__all__ = [
    "Backend",
    "Backends",
    "Gate",
    "METHODS",
    "NAME_KEY",
    "Received",
    "SERVICE",
    "STREAM_STREAM",
    "STREAM_UNARY",
    "Step",
    "UNARY_STREAM",
    "UNARY_UNARY",
    "answered_by",
    "echo",
    "fail",
    "hang",
    "hold",
    "pushback",
]

SERVICE = "lb.testing.Echo"
UNARY_UNARY = f"/{SERVICE}/UnaryUnary"
UNARY_STREAM = f"/{SERVICE}/UnaryStream"
STREAM_UNARY = f"/{SERVICE}/StreamUnary"
STREAM_STREAM = f"/{SERVICE}/StreamStream"
METHODS = (UNARY_UNARY, UNARY_STREAM, STREAM_UNARY, STREAM_STREAM)

NAME_KEY = "lb-backend"

_Context = grpc.aio.ServicerContext[bytes, bytes]

_REBIND_S = 5.0


@dataclass(slots=True)
class Received:
    """One call, as the backend saw it."""

    method: str
    """``/package.Service/Method``."""
    metadata: Mapping[str, str | bytes]
    """The request's metadata. A repeated key has its last value."""
    peer: str
    """The client's address. Calls over one connection have the same."""
    timeout_s: float | None
    """Seconds to the deadline when the call arrived; None without a deadline."""
    messages: list[Any] = field(default_factory=list)
    """The requests so far: bytes, or what a servicer of your own takes."""
    half_closed: bool = False
    """Whether the client has said that no more messages follow."""
    ended: bool = False
    """Whether the call is over: answered or cancelled."""
    cancelled: bool = False
    """Whether it was cancelled before it was answered."""


class Backend:
    """The server. Use it as an async context manager, or call `start` and `stop`, as often as you like.

    It keeps its port, its script and what it has received.

    Args:
        name: it is in the trailing metadata of each answer.
        host: the address to listen on.
        port: 0 for a free one; ``address`` has it after the start.
        credentials: for TLS, as from ``grpc.ssl_server_credentials``. Default: plain text.
        copies: how many messages `UNARY_STREAM` answers with.
        options: options of the ``grpc.aio.server``.
        add: a function that adds servicers of your own to the server. It is called at each start. Their methods must be
            ``async def``.
        interceptors: of the ``grpc.aio.server``. They see a call before the script does.
    """

    def __init__(
        self,
        name: str = "backend",
        *,
        add: Callable[[grpc.aio.Server], object] | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        copies: int = 3,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.name = name
        self.copies = copies
        self.received: list[Received] = []
        """All calls so far, in the order in which they arrived."""
        self.unknown: list[str] = []
        """Names of methods that were called and that it does not have."""
        self.in_flight: int = 0
        """How many calls run now."""
        self._host = host
        self._port = port
        self._credentials = credentials
        self._options = (("grpc.so_reuseport", 0), *options)
        self._add = add
        self._interceptors = (*interceptors, _Scripted(self._scripted))
        self._steps: list[Step] = []
        self._always: Step | None = None
        self._server: grpc.aio.Server | None = None
        self._watchers: set[asyncio.Future[None]] = set()

    # ---- life ----

    @property
    def address(self) -> str:
        """``host:port``. The port is 0 before the first start, unless one was given."""
        return join_host_port(self._host, self._port)

    async def start(self) -> None:
        """Listen.

        Raises:
            RuntimeError: the port is taken, and stays so.
        """
        if self._server is not None:
            return
        deadline = asyncio.get_running_loop().time() + _REBIND_S
        while True:
            server = grpc.aio.server(options=self._options, interceptors=self._interceptors)
            if self._add is not None:
                self._add(server)
            server.add_generic_rpc_handlers((_Handlers(self),))
            try:
                if self._credentials is None:
                    port = server.add_insecure_port(self.address)
                else:
                    port = server.add_secure_port(self.address, self._credentials)
                break
            except RuntimeError:
                # The port that it had before is set free a moment after the server ended.
                await server.stop(None)
                if not self._port or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.01)
        await server.start()
        self._port = port
        self._server = server

    async def stop(self, grace: float | None = None) -> None:
        """Stop listening. Running calls have ``grace`` seconds; by default they are cut off, with their connections."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace)

    async def __aenter__(self) -> Backend:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    # ---- what it does, and what it saw ----

    def script(self, *steps: Step) -> None:
        """Add steps, one for each of the next calls."""
        self._steps += steps

    def clear_script(self) -> None:
        """Remove the steps that no call has used."""
        self._steps.clear()

    def always(self, step: Step | None) -> None:
        """What calls get after the script. None: the echo."""
        self._always = step

    @property
    def methods(self) -> list[str]:
        """The methods of the received calls."""
        return [call.method for call in self.received]

    async def until(self, condition: Callable[[], object], within_s: float = 20.0) -> None:
        """Wait until ``condition()`` is true. It is called each time something has happened here.

        Raises:
            TimeoutError: it was not true within ``within_s`` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not condition():
            changed: asyncio.Future[None] = loop.create_future()
            self._watchers.add(changed)
            try:
                async with asyncio.timeout_at(deadline):
                    await changed
            except TimeoutError:
                raise TimeoutError(f"the condition was not true within {within_s:g} s: {self!r}") from None
            finally:
                self._watchers.discard(changed)

    def __repr__(self) -> str:
        state = "up" if self._server else "down"
        return f"<Backend {self.name} {self.address} {state} received={len(self.received)} in_flight={self.in_flight}>"

    # ---- calls ----

    def _changed(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _arrived(self, method: str, context: _Context) -> tuple[Received, Step]:
        call = Received(
            method,
            {pair[0]: pair[1] for pair in context.invocation_metadata() or ()},
            context.peer(),
            context.time_remaining(),
        )
        self.received.append(call)
        self.in_flight += 1
        step = self._steps.pop(0) if self._steps else self._always or Step()
        self._changed()
        return call, step

    @contextlib.contextmanager
    def _taken(self, method: str, context: _Context) -> Iterator[tuple[Received, Step]]:
        """A call from its arrival to its end, and what it gets."""
        call, step = self._arrived(method, context)
        try:
            yield call, step
        except (asyncio.CancelledError, GeneratorExit):
            call.cancelled = True
            raise
        finally:
            call.ended = True
            self.in_flight -= 1
            self._changed()

    async def _begin(self, step: Step, context: _Context) -> None:
        context.set_trailing_metadata(((NAME_KEY, self.name), *step.trailing_metadata))
        if step.headers or step.initial_metadata:
            await context.send_initial_metadata(step.initial_metadata)

    async def _run(
        self, method: str, requests: bytes | AsyncIterable[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        """One call of any kind: the responses, as they become due."""
        with self._taken(method, context) as (call, step):
            await self._begin(step, context)
            turns = self._turns(method, self._read(requests, call), call)
            for _ in range(step.after if method != UNARY_UNARY else 0):
                answers = await anext(turns, None)
                if answers is None:
                    break
                for answer in answers:
                    yield answer
            await _end(step, context)
            async for answers in turns:
                for answer in answers:
                    yield answer

    async def _single(self, method: str, requests: bytes | AsyncIterable[bytes], context: _Context) -> bytes:
        (answer,) = [answer async for answer in self._run(method, requests, context)]
        return answer

    async def _read(self, requests: Any, call: Received) -> AsyncIterator[Any]:
        """The requests, noted as they are read."""
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                call.messages.append(request)
                self._changed()
                yield request
            call.half_closed = True
            self._changed()
        else:
            call.messages.append(requests)
            call.half_closed = True
            self._changed()
            yield requests

    async def _turns(self, method: str, requests: AsyncIterator[bytes], call: Received) -> AsyncIterator[list[bytes]]:
        """The call message by message: the answers that each brings, if any."""
        async for request in requests:
            if method == UNARY_STREAM:
                for _ in range(self.copies):
                    yield [request]
            else:
                yield [] if method == STREAM_UNARY else [request]
        if method == STREAM_UNARY:
            yield [b"".join(call.messages)]

    def handler(self, method: str) -> Any:
        """The handler of an echo method, for a server of your own. None if there is no such method."""
        if method not in METHODS:
            self.unknown.append(method)
            return None
        wrap = {
            UNARY_UNARY: grpc.unary_unary_rpc_method_handler,
            UNARY_STREAM: grpc.unary_stream_rpc_method_handler,
            STREAM_UNARY: grpc.stream_unary_rpc_method_handler,
            STREAM_STREAM: grpc.stream_stream_rpc_method_handler,
        }[method]
        run = self._run if method in (UNARY_STREAM, STREAM_STREAM) else self._single
        return wrap(partial(run, method))

    def _scripted(self, method: str, handler: Any) -> Any:
        """The handler of a servicer's ``method``, which goes by the script first."""
        if handler.request_streaming:
            behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if not inspect.iscoroutinefunction(behaviour) and not inspect.isasyncgenfunction(behaviour):
            return handler  # a generated base class has it: unimplemented

        async def whole(request: Any, context: Any) -> Any:
            with self._taken(method, context) as (call, step):
                await self._begin(step, context)
                requests = self._read(request, call)
                if handler.request_streaming and step.code is not grpc.StatusCode.OK:
                    for _ in range(step.after):
                        await anext(requests, None)
                await _end(step, context)
                return await behaviour(requests if handler.request_streaming else await anext(requests), context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._taken(method, context) as (call, step):
                await self._begin(step, context)
                requests = self._read(request, call)
                answers = behaviour(requests if handler.request_streaming else await anext(requests), context)
                try:
                    for _ in range(step.after):
                        if (answer := await anext(answers, None)) is not None:
                            yield answer
                    await _end(step, context)
                    async for answer in answers:
                        yield answer
                finally:
                    await answers.aclose()

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        run = stream if inspect.isasyncgenfunction(behaviour) else whole
        return make(run, handler.request_deserializer, handler.response_serializer)


Backends = Callable[..., Awaitable[list[Backend]]]
"""What starts several: ``await lb_backends(3, copies=1)``; see `lb.testing.fixtures`."""


class _Scripted(grpc.aio.ServerInterceptor):
    """Puts the backend's script before the handlers of a user's servicers."""

    def __init__(self, scripted: Callable[[str, Any], Any]) -> None:
        self._scripted = scripted

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in METHODS:
            return handler
        return self._scripted(handler_call_details.method, handler)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._backend.handler(handler_call_details.method)


async def _end(step: Step, context: _Context) -> None:
    """The end that a step wants; returns where it wants the rest of the call as usual."""
    if step.gate is not None:
        await step.gate.wait()
    if step.code is not grpc.StatusCode.OK:
        await context.abort(step.code, step.details)


def answered_by(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The name of the backend that sent this trailing metadata. Empty if none did."""
    # dict() of grpcio's own type asks it for keys, which are pairs in older releases.
    return str(dict(tuple(trailing_metadata or ())).get(NAME_KEY, ""))
