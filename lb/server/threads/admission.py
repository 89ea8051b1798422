"""Admission of calls to a ``grpc.server``: an interceptor that refuses before any work is done, and before any wait.

::

    grpcio's thread: call ─► rate ─► a place and a thread? ──────► a thread: time left? ─► handler
                               │               │                                │
                               ▼               ▼                                ▼
                       RESOURCE_EXHAUSTED  UNAVAILABLE, push-back        DEADLINE_EXCEEDED

The rules are those of `lb.server.Admission`, under one lock. Three things differ.

**Nothing waits.** A call is refused at once when no place is free, or no thread. grpcio has one thread for all
connections, in which interceptors run, so nothing may wait there; and a thread of the pool that waits is a place less.
The pool's own queue would be first in, first out: under overload each call would wait as long as the queue is.

**Its pool is part of it.** A refusal is a handler for grpcio, which runs in the pool. In the pool of everybody's choice
it would wait for the handlers that make the server full. And only the pool knows when a call has ended that never
reached its handler, because its client was gone before, or sends no request.

**A call that streams responses gives its place back with the first one, but keeps its thread until its end.**
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from lb.core.serving.admission import Refusal
from lb.core.serving.priority import PRIORITY_KEY, priority_of
from lb.core.serving.settings import Limits
from lb.server.gate import not_grpcs_own
from lb.server.places import Place, Places
from lb.server.refusals import trailers
from lb.server.threads.pool import Pool
from lb.shared import threads as kinds
from lb.shared.handlers import Behavior, Handlers, behavior_of

if TYPE_CHECKING:
    from lb.shared.handlers import Handler

_THREADS = 32


class Admission(grpc.ServerInterceptor):
    """Refuses what a server with threads cannot do in time. It comes with the pool of that server::

        admission = lb.server.threads.Admission(threads=32)
        server = grpc.server(admission.pool, interceptors=[admission])

    It should be the first interceptor. Methods that do not count, such as health checks and reflection, are always
    admitted, and have four threads of their own. `Concurrency.queue` is not used, because nothing waits, nor
    `Limits.timeout_s`, because a handler cannot be stopped.

    Args:
        limits: what the server takes on. More than ``threads`` calls never run at once, whatever its ``concurrency``.
        threads: how many handlers run at once at most, those of open streams included.
        counts: which methods (``/package.Service/Method``) are subject to it. By default all but gRPC's own.
        rng: source of the jitter of push-back.
        clock: monotonic seconds.

    Raises:
        ValueError: ``threads`` is below 1.
        TypeError: ``threads`` is no whole number.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        threads: int = _THREADS,
        counts: Callable[[str], bool] | None = None,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = Pool(threads)
        """The pool for ``grpc.server``. Shut it down when the server has stopped."""
        self._counts = counts or not_grpcs_own
        self._handlers = Handlers(self._around)
        self._desk = _Desk(
            Places(_without_queue(Limits() if limits is None else limits), rng=rng, clock=clock), threads
        )

    @property
    def load(self) -> float:
        """The part of the places in use. 0 if there is no limit."""
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
        with self._desk.lock:
            if not self._desk.busy:
                return
            if self._desk.idle is None:
                self._desk.idle = threading.Event()
            idle = self._desk.idle
        idle.wait()

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
            self.pool.expect("refusals")
            return _refuses(found)
        _stay.set(found)
        self.pool.expect("calls", found.over)
        return self._handlers.wrapped(method, handler)

    def _around(self, method: str, handler: Handler) -> Behavior:
        behavior = behavior_of(handler)
        desk = self._desk

        @functools.wraps(behavior)  # some of grpcio's switches are attributes of the function
        def handle(request: Any, context: Any, *send: Any) -> Any:
            stay = _stay.get()
            refusal = desk.start(stay, method, context.time_remaining())
            if refusal is not None:
                _abort(context, refusal)
            answer = behavior(request, context, *send)
            if stay is None:
                return answer
            if handler.response_streaming:
                return answer if send else _streamed(answer, stay)
            if context.code() in (None, grpc.StatusCode.OK):
                stay.answered()
            stay.over()  # before the answer is sent: who got it may ask again at once
            return answer

        return handle

    def __repr__(self) -> str:
        return f"<Admission {self._desk!r}>"


class _Desk:
    """The rules of one server, its places and its threads, under one lock."""

    def __init__(self, places: Places, threads: int) -> None:
        self.lock = kinds.lock()
        self.places = places
        self.threads = threads
        self.busy = 0
        """How many threads are taken."""
        self.idle: threading.Event | None = None
        """Set when none is; there is one while somebody waits for it."""

    def ask(self, method: str, metadata: Any) -> _Stay | Refusal:
        """A place and a thread for a call, or why there is none."""
        places = self.places
        rules = places.rules
        client = _value(metadata, rules.client_key) if rules.client_key is not None else ""
        with self.lock:
            now = places.clock()
            found = places.at_once(method, client, now)
            if isinstance(found, Refusal):
                return found
            intake = rules.intake
            if found is None:
                assert intake is not None
                intake.wait(priority_of(_value(metadata, PRIORITY_KEY)), now)  # counts: there is no room to wait in
                return rules.full(now)
            if intake is not None and self.busy >= self.threads:
                found.over()
                return rules.full(now)
            self.busy += 1
        return _Stay(self, found)

    def start(self, stay: _Stay | None, method: str, left_s: float) -> Refusal | None:
        """A handler begins, for a call with so many seconds left. Why the call is refused, if it is."""
        rules = self.places.rules
        with self.lock:
            if stay is not None:
                stay.place.begun()
            return rules.hopeless(rules.times(method), left_s)

    def __repr__(self) -> str:
        return f"{self.places!r} threads={self.busy} of {self.threads}"


class _Stay:
    """One call's place and thread, each until it is given back."""

    __slots__ = ("_desk", "_over", "place")

    def __init__(self, desk: _Desk, place: Place) -> None:
        self._desk = desk
        self.place = place
        self._over = False

    def answered(self) -> None:
        """The call ends well, or has shown its first response: others may have its place."""
        with self._desk.lock:
            self.place.answered()

    def over(self) -> None:
        """It has ended, however: others may have its thread."""
        with self._desk.lock:
            self.place.over()
            if not self._over:
                self._over = True
                self._desk.busy -= 1
                if not self._desk.busy and self._desk.idle is not None:
                    self._desk.idle.set()
                    self._desk.idle = None


_stay: ContextVar[_Stay | None] = ContextVar("lb.server.threads.stay", default=None)


def _streamed(answers: Iterator[Any], stay: _Stay) -> Iterator[Any]:
    try:
        for answer in answers:
            stay.answered()
            yield answer
    finally:
        stay.over()


def _without_queue(limits: Limits) -> Limits:
    concurrency = limits.concurrency
    return limits if concurrency is None else replace(limits, concurrency=replace(concurrency, queue=0))


def _value(metadata: Any, key: str) -> str:
    """The last value of a key; empty when there is none."""
    found = ""
    for name, value in metadata:
        if name == key:
            found = value
    return found


def _refuses(refusal: Refusal) -> Handler:
    """A handler that ends the call so, without waiting for a request or reading it."""

    def refuse(_: Any, context: Any) -> Iterator[Any]:
        _abort(context, refusal)
        yield

    made: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return made


def _abort(context: Any, refusal: Refusal) -> None:
    context.set_trailing_metadata(trailers(refusal))
    context.abort(refusal.code, refusal.details)
