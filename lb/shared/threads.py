"""Real threads and locks, and waits for what they bring, also where gevent has put greenlets in their place.

``gevent.monkey.patch_all()`` (gunicorn's and Celery's gevent workers call it) makes a greenlet of every
thread. A loop that waits for grpcio's core must not be one: all greenlets of a thread stand while it waits.
So the library's thread is a real one there, too, and so are the locks that it shares with callers. A caller
waits for it through a `Mailbox`, and the greenlets beside it go on.

Nothing here imports gevent unless the process has patched itself.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

running: set[Thread] = set()
"""The real threads that were started beside gevent, which ``threading.enumerate()`` does not know."""


def green() -> bool:
    """Whether gevent has put greenlets in the place of threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def real(module: str, name: str) -> Any:
    """What Python itself has under this name."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(importlib.import_module(module), name) if monkey is None else monkey.get_original(module, name)


def lock() -> Any:
    """A ``threading.Lock`` for real threads. Who holds it must not wait for anything."""
    return real("_thread", "allocate_lock")()


def rlock() -> Any:
    """A ``threading.RLock`` for real threads, as `lock`."""
    return real("_thread", "RLock")()


def ident() -> int:
    """Which real thread this is."""
    found: int = real("_thread", "get_ident")()
    return found


class Thread:
    """A real thread, where ``threading.Thread`` is a greenlet. Daemonic: nobody waits for it but by `join`."""

    def __init__(self, target: Callable[[], object], name: str = "", daemon: bool = True) -> None:
        self.name = name or getattr(target, "__name__", "")
        self._target = target
        self._ended = lock()

    def start(self) -> None:
        """Begin."""
        self._ended.acquire()
        running.add(self)
        try:
            real("_thread", "start_new_thread")(self._run, ())
        except BaseException:
            running.discard(self)
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, and hold up all greenlets of this thread."""
        if self._ended.acquire(timeout=-1 if timeout is None else timeout):
            self._ended.release()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            running.discard(self)
            self._ended.release()


def thread(target: Callable[[], object], name: str) -> Any:
    """A daemonic thread that runs this; it has ``start()`` and ``join(timeout)``."""
    return Thread(target, name) if green() else threading.Thread(target=target, name=name, daemon=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for this thread. Beside gevent its turns are those of the thread's hub, so that what becomes
    a greenlet in it (an executor's thread, a lookup) runs.
    """
    if not green():
        return asyncio.new_event_loop()
    from gevent.selectors import GeventSelector

    loop = asyncio.SelectorEventLoop(GeventSelector())
    loop.set_default_executor(_Executor())
    return loop


class _Executor(ThreadPoolExecutor):
    """Each job has a real thread. Python waits for those of its own executors at the end of the process, and where
    they are greenlets of another thread it waits for ever.
    """

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See ``concurrent.futures.Executor``."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments, **named))
            except BaseException as error:  # noqa: BLE001  # it belongs to who waits for the future
                future.set_exception(error)
            finally:
                leave()

        Thread(work, "lb: executor").start()
        return future


def leave() -> None:
    """Let go of what gevent holds for this thread, which is about to end."""
    if green():
        from gevent.hub import get_hub

        get_hub().destroy(destroy_loop=True)


class Mailbox:
    """A queue that any real thread fills, and that one or more greenlets wait on."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._bells: list[Any] = []
        self._lock = lock()

    def put(self, item: Any) -> None:
        """Add it; from any thread."""
        self._items.append(item)
        with self._lock:
            for bell in self._bells:
                bell.send()

    def get(self) -> Any:
        """The oldest; waits for it, while other greenlets run."""
        from gevent.hub import Waiter, get_hub

        while True:
            try:
                return self._items.popleft()
            except IndexError:
                pass
            hub = get_hub()
            waiter: Any = Waiter(hub)
            bell = hub.loop.async_()
            bell.start(waiter.switch, None)
            with self._lock:
                self._bells.append(bell)
            try:
                if not self._items:
                    waiter.get()
            finally:
                with self._lock:
                    self._bells.remove(bell)
                    bell.stop()
                    bell.close()


def mailbox() -> Any:
    """Something with ``put`` and ``get`` that wakes who waits in another thread."""
    return Mailbox() if green() else real("queue", "SimpleQueue")()
