"""The threads that carry out the calls of a ``grpc.server``, with ways past them for what must not wait.

::

    grpcio's thread: interceptors ─ expect() ─► submit() ──► LANES["calls"]     the threads for handlers
                                                        ├──► LANES["refusals"]  one thread, which never does work
                                                        ├──► LANES["own"]       gRPC's own services, such as health
                                                        └──► nowhere yet        `Errand.lane` is told later (`go`)

grpcio runs the interceptors of a call and then hands its handler to the pool, both in one thread, its only one. So what
an interceptor expects here is about the next job of its thread. Should grpcio change that order, all jobs would go to
the threads for handlers.

A job that waits has no thread: it is only kept.

The threads are daemonic: a handler that never ends cannot be ended, and must not hold up the end of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from lb.core import checks
from lb.server.threads.alarm import Alarm
from lb.shared import threads as kinds

P = ParamSpec("P")
T = TypeVar("T")

LaneName = Literal["calls", "refusals", "own"]

_OWN_THREADS = 4


class Errand(Protocol):
    """What somebody wants to do with a job that is expected."""

    def came(self, job: Job) -> LaneName | None:
        """It is here. Where it belongs; None: that is said later, by `Pool.go`."""

    def over(self) -> None:
        """It has ended, whatever ended it, or never came: grpcio may end a call between interceptors and handler."""


class Job:
    """A job of grpcio, and of its future as much as grpcio asks for."""

    __slots__ = ("_done", "_errand", "_function", "_then", "arguments", "named")

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any], errand: Errand | None
    ) -> None:
        self._function: Callable[..., Any] | None = function
        self.arguments = arguments
        """Those of the function; empty once it has ended."""
        self.named = named
        self._errand = errand
        self._then: list[Callable[[Any], object]] = []
        self._done = False

    def add_done_callback(self, then: Callable[[Any], object]) -> None:
        """See ``concurrent.futures.Future``."""
        self._then.append(then)
        if self._done:
            self._tell()

    def done(self) -> bool:
        """See ``concurrent.futures.Future``."""
        return self._done

    def run(self) -> None:
        """Do it."""
        function, self._function = self._function, None
        try:
            if function is not None:
                function(*self.arguments, **self.named)
        except BaseException:  # noqa: BLE001  # grpcio has told of what it could not do
            pass
        finally:
            self.drop()

    def drop(self) -> None:
        """It has ended, or is never done."""
        self.arguments, self.named = (), {}
        errand, self._errand = self._errand, None
        if errand is not None:
            errand.over()
        self._done = True
        self._tell()

    def _tell(self) -> None:
        """Each callback is told once, by whichever thread takes it out."""
        while self._then:
            try:
                then = self._then.pop()
            except IndexError:
                return
            then(self)


class Pool(ThreadPoolExecutor):  # which grpcio asks for; the threads of that class never begin
    """A pool of threads for ``grpc.server``, which `Admission` makes.

    Args:
        threads: how many handlers run at once at most, >= 1.

    Raises:
        ValueError: ``threads`` is below 1.
        TypeError: ``threads`` is no whole number.
    """

    def __init__(self, threads: int) -> None:
        checks.whole("threads", threads, least=1)
        super().__init__(threads)
        self.threads = threads
        self._lanes: Mapping[LaneName, _Lane] = {
            "calls": _Lane(threads, "lb-calls"),
            "refusals": _Lane(1, "lb-refusals"),
            "own": _Lane(_OWN_THREADS, "lb-own"),
        }
        self._next = _Next()
        self.alarm: Alarm | None = None
        """What ends with it."""

    def expect(self, lane: LaneName, errand: Errand | None = None) -> None:
        """The next job of this thread belongs there, or where ``errand`` says."""
        expected = self._next
        before = expected.errand
        expected.lane, expected.errand = lane, errand
        if before is not None:
            before.over()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See ``concurrent.futures.Executor``. Of a future it returns what grpcio asks for."""
        expected = self._next
        lane: LaneName | None = expected.lane
        errand = expected.errand
        expected.lane, expected.errand = "calls", None
        job = Job(fn, args, kwargs, errand)
        if errand is not None:
            lane = errand.came(job)
        if lane is not None:
            try:
                self._lanes[lane].put(job)
            except RuntimeError:
                job.drop()
                raise
        future: Any = job
        return future  # type: ignore[no-any-return]

    def go(self, job: Job, lane: LaneName) -> None:
        """A job that was kept belongs there."""
        try:
            self._lanes[lane].put(job)
        except RuntimeError:
            job.drop()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs. See ``concurrent.futures.Executor``; jobs are never cancelled."""
        del cancel_futures
        for lane in self._lanes.values():
            lane.close()
        if self.alarm is not None:
            self.alarm.close()
        if wait:
            for lane in self._lanes.values():
                lane.join()
            if self.alarm is not None:
                self.alarm.join()

    def __repr__(self) -> str:
        return f"<Pool threads={self.threads}>"


class _Next(threading.local):
    """What is expected of the next job of each thread."""

    lane: LaneName = "calls"
    errand: Errand | None = None


class _Lane:
    """Some threads and their jobs, the first first. Threads begin when they are needed, and stay."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = kinds.lock()
        self._idle = 0
        """Threads that have nothing to do, and that no job was put for."""
        self._behind = 0
        """Jobs for which there was no thread."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def put(self, job: Job) -> None:
        """Do it when a thread is free. Raises ``RuntimeError`` once it is closed."""
        thread: threading.Thread | None = None
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool was shut down")
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
            else:
                self._behind += 1
            self._jobs.put(job)
        if thread is not None:
            thread.start()

    def close(self) -> None:
        """End each thread when there is nothing left to do."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        get, lock = self._jobs.get, self._lock
        while (job := get()) is not None:
            job.run()
            del job  # a thread that waits keeps nothing of a call alive
            with lock:
                if self._behind:
                    self._behind -= 1
                else:
                    self._idle += 1
