"""The adaptive limit before servers of many kinds, under more load than they can take. Seeds are fixed."""

from __future__ import annotations

from functools import cache

import pytest

from lb.core.concurrency import ConcurrencyLimit
from lb.core.serving.intake import Intake
from lb.core.serving.priority import Priority
from tests.core.gradient2 import Gradient2
from tests.core.overload import SCENARIOS, Method, Run, Scenario, door, old_door, simulate

CAPACITY = 100.0
"""Calls a second that four slots of 40 ms can answer."""
OVERLOAD = 10 * CAPACITY


def clients(count: int, *, old: bool = False) -> list[Intake]:
    """Channels of so many clients, each with a limit of its own."""
    settings = ConcurrencyLimit(limit=16, adaptive=True, min_limit=1)
    return [Intake(Gradient2(settings) if old else settings.new_state(), queue=64, queue_s=0.1) for _ in range(count)]


def ran(scenario: Scenario, *, old: bool = False, seed: int = 1) -> Run:
    """What came of it."""
    return _ran(scenario, old, seed)


@cache
def _ran(scenario: Scenario, old: bool, seed: int) -> Run:
    return scenario.run(old_door() if old else door(), seed)  # several tests look at the same one


@pytest.mark.parametrize(
    ("name", "seed"), [*((name, 1) for name in SCENARIOS), *((name, 2) for name, its in SCENARIOS.items() if its.quick)]
)
def test_a_server_answers_what_it_can_and_nothing_takes_long(name: str, seed: int) -> None:
    """However much more is asked: `Scenario.good` of it is answered, in `Scenario.p99`."""
    scenario = SCENARIOS[name]
    run = ran(scenario, seed=seed)
    assert scenario.goodput(run) >= scenario.good
    assert run.p99_s(scenario.since, scenario.seconds) <= scenario.p99 * scenario.work_s


def test_the_limit_does_not_drift_under_long_overload() -> None:
    """In the fifth minute it is where it was in the first, but for the moments of its probes."""
    run = ran(SCENARIOS["... in the fifth minute"])
    first, last = run.limit(10.0, 60.0), run.limit(240.0, 300.0)
    assert abs(last[len(last) // 2] - first[len(first) // 2]) <= 2
    assert last[-1] <= 12


def test_methods_of_different_cost_are_refused_alike() -> None:
    """One call in ten is slow, and so is one in ten of those that are answered; fast ones do not wait for long."""
    scenario = SCENARIOS["8 slots, 1 ms and 200 ms mixed, 3 times"]
    run = ran(scenario)
    slow, fast = run.between(5.0, scenario.seconds, "slow"), run.between(5.0, scenario.seconds, "fast")
    assert len(slow) / (len(slow) + len(fast)) == pytest.approx(0.1, rel=0.15)
    assert slow[int(0.99 * len(slow))] <= 2 * 0.2
    assert fast[int(0.99 * len(fast))] <= 0.2


@pytest.mark.parametrize("first", [1, 16, 100])
def test_a_server_may_start_under_overload(first: int) -> None:
    """Wherever its limit begins: nearly all of its work is done from the second second on, and soon nothing is late."""
    run = simulate([door(limit=first)], slots=4, rate=lambda _: OVERLOAD, seconds=20.0)
    assert run.per_s(1.0, 20.0) >= 0.9 * CAPACITY
    assert run.p99_s(14.0, 20.0) <= 3.5 * 0.04


def test_slow_work_gets_its_many_places_within_seconds() -> None:
    """200 slots of 200 ms, from a limit of 16: it grows by its root each time that two calls after each other take."""
    method = Method(took_s=0.2)
    run = simulate([door()], slots=200, methods=[method], rate=lambda _: 2000.0, seconds=12.0)
    assert run.per_s(8.0, 12.0) >= 0.93 * 1000
    assert run.p99_s(8.0, 12.0) <= 2 * 0.2


def test_work_that_takes_seconds_is_not_held_back_by_probes() -> None:
    """40 slots of 5 s: a probe takes long, so there are few; five of six calls that could be answered are."""
    intake = door(queue_s=5.0)
    run = simulate([intake], slots=40, methods=[Method(took_s=5.0)], rate=lambda _: 20.0, seconds=600.0)
    assert run.per_s(60.0, 600.0) >= 0.93 * 8
    assert run.limit(200.0, 600.0)[-1] <= 80


def test_bursts_find_their_places() -> None:
    """64 calls come at once, five times a second, to 64 slots: between them nothing runs, and yet the limit grows."""
    run = simulate([door()], slots=64, rate=lambda now: 6400.0 if now % 0.2 < 0.01 else 0.0, seconds=12.0)
    asked = run.asked[Priority.DEFAULT] / 12.0
    assert run.per_s(2.0, 12.0) >= 0.9 * asked
    assert run.p99_s(2.0, 12.0) <= 2.5 * 0.04


@pytest.mark.parametrize("slower", [1.5, 2.0, 3.0, 5.0])
def test_a_dependency_that_becomes_slow_causes_the_overload(slower: float) -> None:
    """What was usual at rest is history then. The limit has never been reached before, and finds its way from 16."""
    run = simulate(
        [door()],
        slots=200,
        rate=lambda now: 150.0 if now < 5.0 else 1.4 * 5000 / slower,
        seconds=20.0,
        slower=lambda now: 1.0 if now < 5.0 else slower,
    )
    assert run.per_s(17.0, 20.0) >= 0.93 * 5000 / slower
    assert run.p99_s(17.0, 20.0) <= 2 * 0.04 * slower


def test_work_that_becomes_slower_bit_by_bit_is_followed() -> None:
    """By a tenth each ten seconds, while the server is full."""

    def level(now: float) -> float:
        return float(1.1 ** (now // 10.0))

    run = simulate([door()], slots=40, rate=lambda _: 1300.0, seconds=100.0, slower=level)
    for start in range(10, 100, 10):
        assert run.per_s(start, start + 10.0) >= 0.93 * 1000 / level(start)
        assert run.p99_s(start, start + 10.0) <= 2.5 * 0.04 * level(start)


def test_work_that_becomes_slower_twice_is_followed() -> None:
    """Also the second time, soon after the limit has found its way once: it does not wait until a probe is due."""
    level = (1.0, 2.0, 4.0)
    run = simulate(
        [door()], slots=40, rate=lambda _: 3000.0, seconds=20.0, slower=lambda now: level[min(2, int(now / 6.0))]
    )
    assert run.per_s(9.0, 12.0) >= 0.93 * 1000 / 2
    assert run.per_s(16.0, 20.0) >= 0.93 * 1000 / 4


def test_work_that_becomes_faster_is_noticed() -> None:
    """Twice as fast: twice as much is answered, and what is let in takes as many work times as before."""
    run = simulate(
        [door()], slots=40, rate=lambda _: 3000.0, seconds=20.0, slower=lambda now: 1.0 if now < 8.0 else 0.5
    )
    assert run.per_s(10.0, 20.0) >= 0.97 * 2000
    assert run.p99_s(10.0, 20.0) <= 3 * 0.02


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_a_pulse_all_is_well_within_two_seconds(seed: int) -> None:
    """Ten times the load for ten seconds, then 80 % again: of that nearly all is answered from the first second on."""
    load = 0.8 * CAPACITY
    run = simulate([door()], slots=4, rate=lambda now: OVERLOAD if 5.0 <= now < 15.0 else load, seconds=25.0, seed=seed)
    asked = run.asked[Priority.DEFAULT]
    before_s, after_s = run.between(0.0, 5.0), run.between(17.0, 25.0)
    assert len(run.between(15.0, 17.0)) >= 0.9 * load * 2
    assert len(after_s) >= 0.9 * load * 8
    assert len(before_s) + len(after_s) < asked
    assert after_s[int(0.99 * len(after_s))] <= 4.5 * 0.04


@pytest.mark.parametrize("load", [0.8, 10.0])
def test_a_process_that_was_stopped_for_five_seconds_goes_on(load: float) -> None:
    """All calls in flight took 5 s then, and all that came meanwhile come at once. Two seconds later all is well."""
    run = simulate([door()], slots=4, rate=lambda _: load * CAPACITY, seconds=25.0, stall=(10.0, 15.0))
    expected = min(load, 1.0) * CAPACITY
    assert run.per_s(15.5, 17.0) >= 0.85 * expected
    assert run.per_s(17.0, 25.0) >= 0.93 * expected
    assert run.p99_s(17.0, 25.0) <= 4.5 * 0.04
    assert run.limit(15.0, 17.0)[0] >= 3


def test_a_probe_costs_little() -> None:
    """Under steady overload, what is not done because the limit is halved for a moment is at most one in fifty."""
    for slots in (4, 40):
        scenario = Scenario(slots=slots, load=1.5, seconds=30.0)
        assert scenario.goodput(ran(scenario)) >= 0.98


def test_important_calls_are_answered_at_ten_times_the_load() -> None:
    """Three in a hundred are critical, a third of what it can do: 99 % of these; of sheddable ones hardly any."""
    run = simulate([door()], slots=4, rate=lambda _: OVERLOAD, seconds=30.0, priorities=(0.5, 0.47, 0.03))
    answered = {priority: len(run.between(0.0, 30.0, priority=priority)) for priority in Priority}
    assert answered[Priority.CRITICAL] >= 0.99 * run.asked[Priority.CRITICAL]
    assert answered[Priority.SHEDDABLE] <= 0.02 * run.asked[Priority.SHEDDABLE]
    assert sum(answered.values()) >= 0.95 * CAPACITY * 30.0


def test_limits_of_many_clients_before_one_server() -> None:
    """Ten of them, none of which knows of the others, at twice the load: all is done; the queue that they make together
    grows, but in a minute less than Gradient2's in the first 20 seconds.
    """
    run = simulate(clients(10), slots=40, rate=lambda _: 2000.0, seconds=60.0, seed=2)
    old = simulate(clients(10, old=True), slots=40, rate=lambda _: 2000.0, seconds=20.0)
    assert run.per_s(5.0, 60.0) >= 0.97 * 1000
    assert run.p99_s(50.0, 60.0) <= 0.4
    assert run.limit(50.0, 60.0)[-1] <= 700
    assert old.limit(19.0, 20.0)[-1] > run.limit(50.0, 60.0)[-1]


# ---- Gradient2, beside it ----


def test_gradient2_lets_in_more_under_long_overload() -> None:
    """Eight work times where the rounds let in two, with the limit anywhere from twice to eight times the slots."""
    scenario = Scenario()
    new, old = ran(scenario), ran(scenario, old=True)
    assert old.p99_s(5.0, 30.0) >= 3 * new.p99_s(5.0, 30.0)
    assert old.limit(5.0, 30.0)[-1] >= 3 * new.limit(5.0, 30.0)[-1]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("200 slots, 1 ms and 200 ms mixed, 1.5 times", 0.75),
        ("40 slots of 40 ms, 2 times", 0.85),
        ("40 slots of 40 ms, 3 times, work becomes 3 times slower", 0.3),
    ],
)
def test_gradient2_leaves_places_unused(name: str, most: float) -> None:
    """A slow method among fast ones, or noise in each answer, is a queue to it, and slower work is one for ever."""
    scenario = SCENARIOS[name]
    assert scenario.goodput(ran(scenario, old=True)) <= most


def test_gradient2_opens_up_just_above_capacity() -> None:
    """A third more than the server can do: its limit goes to the upper bound, and calls take seconds."""
    scenario = Scenario(load=1.3, seconds=40.0, since=20.0)
    assert ran(scenario).p99_s(20.0, 40.0) <= 6 * 0.04
    assert ran(scenario, old=True).p99_s(20.0, 40.0) >= 25 * 0.04
