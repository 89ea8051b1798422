"""Which calls a server runs at once, which ones wait for a moment, and which are refused before any work.

::

    call ──take──► a place is free: it runs ──────────────────give_back──► the place goes to the newest that waits
             └wait─► the queue: it waits, at most ``queue_s``     ▲
                └──► refused: at once, or when a newer call needs its room in the queue

The limit holds for the whole process. It is a fixed one or follows the latency (`lb.core.concurrency`).

**The queue is last in, first out.** When more is asked than the server can do, each call that waits for its turn waits
as long as the queue is, and those at its front belong to clients that are about to give up. The newest have the most
time left. So the newest goes first, and when the queue is full, the oldest is refused, at once, before its client gives
up. In a short burst the order makes no difference. (CoDel, the other answer to this, lets all that wait grow old before
it drops any: calls that were answered in time would be late.) For the same reason the queue may be longer than the
limit, which can be small: how long answered calls have waited does not depend on its length.

Calls of a higher priority go first. One is refused only when none of a lower priority waits.

Drivers hold the calls that wait. Not thread-safe.
"""

from __future__ import annotations

import math
from collections import deque

from lb.core.concurrency import Baseline, LimitState
from lb.core.serving.priority import Priority


class Waiting:
    """A call in the queue. ``call`` is the driver's own."""

    __slots__ = ("call", "displaced", "gone", "priority", "until")

    def __init__(self, priority: Priority, until: float, displaced: Waiting | None) -> None:
        self.priority = priority
        self.until = until
        """When it has waited too long."""
        self.displaced = displaced
        """The call that is refused in favour of this one."""
        self.gone = False
        """It waits no more."""
        self.call: object = None

    def __repr__(self) -> str:
        return f"<Waiting {self.priority.text}{' gone' if self.gone else ''}>"


class Intake:
    """The places of one server, and the queue before them.

    ``queue`` is how many calls may wait; ``queue_s`` how long.
    """

    __slots__ = (
        "_late",
        "_lines",
        "_queue",
        "_queue_s",
        "admitted",
        "in_flight",
        "limit",
        "most",
        "refused",
        "waiting",
    )

    def __init__(self, limit: LimitState, *, queue: int, queue_s: float) -> None:
        self.limit = limit
        self.most: float = math.inf
        """How many calls can run, whatever the limit is: a driver with threads has only so many."""
        self._queue = queue
        self._queue_s = queue_s
        self._lines: tuple[deque[Waiting], ...] = tuple(deque() for _ in Priority)  # the newest at the right
        self._late: list[Waiting] = []
        self.in_flight = 0
        """How many calls run."""
        self.waiting = 0
        """How many calls wait."""
        self.admitted = 0
        self.refused = 0

    @property
    def load(self) -> float:
        """The part of the places in use; above 1 while calls wait."""
        return (self.in_flight + self.waiting) / self.limit.limit

    def take(self) -> bool:
        """Take a place, if one is free and no call waits."""
        if self.waiting or self.in_flight >= self.limit.limit or self.in_flight >= self.most:
            return False
        self.in_flight += 1
        self.admitted += 1
        return True

    def wait(self, priority: Priority, now: float) -> Waiting | None:
        """Take a place in the queue; None: the call is refused. ``displaced`` may have to be refused in its place."""
        displaced = None
        if self.waiting >= self._queue:
            displaced = self._oldest(priority)
            if displaced is None:
                self.refused += 1
                return None
            self._refuse(displaced)
        waiting = Waiting(priority, now + self._queue_s, displaced)
        self._lines[priority].append(waiting)
        self.waiting += 1
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """The call waits no more: its client is gone. Nothing, if it was admitted or refused meanwhile."""
        if not waiting.gone:
            self._remove(waiting)

    def give_back(self) -> None:
        """A call that had a place has ended. `next` says who gets it."""
        self.in_flight -= 1

    def missed(self) -> None:
        """The call that `next` has named is gone: the place that it got is free."""
        self.in_flight -= 1
        self.admitted -= 1

    def learn(self, took_s: float, now: float, of: Baseline) -> None:
        """A call whose place is not given back yet has ended well after ``took_s``; ``of`` is its method's."""
        self.limit.observe(took_s, self.in_flight, now, of)

    def next(self, now: float) -> Waiting | None:
        """The call that waits and may run now, with its place taken; None: there is none. Ask again after each."""
        if not self.waiting or self.in_flight >= self.limit.limit or self.in_flight >= self.most:
            return None
        for line in reversed(self._lines):
            if line and line[-1].until > now:
                waiting = line[-1]
                self._remove(waiting)
                self.in_flight += 1
                self.admitted += 1
                return waiting
            self._late += line  # all of it; did they still count as waiting, a new call could not take the place
            while line:
                self._refuse(line[0])
        return None

    def expired(self, now: float) -> list[Waiting]:
        """The calls that have waited too long: they are refused."""
        over, self._late = self._late, []
        for line in self._lines:
            while line and line[0].until <= now:
                over.append(line[0])
                self._refuse(line[0])
        return over

    def expires_at(self) -> float | None:
        """When to ask for `expired` again; None: nobody waits."""
        return min((line[0].until for line in (self._late, *self._lines) if line), default=None)

    def _refuse(self, waiting: Waiting) -> None:
        self._remove(waiting)
        self.refused += 1

    def _oldest(self, priority: Priority) -> Waiting | None:
        """Who has waited longest of the least important that wait, up to this priority."""
        return next((line[0] for line in self._lines[: priority + 1] if line), None)

    def _remove(self, waiting: Waiting) -> None:
        waiting.gone = True
        line = self._lines[waiting.priority]
        if line[0] is waiting:
            line.popleft()
        elif line[-1] is waiting:
            line.pop()
        else:
            line.remove(waiting)
        self.waiting -= 1

    def __repr__(self) -> str:
        now = f"{self.in_flight} of {self.limit.limit} running, {self.waiting} waiting"
        return f"<Intake {now}; {self.admitted} admitted, {self.refused} refused>"
