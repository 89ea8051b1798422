"""Who has a place and a thread of a server with threads, who waits for them, and whose time is over: under one lock."""

from __future__ import annotations

import threading
import time
from types import ModuleType
from typing import Any

from lb.core.headers import last_value
from lb.core.serving.admission import Refusal, Times
from lb.core.serving.intake import Intake, Waiting
from lb.server.places import Place, Places
from lb.server.threads.alarm import Alarm
from lb.server.threads.pool import Job, LaneName, Pool
from lb.shared import scopes
from lb.shared import threads as kinds


class Stay:
    """One call, from its arrival until its thread is free."""

    __slots__ = ("_desk", "due", "ended", "job", "lane", "place", "refusal", "streams", "times", "waiting")

    def __init__(self, desk: Desk, place: Place | None, times: Times | None = None) -> None:
        self._desk = desk
        self.place = place
        """None: it has none, yet."""
        self.times = times
        """What is known of its method, for a place later."""
        self.waiting: Waiting | None = None
        self.refusal: Refusal | None = None
        """Why it is refused, after it has waited."""
        self.lane: LaneName | None = "calls" if place is not None else None
        """Where its job belongs; None: it waits."""
        self.job: Job | None = None
        self.due: float | None = None
        """When its handler takes too long."""
        self.streams = False
        """It has no place any more, but a thread."""
        self.ended = False

    def came(self, job: Job) -> LaneName | None:
        """See `Errand`."""
        if self.lane is not None:
            self.job = job
            return self.lane
        with self._desk.lock:
            self.job = job
            return self.lane

    def over(self) -> None:
        """See `Errand`."""
        self._desk.leave(self)
        self.job = self.waiting = None

    # ---- what `Places` asks of the future of a call that waits, under the lock

    def done(self) -> bool:
        """Whether it was told."""
        return self.lane is not None

    def set_result(self, admitted: bool) -> None:
        """It has a place, or is refused."""
        self._desk.tell(self, admitted=admitted)


class Threaded(Places):
    """The places of a server, which has only so many threads beside them."""

    def give_threads(self, number: int) -> None:
        """There are more threads for calls with a place, or less. Nothing, if any number may run."""
        intake = self.rules.intake
        if intake is not None:
            intake.most += number
            self._admit(intake, self.clock())


class Desk:
    """The rules of one server, its places and its threads."""

    def __init__(self, places: Threaded, pool: Pool) -> None:
        self.lock = kinds.lock()
        self.places = places
        self.busy = 0
        """How many threads are taken, or will be once one is free."""
        self._pool = pool
        self._timeout_s = places.rules.limits.timeout_s
        self._private: ModuleType | None = None
        if self._timeout_s is not None:
            # Imported here: nothing else needs private names of grpcio.
            from lb.server.threads import _grpcio

            self._private = _grpcio
        if places.rules.intake is not None:
            places.rules.intake.most = pool.threads
        self._idle: threading.Event | None = None
        """Set when no thread is taken; there is one while somebody waits for it."""
        self._told: list[tuple[Job, LaneName]] = []
        """Jobs that waited, and where they go once the lock is free."""
        self._limited: dict[Stay, None] = {}
        """Whose time is limited, the first one to be due first."""
        self._alarm = pool.alarm = Alarm(self._look)

    def ask(self, method: str, metadata: Any) -> Stay | Refusal:
        """A place and a thread for a call, or one that waits for them, or why there is none."""
        places = self.places
        rules = places.rules
        client = last_value(metadata, rules.client_key) if rules.client_key is not None else ""
        with self.lock:
            now = places.clock()
            found = places.at_once(method, client, now)
            if isinstance(found, Place):
                self.busy += 1
                return Stay(self, found)
            if found is not None:
                return found
            assert rules.intake is not None
            waits = self._wait(rules.intake, method, metadata, now)
            told = self._tellings()
        self._send(told)
        if not self._alarm.started and isinstance(waits, Stay):
            self._alarm.start()
        return waits

    def start(self, stay: Stay, times: Times, left_s: float) -> Refusal | None:
        """A handler begins, for a call with so many seconds left. Why the call is refused, if it is."""
        timeout_s = self._timeout_s
        with self.lock:
            assert stay.place is not None
            stay.place.begun()
            refusal = self.places.rules.hopeless(times, left_s)
            if refusal is not None or timeout_s is None or left_s <= timeout_s:
                return refusal
            stay.due = time.monotonic() + timeout_s
            self._limited[stay] = None
            self._alarm.by(timeout_s)
        if not self._alarm.started:
            self._alarm.start()
        scopes.enter(scopes.Bound(timeout_s, scopes.current(), None))
        return None

    def shown(self, stay: Stay) -> None:
        """A stream has its first response: others may have its place, but not its thread."""
        with self.lock:
            assert stay.place is not None
            stay.streams = True
            self.places.give_threads(-1)
            stay.place.answered()
            told = self._tellings()
        self._send(told)

    def failed(self, stay: Stay) -> None:
        """A handler raises. After its time that is what comes of it."""
        if stay.due is not None and time.monotonic() >= stay.due:
            self._end(stay)

    def leave(self, stay: Stay, *, well: bool = False) -> None:
        """A call has ended, however: others may have its place and its thread. It may be told again."""
        if stay.ended:
            return
        with self.lock:
            if stay.ended:
                return
            stay.ended = True
            intake = self.places.rules.intake
            place = stay.place
            if place is None:
                if stay.waiting is not None and intake is not None:
                    intake.leave(stay.waiting)
                return
            self.busy -= 1
            if stay.due is not None:
                self._limited.pop(stay, None)
            if stay.streams:
                self.places.give_threads(1)
            elif well:
                place.answered()
            else:
                place.over()
            if not self.busy and self._idle is not None:
                self._idle.set()
                self._idle = None
            told = self._tellings()
        self._send(told)

    def tell(self, stay: Stay, *, admitted: bool) -> None:
        """A call that waited has a place, or is refused. Under the lock."""
        places = self.places
        now = places.clock()
        if admitted:
            assert stay.times is not None
            stay.place = Place(places, stay.times, now)
            self.busy += 1
            stay.lane = "calls"
        else:
            stay.refusal = places.rules.full(now)
            stay.lane = "refusals"
        if stay.job is not None:
            self._told.append((stay.job, stay.lane))

    def wait_until_idle(self) -> None:
        """Return once no call runs."""
        with self.lock:
            if not self.busy:
                return
            if self._idle is None:
                self._idle = threading.Event()
            idle = self._idle
        idle.wait()

    def _wait(self, intake: Intake, method: str, metadata: Any, now: float) -> Stay | Refusal:
        rules = self.places.rules
        waiting = intake.wait(scopes.priority_in(metadata), now)
        if waiting is None:
            return rules.full(now)
        stay = Stay(self, None, rules.times(method))
        stay.waiting, waiting.call = waiting, stay
        displaced = waiting.displaced
        if displaced is not None:
            assert isinstance(displaced.call, Stay)
            self.tell(displaced.call, admitted=False)
        self._alarm.by(max(0.0, waiting.until - now))
        return stay

    def _look(self) -> None:
        """Refuse who has waited too long, and end the calls whose time is over."""
        with self.lock:
            now = self.places.clock()
            left = []
            intake = self.places.rules.intake
            if intake is not None:
                for waiting in intake.expired(now):
                    assert isinstance(waiting.call, Stay)
                    self.tell(waiting.call, admitted=False)
                if (at := intake.expires_at()) is not None:
                    left.append(max(0.0, at - now))
            over = self._overdue(time.monotonic(), left)
            self._alarm.next(min(left, default=None))
            told = self._tellings()
        self._send(told)
        for stay in over:
            self._end(stay)

    def _overdue(self, now: float, left: list[float]) -> list[Stay]:
        """Whose time is over; adds how much time the next one has left."""
        over = []
        for stay in self._limited:
            assert stay.due is not None
            if stay.due > now:
                left.append(stay.due - now)
                break
            over.append(stay)
        for stay in over:
            del self._limited[stay]
        return over

    def _end(self, stay: Stay) -> None:
        job = stay.job
        if job is not None and self._private is not None:
            details = f"the handler took longer than the {self._timeout_s:g} s it may take here"
            self._private.end(job.arguments, details)

    def _tellings(self) -> list[tuple[Job, LaneName]]:
        told = self._told
        if told:
            self._told = []
        return told

    def _send(self, told: list[tuple[Job, LaneName]]) -> None:
        for job, lane in told:
            self._pool.go(job, lane)

    def __repr__(self) -> str:
        return f"{self.places!r} limited={len(self._limited)} threads={self.busy} of {self._pool.threads}"
