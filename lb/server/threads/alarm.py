"""One thread that looks when something is due, for what a server with threads has no event loop for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lb.shared import threads as kinds


class Alarm:
    """Calls ``look`` when it is due. The thread begins with `start`, and ends with `close`.

    `by` and `next` are for who holds the lock of what is looked at.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look
        self._at: float | None = None
        self._lock = kinds.lock()
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def by(self, left_s: float) -> None:
        """Look within so many seconds."""
        at = time.monotonic() + left_s
        if self._at is None or at < self._at:
            self._at = at
            self._bell.set()

    def next(self, left_s: float | None) -> None:
        """All that was due was looked at; the next is due in so many seconds. None: nothing."""
        self._at = None if left_s is None else time.monotonic() + left_s

    def start(self) -> None:
        """Begin, if it has not begun. This waits for the thread, so no lock may be held."""
        with self._lock:  # two calls may be the first
            if self._thread is not None or self._closed:
                return
            thread = self._thread = threading.Thread(target=self._work, name="lb-alarm", daemon=True)
        thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._bell.set()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            at = self._at
            if self._bell.wait(None if at is None else max(0.0, at - time.monotonic())):
                self._bell.clear()
                continue  # something is due earlier
            self._look()

    def __repr__(self) -> str:
        return f"<Alarm {'waits' if self._at is None else 'is set'}>"
