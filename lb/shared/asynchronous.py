"""Handlers of a ``grpc.aio`` server in one form, whatever their authors wrote: what an interceptor can await.

grpcio takes three forms of handlers. Each becomes an ``async def``, or with a stream of responses an async generator:

::

    async def, async generator       stays as it is
    async def that calls write       runs in a task; each response that it writes is a response of the generator
    def, generator                   runs in a thread, each response of a generator by itself

A task and a thread have the context variables of the call. As in grpcio, a thread cannot be cancelled: its call ends,
and what the handler still does is for nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from lb.shared import handlers

if TYPE_CHECKING:
    from lb.shared.handlers import Behavior, Handler

_END: Any = object()


def behavior_of(handler: Handler) -> Behavior:
    """The function of a ``grpc.RpcMethodHandler`` of any kind, for an interceptor of a ``grpc.aio.server`` to call.

    It is to be awaited, or iterated with ``async for`` where ``handler.response_streaming`` is set, whichever form the
    handler has. A plain ``def`` handler runs in the event loop's default executor.
    """
    function = handlers.behavior_of(handler)
    if inspect.isasyncgenfunction(function):
        return function
    if inspect.iscoroutinefunction(function):
        return _written(function) if handler.response_streaming else function
    made = _iterated if handler.response_streaming else _answered
    return made(function, handler.request_streaming)


# ---- responses that are written


class _Writing:
    """A context whose ``write`` waits until the response was taken, as grpcio's waits until it was sent."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.responses: asyncio.Queue[tuple[Any, asyncio.Future[None]]] = asyncio.Queue()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, response: Any) -> None:
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.responses.put_nowait((response, taken))
        await taken

    def ended(self, _: object) -> None:
        self.responses.put_nowait((_END, asyncio.get_running_loop().create_future()))


def _written(function: Behavior) -> Behavior:
    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        writing = _Writing(context)
        # In a task of its own, because any task of the handler's may write.
        work = asyncio.ensure_future(function(request, writing))
        work.add_done_callback(writing.ended)
        try:
            while True:
                response, taken = await writing.responses.get()
                if response is _END:
                    break
                yield response
                if not taken.done():  # else its writer was cancelled
                    taken.set_result(None)
            await work
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # nobody is there to hear it

    return generate


# ---- handlers in threads


class _Blocking:
    """A context for a thread: what it has to wait for happens in the event loop."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._callbacks: list[Callable[[], object]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        self._wait(self._context.abort(code, details, tuple(trailing_metadata)))

    def abort_with_status(self, status: Any) -> None:
        self._wait(self._context.abort_with_status(status))

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._wait(self._context.send_initial_metadata(initial_metadata))

    def add_callback(self, callback: Callable[[], object]) -> bool:
        self._callbacks.append(callback)
        return True

    def requests(self, requests: AsyncIterator[Any]) -> Iterator[Any]:
        while (request := self._wait(_next(requests))) is not _END:
            yield request

    def ended(self) -> None:
        for callback in self._callbacks:
            callback()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _next(requests: AsyncIterator[Any]) -> Any:
    return await anext(requests, _END)


def _answered(function: Behavior, request_streaming: bool) -> Behavior:
    async def answer(request: Any, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        blocking = _Blocking(context, loop)
        given = blocking.requests(aiter(request)) if request_streaming else request
        try:
            return await loop.run_in_executor(None, contextvars.copy_context().run, function, given, blocking)
        finally:
            blocking.ended()

    return answer


def _iterated(function: Behavior, request_streaming: bool) -> Behavior:
    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        blocking = _Blocking(context, loop)
        given = blocking.requests(aiter(request)) if request_streaming else request
        run = contextvars.copy_context().run

        def first() -> Iterator[Any]:
            return iter(function(given, blocking))

        def following() -> Any:
            return next(responses, _END)

        responses: Any = None
        step: asyncio.Future[Any] = loop.run_in_executor(None, run, first)
        try:
            responses = await asyncio.shield(step)
            while True:
                step = loop.run_in_executor(None, run, following)
                response = await asyncio.shield(step)
                if response is _END:
                    break
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            step.add_done_callback(lambda _: _close(loop, run, responses))  # a thread may be in it
            raise
        finally:
            blocking.ended()

    return generate


def _close(loop: asyncio.AbstractEventLoop, run: Callable[..., object], responses: Any) -> None:
    if hasattr(responses, "close"):
        loop.run_in_executor(None, run, responses.close)
