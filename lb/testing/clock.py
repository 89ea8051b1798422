"""A clock that stands still until a test moves it, and a queue of what happens when.

The parts of ``lb.core`` never look at a clock: they are told ``now``. A test (or a simulation)
keeps one `FakeClock`, passes ``clock()`` as ``now``, and schedules what shall happen later::

    clock = FakeClock()
    clock.call_later(0.5, server.answers)
    clock.advance(1.0)      # runs what is due within that second, in order
    clock.run()             # or: runs until nothing is left

Time jumps from one event to the next, so an hour costs what its events cost. Events of the
same instant run in the order in which they were scheduled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

__all__ = ["FakeClock", "Timer"]


class Timer:
    """A call that a `FakeClock` will make."""

    __slots__ = ("_run", "at")

    def __init__(self, at: float, run: Callable[[], object]) -> None:
        """Made by `FakeClock.call_at`; ``at`` is the instant in seconds."""
        self.at = at
        self._run: Callable[[], object] | None = run

    @property
    def pending(self) -> bool:
        """Whether it has neither run nor been cancelled."""
        return self._run is not None

    def cancel(self) -> None:
        """Do not make the call. It may be called at any time."""
        self._run = None

    def _fire(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run()

    def __repr__(self) -> str:
        return f"<Timer at {self.at:.3f}{'' if self.pending else ', over'}>"


class FakeClock:
    """A clock that stands still until a test moves it. ``clock()`` reads it, in seconds. Not thread-safe.

    Args:
        now: what it shows at first, in seconds. It is not 0 by default, because a real monotonic clock is not either.

    Raises:
        ValueError: ``now`` is not finite.
        TypeError: ``now`` is not a number.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = _seconds("now", now)
        self._queue: list[tuple[float, int, Timer]] = []
        self._scheduled = 0

    def __call__(self) -> float:
        """What it shows, in seconds."""
        return self._now

    def call_at(self, when: float, run: Callable[..., object], *arguments: Any) -> Timer:
        """Call ``run(*arguments)`` when it shows ``when``. If that is in the past, it is called next.

        Raises:
            ValueError: ``when`` is not finite.
            TypeError: ``when`` is not a number.
        """
        timer = Timer(max(_seconds("when", when), self._now), partial(run, *arguments) if arguments else run)
        self._scheduled += 1
        heappush(self._queue, (timer.at, self._scheduled, timer))
        return timer

    def call_later(self, delay_s: float, run: Callable[..., object], *arguments: Any) -> Timer:
        """Call ``run(*arguments)`` after ``delay_s`` seconds.

        Raises:
            ValueError: ``delay_s`` is not finite.
            TypeError: ``delay_s`` is not a number.
        """
        return self.call_at(self._now + _seconds("delay_s", delay_s), run, *arguments)

    def advance(self, seconds: float) -> None:
        """Let this many seconds pass. What is due in that time is called, each at its own instant.

        Raises:
            ValueError: ``seconds`` is negative or not finite.
            TypeError: ``seconds`` is not a number.
        """
        if _seconds("seconds", seconds) < 0:
            raise ValueError(f"seconds is {seconds!r}; expected a number >= 0, time does not go back")
        self.advance_to(self._now + seconds)

    def advance_to(self, when: float) -> None:
        """Let time pass until it shows ``when``. What is due by then is called, each at its own instant.

        Raises:
            ValueError: ``when`` is in the past or not finite.
            TypeError: ``when`` is not a number.
        """
        if _seconds("when", when) < self._now:
            raise ValueError(f"when is {when!r}; expected an instant >= {self._now!r}, time does not go back")
        while (timer := self._next()) is not None and timer.at <= when:
            self._step()
        self._now = when

    def run(self, most: int = 1_000_000) -> None:
        """Let time pass until nothing more is due.

        Raises:
            RuntimeError: after ``most`` calls there was still one due, as when something repeats for ever.
        """
        for _ in range(most):
            if self._next() is None:
                return
            self._step()
        if self._next() is not None:
            raise RuntimeError(f"FakeClock: {most} events ran and there are more; does one repeat for ever?")

    def _next(self) -> Timer | None:
        """The next one to run; the cancelled are dropped."""
        queue = self._queue
        while queue:
            timer = queue[0][2]
            if timer.pending:
                return timer
            heappop(queue)
        return None

    def _step(self) -> None:
        timer = heappop(self._queue)[2]
        self._now = timer.at
        timer._fire()

    def __repr__(self) -> str:
        waiting = sum(timer.pending for _, _, timer in self._queue)
        return f"<FakeClock at {self._now:.3f}, {waiting} scheduled>"


def _seconds(name: str, value: float) -> float:
    right_type = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right_type or not math.isfinite(value):
        wrong = ValueError if right_type else TypeError
        raise wrong(f"{name} is {value!r}; expected a finite number of seconds")
    return value
