"""The threads that carry out the calls of a ``grpc.server``, with ways past them for what must not wait.

::

    grpcio's thread: interceptors ─ expect() ─► submit() ──► LANES["calls"]     the threads for handlers
                                                        ├──► LANES["refusals"]  one thread, which never does work
                                                        └──► LANES["own"]       gRPC's own services, such as health

grpcio runs the interceptors of a call and then hands its handler to the pool, both in one thread, its only one. So what
an interceptor expects here is about the next job of its thread. Should grpcio change that order, all jobs would go to
the threads for handlers.

The threads are daemonic: a handler that never ends cannot be ended, and must not hold up the end of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Literal, ParamSpec, TypeVar

from lb.core import checks

P = ParamSpec("P")
T = TypeVar("T")

LaneName = Literal["calls", "refusals", "own"]

_OWN_THREADS = 4

_Job = Callable[[], None]


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

    def expect(self, lane: LaneName, ended: Callable[[], object] | None = None) -> None:
        """The next job of this thread belongs there, and ``ended`` is called when it has ended, whatever ends it.

        A job that never came counts as ended: grpcio may end a call between its interceptors and its handler.
        """
        before = self._next.ended
        self._next.lane, self._next.ended = lane, ended
        if before is not None:
            before()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See ``concurrent.futures.Executor``."""
        lane, ended = self._next.lane, self._next.ended
        self._next.lane, self._next.ended = "calls", None
        future: Future[T] = Future()
        if ended is not None:
            future.add_done_callback(lambda _: ended())

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  # it belongs to who waits for the future
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self._lanes[lane].put(work)
        except RuntimeError:
            future.cancel()
            raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs. See ``concurrent.futures.Executor``; jobs are never cancelled."""
        del cancel_futures
        for lane in self._lanes.values():
            lane.close()
        if wait:
            for lane in self._lanes.values():
                lane.join()

    def __repr__(self) -> str:
        return f"<Pool threads={self.threads}>"


class _Next(threading.local):
    """What is expected of the next job of each thread."""

    lane: LaneName = "calls"
    ended: Callable[[], object] | None = None


class _Lane:
    """Some threads and their jobs, the first first. Threads begin when they are needed, and stay."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def put(self, job: _Job) -> None:
        """Do it when a thread is free. Raises ``RuntimeError`` once it is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool was shut down")
            self._jobs.put(job)
            if self._idle.acquire(blocking=False) or len(self._threads) >= self._most:
                return
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
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
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                self._idle.release()
                job = self._jobs.get()
            if job is None:
                return
            job()
            del job  # a thread that waits keeps nothing of a call alive
