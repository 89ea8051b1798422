"""A server under more load than it can take, in virtual time: Poisson arrivals, the real `Intake` and limit.

::

    arrivals ──► door: Intake, with its limit ──► a slot, first come first served ──► answer
                   └──► refused

The server works on ``slots`` calls at once; what is let in beyond that waits in it, unseen, as tasks, threads or a
connection pool let calls wait. The door belongs to the server, or there is one at each of many clients.

``python -m tests.core.overload`` prints what becomes of the `SCENARIOS`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from lb.core.concurrency import Baseline, ConcurrencyLimit
from lb.core.serving.intake import Intake, Waiting
from lb.core.serving.priority import Priority
from lb.core.serving.settings import Concurrency
from tests.core.gradient2 import Gradient2

Rate = Callable[[float], float]


def door(**fields: object) -> Intake:
    """What `lb.server` puts before a server, with these fields of `Concurrency`."""
    concurrency = Concurrency(**fields)  # type: ignore[arg-type]  # whatever a test wants
    return Intake(concurrency.new_state(), queue=concurrency.queue, queue_s=concurrency.queue_s)


def old_door() -> Intake:
    """The same with Gradient2."""
    settings, concurrency = ConcurrencyLimit(limit=16, adaptive=True, min_limit=1), Concurrency()
    return Intake(Gradient2(settings), queue=concurrency.queue, queue_s=concurrency.queue_s)


@dataclass(frozen=True, slots=True)
class Method:
    """Calls of one kind: how long the work takes, how many of all calls they are, and by which factor times differ."""

    name: str = "Get"
    took_s: float = 0.04
    share: float = 1.0
    spread: float = 1.2

    def work_s(self, rng: Random) -> float:
        """How long one call takes, once it has a slot: ``took_s`` on average, longest by shortest is ``spread``."""
        return self.took_s * (1 + (self.spread - 1) / (self.spread + 1) * rng.uniform(-1, 1))


@dataclass(slots=True)
class Arrival:
    """One call."""

    at: float
    method: Method
    priority: Priority
    door: Intake
    baseline: Baseline
    admitted_at: float = 0.0


@dataclass(slots=True)
class Run:
    """What came of it."""

    answers: list[tuple[float, float, Method, Priority]] = field(default_factory=list)
    """When each answer came, and after how long."""
    asked: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    limits: list[tuple[float, int, int]] = field(default_factory=list)
    """Instant, limits of all doors, and calls that run or wait in the server: ten times a second."""

    def between(self, start: float, end: float, of: str = "", priority: Priority | None = None) -> list[float]:
        """How long the calls took that were answered in that time, in order."""
        first = bisect_left(self.answers, (start,))
        last = bisect_left(self.answers, (end,))
        return sorted(
            after
            for _, after, method, its in self.answers[first:last]
            if (not of or method.name == of) and priority in (None, its)
        )

    def per_s(self, start: float, end: float, of: str = "") -> float:
        """Answers a second."""
        return len(self.between(start, end, of)) / (end - start)

    def p99_s(self, start: float, end: float, of: str = "") -> float:
        """How long the slowest hundredth of the answered calls took at least, their time in the queue too."""
        took = self.between(start, end, of)
        return took[int(0.99 * len(took))]

    def limit(self, start: float, end: float) -> list[int]:
        """The limits of that time, in order of size."""
        return sorted(limit for at, limit, _ in self.limits if start <= at < end)


def simulate(
    doors: Sequence[Intake],
    *,
    slots: int,
    rate: Rate,
    seconds: float,
    methods: Sequence[Method] = (Method(),),
    seed: int = 1,
    slower: Callable[[float], float] = lambda now: 1.0,
    stall: tuple[float, float] = (0.0, 0.0),
    priorities: Sequence[float] = (0.0, 1.0, 0.0),
) -> Run:
    """Let calls arrive for so long, ``rate(now)`` a second on average.

    ``slower`` is by how much the work takes longer at an instant. From the first instant of ``stall`` to the second
    nothing happens: what was due then comes at its end, all at once. ``priorities`` are the shares of the three.
    """
    rng, run = Random(seed), Run()
    ends: list[tuple[float, int, Arrival]] = []
    inside: deque[Arrival] = deque()
    alarms = [float("inf")] * len(doors)
    next_alarm = float("inf")
    baselines = [{method.name: Baseline() for method in methods} for _ in doors]
    shares = [method.share for method in methods]
    working = number = 0
    arrives_at = tick_at = 0.0
    levels = list(Priority)

    def begin(call: Arrival, now: float) -> None:
        nonlocal working, number
        working += 1
        number += 1
        heapq.heappush(ends, (now + call.method.work_s(rng) * slower(now), number, call))

    def let_in(call: Arrival, now: float) -> None:
        call.admitted_at = now
        if working < slots:
            begin(call, now)
        else:
            inside.append(call)

    while True:
        ended_at = ends[0][0] if ends else float("inf")
        due = min(arrives_at, ended_at)
        if due >= seconds:
            return run
        now = stall[1] if stall[0] <= due < stall[1] else due
        while tick_at <= now:
            run.limits.append((tick_at, sum(door.limit.limit for door in doors), working + len(inside)))
            tick_at += 0.1
        if next_alarm <= now:
            for at, alarm in enumerate(alarms):
                if alarm <= now:
                    doors[at].expired(now)
                    alarms[at] = doors[at].expires_at() or float("inf")
            next_alarm = min(alarms)
        if ended_at <= arrives_at:
            call = heapq.heappop(ends)[2]
            working -= 1
            if inside:
                begin(inside.popleft(), now)
            run.answers.append((now, now - call.at, call.method, call.priority))
            door = call.door
            door.learn(now - call.admitted_at, now, call.baseline)
            door.give_back()
            while (waiting := door.next(now)) is not None:
                assert isinstance(waiting.call, Arrival)
                let_in(waiting.call, now)
            continue
        current = rate(due)
        arrives_at = due + (rng.expovariate(current) if current > 0 else 0.01)
        if current <= 0:
            continue
        at = rng.randrange(len(doors)) if len(doors) > 1 else 0
        method = rng.choices(methods, shares)[0] if len(methods) > 1 else methods[0]
        priority = rng.choices(levels, priorities)[0] if priorities[1] < 1.0 else Priority.DEFAULT
        run.asked[priority] += 1
        call = Arrival(now, method, priority, doors[at], baselines[at][method.name])
        if doors[at].take():
            let_in(call, now)
        else:
            place: Waiting | None = doors[at].wait(priority, now)
            if place is not None:
                place.call = call
                alarms[at] = min(alarms[at], place.until)
                next_alarm = min(next_alarm, place.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load, and what must come of it: most of what the server can do, and nothing that takes long.

    ``load`` is in capacities. ``since`` is when counting begins, in seconds. From ``slower_at`` on, work takes
    ``slower`` times as long. ``good`` is the least share of what was possible, ``p99`` the most, in mean work times.
    """

    slots: int = 4
    load: float = 10.0
    methods: tuple[Method, ...] = (Method(),)
    seconds: float = 30.0
    since: float = 5.0
    slower_at: float = float("inf")
    slower: float = 1.0
    good: float = 0.95
    p99: float = 2.5

    @property
    def quick(self) -> bool:
        """Whether it takes little time to simulate."""
        return self.seconds * self.load * self.slots / self.work_s < 40_000

    @property
    def work_s(self) -> float:
        """How long a call works on average, at the end."""
        return self.slower * sum(method.took_s * method.share for method in self.methods)

    @property
    def possible_per_s(self) -> float:
        """How many calls a second could be answered, at the end."""
        return min(1.0, self.load * self.slower) * self.slots / self.work_s

    def run(self, door: Intake, seed: int = 1) -> Run:
        """Let it happen."""
        rate = self.load * self.slots / self.work_s * self.slower
        return simulate(
            [door],
            slots=self.slots,
            methods=self.methods,
            rate=lambda _: rate,
            seconds=self.seconds,
            seed=seed,
            slower=lambda now: self.slower if now >= self.slower_at else 1.0,
        )

    def goodput(self, run: Run) -> float:
        """Which share of what was possible was answered."""
        return run.per_s(self.since, self.seconds) / self.possible_per_s


MIXED = (Method("fast", 0.001, 0.9), Method("slow", 0.2, 0.1))
SCENARIOS = {
    "4 slots of 40 ms, 10 times the load": Scenario(),
    "... in the fifth minute": Scenario(seconds=300.0, since=240.0),
    "... just what it can take": Scenario(load=1.0, seconds=60.0, good=0.93, p99=6.0),
    "... work becomes 2 times slower": Scenario(slower_at=15.0, slower=2.0, since=17.0, good=0.9),
    "... work becomes 3 times slower": Scenario(slower_at=15.0, slower=3.0, since=17.0, good=0.9),
    "... whose work differs by a factor of 10": Scenario(methods=(Method(spread=10.0),), good=0.93, p99=4.0),
    "1 slot of 5 ms, 3 times": Scenario(slots=1, load=3.0, methods=(Method(took_s=0.005),), p99=10.0),
    "1 slot of 50 us, 3 times": Scenario(
        slots=1, load=3.0, methods=(Method(took_s=0.00005),), seconds=2.0, since=1.0, p99=80.0
    ),
    "40 slots of 40 ms, 2 times": Scenario(slots=40, load=2.0),
    "40 slots of 40 ms, 3 times, work becomes 3 times slower": Scenario(
        slots=40, load=3.0, slower_at=10.0, slower=3.0, since=12.0, seconds=25.0, good=0.9
    ),
    "8 slots, 1 ms and 200 ms mixed, 3 times": Scenario(slots=8, load=3.0, methods=MIXED, good=0.93, p99=15.0),
    "200 slots, 1 ms and 200 ms mixed, 1.5 times": Scenario(
        slots=200, load=1.5, methods=MIXED, seconds=12.0, since=5.0, good=0.93, p99=15.0
    ),
}


def main() -> None:
    """Print a table of both rules."""
    print("| load | answered, of what is possible | p99 | limit | Gradient2: answered | p99 | limit |")
    print("|---|---|---|---|---|---|---|")
    for name, scenario in SCENARIOS.items():
        cells = [name]
        for made in (door(), old_door()):
            run = scenario.run(made)
            p99_s = run.p99_s(scenario.since, scenario.seconds)
            limits = run.limit(scenario.since, scenario.seconds)
            cells += [f"{scenario.goodput(run):.0%}", f"{p99_s * 1000:.3g} ms", f"{limits[0]} to {limits[-1]}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
