"""Admission of calls to a ``grpc.server``: an interceptor that refuses before any work is done.

::

    grpcio's thread: call ─► rate ─► a place and a thread? ─► a thread: time left? ─► handler
                               │            │      ▲                    │
                               ▼            ▼      └── the queue        ▼
                       RESOURCE_EXHAUSTED  UNAVAILABLE, push-back  DEADLINE_EXCEEDED

The rules are those of `lb.server.Admission`, under one lock (`lb.server.threads.desk`). Three things differ.

**What waits has no thread.** grpcio has one thread for all connections, in which interceptors run, so nothing may wait
there; and a thread of the pool that waits is a place less. So a call in the queue is a job that the pool keeps. Its
handler takes the request as a stream: grpcio would let the thread that refuses it wait for the request.

**Its pool is part of it.** A refusal is a handler for grpcio, which runs in the pool. In the pool of everybody's choice
it would wait for the handlers that make the server full. And only the pool knows when a call has ended that never
reached its handler, because its client was gone before, or sends no request.

**A handler cannot be stopped.** When its time is over its call is ended, and its place and its thread stay taken until
it returns.

A call that streams responses gives its place back with the first one, but keeps its thread until its end.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.serving.admission import Refusal
from lb.core.serving.settings import Limits
from lb.server.gate import not_grpcs_own
from lb.server.refusals import Trailers, trailers
from lb.server.threads.desk import Desk, Stay, Threaded
from lb.server.threads.pool import Pool
from lb.shared.handlers import Behavior, Handlers, Kept, behavior_of

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_THREADS = 32


class Admission(grpc.ServerInterceptor):
    """Refuses what a server with threads cannot do in time. It comes with the pool of that server::

        admission = lb.server.threads.Admission(threads=32)
        server = grpc.server(admission.pool, interceptors=[admission])

    It should be the first interceptor. Methods that do not count, such as health checks and reflection, are always
    admitted, and have four threads of their own. A handler cannot be stopped: when the time of `Limits.timeout_s` is
    over, its call has ended, but its place and its thread are free when it returns.

    Args:
        limits: what the server takes on. More than ``threads`` calls never run at once, whatever its ``concurrency``.
        threads: how many handlers run at once at most, those of open streams included.
        counts: which methods (``/package.Service/Method``) are subject to it. By default all but gRPC's own.
        trailers: trailing metadata of what it refuses, such as the server's id.
        rng: source of the jitter of push-back.
        clock: monotonic seconds.

    Raises:
        ValueError: ``threads`` is below 1.
        TypeError: ``threads`` is no whole number, or ``limits`` are none.
        ImportError: ``limits`` has a ``timeout_s``, and this release of grpcio is not known.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        threads: int = _THREADS,
        counts: Callable[[str], bool] | None = None,
        trailers: Sequence[tuple[str, str | bytes]] = (),
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = Pool(threads)
        """The pool for ``grpc.server``. Shut it down when the server has stopped."""
        self._counts = counts or not_grpcs_own
        self._handlers = Handlers(self._around)
        self._trailers = extra = tuple(trailers)
        self._refuses = _refusing(extra)
        self._patient = Kept(lambda method, handler: _patient(handler, extra))
        self._desk = Desk(Threaded(limits, rng=rng, clock=clock), self.pool)

    @property
    def load(self) -> float:
        """The part of the places in use; above 1 while calls wait. 0 if there is no limit."""
        with self._desk.lock:
            return self._desk.places.load

    def used(self) -> float:
        """The part of the places that was in use, on average since this was asked last. 0 if there is no limit."""
        with self._desk.lock:
            return self._desk.places.used()

    @property
    def in_flight(self) -> int:
        """How many calls run, those of open streams included."""
        return self._desk.busy

    def wait_until_idle(self) -> None:
        """Return once no call runs."""
        self._desk.wait_until_idle()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Called by grpcio for each call, in its one thread: nothing here may wait."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not self._counts(method):
            self.pool.expect("own")
            return handler
        found = self._desk.ask(method, handler_call_details.invocation_metadata)
        if isinstance(found, Refusal):
            _refusal.set(found)
            self.pool.expect("refusals")
            return self._refuses
        _stay.set(found)
        self.pool.expect("calls", found)
        wrapped = self._handlers.wrapped(method, handler)
        return wrapped if found.waiting is None else self._patient.of(method, wrapped)

    def _around(self, method: str, handler: Handler) -> Behavior:
        behavior = behavior_of(handler)
        desk, extra = self._desk, self._trailers
        times = desk.places.rules.times(method)

        @functools.wraps(behavior)  # some of grpcio's switches are attributes of the function
        def handle(request: Any, context: Any, *send: Any) -> Any:
            stay = _stay.get()
            if stay is None:
                return behavior(request, context, *send)
            refusal = desk.start(stay, times, context.time_remaining())
            if refusal is not None:
                _abort(context, refusal, extra)
            try:
                answer = behavior(request, context, *send)
            except BaseException:
                desk.failed(stay)
                raise
            if handler.response_streaming:
                return answer if send else _streamed(answer, desk, stay)
            # Before the answer is sent: who got it may ask again at once.
            desk.leave(stay, well=context.code() in _WELL)
            return answer

        return handle

    def __repr__(self) -> str:
        return f"<Admission {self._desk!r}>"


_stay: ContextVar[Stay | None] = ContextVar("lb.server.threads.stay", default=None)
_refusal: ContextVar[Refusal] = ContextVar("lb.server.threads.refusal")
_WELL = (None, grpc.StatusCode.OK)


def _streamed(answers: Iterator[Any], desk: Desk, stay: Stay) -> Iterator[Any]:
    try:
        for answer in answers:
            if not stay.streams:
                desk.shown(stay)
            yield answer
    except Exception:
        desk.failed(stay)
        raise
    finally:
        desk.leave(stay)


def _patient(handler: Handler, extra: Trailers) -> Handler:
    """A handler for calls that wait, or are refused after a while: it takes the request when it is its turn."""
    behavior = behavior_of(handler)
    streaming = handler.request_streaming

    @functools.wraps(behavior)
    def handle(requests: Any, context: Any, *send: Any) -> Any:
        stay = _stay.get()
        if stay is not None and stay.refusal is not None:
            _abort(context, stay.refusal, extra)
        if streaming and context.is_active():
            return behavior(requests, context, *send)
        for request in requests:  # of a client that is gone it raises what grpcio tells nobody of
            if context.is_active():  # else core had the request before its client left
                return behavior(request, context, *send)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method requires exactly one request message")
        return None

    made: Handler = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )(handle, handler.request_deserializer, handler.response_serializer)
    return made


def _refusing(extra: Trailers) -> Handler:
    """What ends a call without waiting for a request or reading it."""

    def refuse(_: Any, context: Any) -> Iterator[Any]:
        _abort(context, _refusal.get(), extra)
        yield

    made: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return made


def _abort(context: Any, refusal: Refusal, extra: Trailers) -> None:
    context.set_trailing_metadata((*extra, *trailers(refusal)))
    context.abort(refusal.code, refusal.details)
