"""Places for work in one process of asyncio, with the queue before them: drives `lb.core.serving` for any protocol.

`lb.server.Admission` stands on it for gRPC. Whoever serves something else uses it directly::

    places = lb.server.Places(lb.server.Limits(rate=lb.server.Rate(1000)))

    try:
        async with places.take("GET /products", priority=lb.server.Priority.SHEDDABLE, client=address) as place:
            ...  # the work
            place.answered()
    except lb.server.RefusedError as refused:
        ...  # nothing was done: say so, and when to come back (refused.retry_s)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from grpc import StatusCode

from lb.core.serving.admission import Admission as Rules
from lb.core.serving.admission import Refusal, Times
from lb.core.serving.intake import Intake, Waiting
from lb.core.serving.priority import Priority
from lb.core.serving.settings import Limits
from lb.server.arguments import of_limits


class RefusedError(Exception):
    """Work was refused before anything was done for it. The text says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.details)
        self.code: StatusCode = refusal.code
        """RESOURCE_EXHAUSTED: too many a second. UNAVAILABLE: too many at once."""
        self.retry_s: float = refusal.retry_s or (refusal.pushback_ms or 0) / 1000
        """For how many seconds to stay away; 0: it may be tried at once, somewhere else."""


class Place:
    """One of the places of a process, until it is given back."""

    __slots__ = ("_places", "_since", "_task", "_times")

    def __init__(self, places: Places, times: Times, since: float) -> None:
        self._places: Places | None = places
        self._times = times
        self._since = since
        self._task: asyncio.Task[Any] | None = None

    @property
    def held(self) -> bool:
        """Whether it was not given back yet."""
        return self._places is not None

    def begun(self) -> None:
        """The work begins only now: until here it was the client that took its time, and that says nothing."""
        if self._places is not None:
            self._since = self._places.clock()
        if self._task is not None:
            self._task.remove_done_callback(self.over)  # a call of the loop for each is what costs
            self._task = None

    def answered(self) -> None:
        """The work is about to end well, or has shown its first result. The place goes to the next."""
        places = self._places
        if places is not None:
            self._places = None
            now = places.clock()
            places.free(now - self._since, now, self._times)

    def over(self, _: object = None) -> None:
        """The work has ended, however. What was not `answered` says nothing about how long work takes."""
        places = self._places
        if places is not None:
            self._places = self._task = None  # a task holds its place: not the other way round for longer than needed
            places.free(None, places.clock(), self._times)

    def __repr__(self) -> str:
        return f"<Place {'held' if self.held else 'given back'}>"


def keep(place: Place, task: asyncio.Task[Any]) -> None:
    """Until the work begins, it is ``task`` that gives the place back, when it ends."""
    place._task = task
    task.add_done_callback(place.over)


class Places:
    """The places of one process for work, as `Limits` has them. Made for one event loop.

    Args:
        limits: how much work it takes on; by default ``Limits()``.
        rng: source of the jitter of how long to stay away.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = Rules(of_limits(limits), Random() if rng is None else rng)
        self.clock = clock
        self._alarm: asyncio.TimerHandle | None = None
        # The time that places were held for: each begins with a minus and ends with a plus.
        self._held_s = 0.0
        self._asked_at = clock()
        self._asked_s = 0.0

    @property
    def load(self) -> float:
        """The part of the places in use; above 1 while work waits. 0 if there is no limit."""
        intake = self.rules.intake
        return 0.0 if intake is None else intake.load

    def used(self) -> float:
        """The part of the places that was in use, on average since this was asked last. 0 if there is no limit.

        A report of load has this: a moment that is picked says little about a server whose calls take a millisecond.
        """
        intake = self.rules.intake
        now = self.clock()
        passed_s = now - self._asked_at
        if intake is None or passed_s <= 0.0:
            return self.load
        held_s = self._held_s + intake.in_flight * now
        used = (held_s - self._asked_s) / passed_s / intake.limit.limit
        self._asked_at, self._asked_s = now, held_s
        return max(0.0, used)

    def left(self, client: str) -> float | None:
        """How much a client may begin at once by its own rate; None if no client has one."""
        return self.rules.left(client, self.clock())

    @asynccontextmanager
    async def take(
        self, method: str, *, priority: Priority = Priority.DEFAULT, client: str = ""
    ) -> AsyncIterator[Place]:
        """Do the block's work in a place. It may wait for one first, for a moment.

        Args:
            method: the kind of work, such as a route: work of one kind takes about as long each time.
            priority: the least important work is refused first.
            client: for whom, if each client has a rate; empty if that is not known.

        Raises:
            RefusedError: there is no place for it; the block is not entered.
        """
        now = self.clock()
        found = self.at_once(method, client, now)
        if found is None:
            found = await self.after_waiting(method, priority, now)
        if isinstance(found, Refusal):
            raise RefusedError(found)
        try:
            yield found
        finally:
            found.over()

    def at_once(self, method: str, client: str, now: float) -> Place | Refusal | None:
        """A place, or why there is none; None: it has to wait (`after_waiting`)."""
        rules = self.rules
        rules.demand.asked(now)
        refusal = rules.over_rate(method, client, now)
        if refusal is not None:
            return refusal
        intake = rules.intake
        if intake is None or intake.take():
            self._held_s -= now
            return Place(self, rules.times(method), now)
        return None

    async def after_waiting(self, method: str, priority: Priority, now: float) -> Place | Refusal:
        """A place after a while in the queue, or why there is none."""
        rules = self.rules
        intake = rules.intake
        assert intake is not None
        if await self._wait(intake, priority, now):
            return Place(self, rules.times(method), self.clock())
        return rules.full(self.clock())

    def free(self, took_s: float | None, now: float, times: Times) -> None:
        """Work has ended: well after ``took_s``, or (None) otherwise. Its place goes to the next."""
        intake = self.rules.intake
        if took_s is not None:
            times.typical.observe(took_s)
            if intake is not None:
                intake.learn(took_s, now, times.baseline)
        if intake is not None:
            self._give_back(intake, now)

    async def _wait(self, intake: Intake, priority: Priority, now: float) -> bool:
        """Wait in the queue; whether there is a place then."""
        waiting = intake.wait(priority, now)
        if waiting is None:
            return False
        if waiting.displaced is not None:
            _tell(waiting.displaced, admitted=False)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting.call = future
        self._watch(intake)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self._give_back(intake, self.clock())  # it had just got a place
            else:
                intake.leave(waiting)
            raise

    def _watch(self, intake: Intake) -> None:
        """Refuse what has waited too long."""
        if self._alarm is None and (at := intake.expires_at()) is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, at - self.clock()), self._expire, intake)

    def _expire(self, intake: Intake) -> None:
        self._alarm = None
        for waiting in intake.expired(self.clock()):
            _tell(waiting, admitted=False)
        self._watch(intake)

    def _give_back(self, intake: Intake, now: float) -> None:
        self._held_s += now
        intake.give_back()
        if intake.waiting:
            self._admit(intake, now)

    def _admit(self, intake: Intake, now: float) -> None:
        while intake.waiting and (waiting := intake.next(now)) is not None:
            if _tell(waiting, admitted=True):
                self._held_s -= now
            else:
                intake.missed()

    def __repr__(self) -> str:
        return f"<Places {self.rules!r}>"


def _tell(waiting: Waiting, *, admitted: bool) -> bool:
    """Whether the call hears it. It may have been cancelled, and not have left the queue yet."""
    future: Any = waiting.call  # with threads it is none of asyncio's
    if future.done():
        return False
    future.set_result(admitted)
    return True
