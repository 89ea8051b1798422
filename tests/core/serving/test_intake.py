"""The places of a server and the queue before them: by examples, and by a model that any sequence must obey."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lb.core.concurrency import Baseline, ConcurrencyLimit
from lb.core.serving.intake import Intake, Waiting
from lb.core.serving.priority import Priority

QUEUE = 3
QUEUE_S = 1.0
LOW, MIDDLE, HIGH = Priority


def intake(limit: int = 2, queue: int | None = None) -> Intake:
    """Places with a fixed limit; who waits does so for a second at most."""
    return Intake(ConcurrencyLimit(limit=limit).new_state(), queue=limit if queue is None else queue, queue_s=QUEUE_S)


def full(limit: int = 2, queue: int | None = None) -> Intake:
    """All places are taken."""
    made = intake(limit, queue)
    assert all(made.take() for _ in range(limit))
    return made


def waits(places: Intake, priority: Priority = MIDDLE, now: float = 0.0) -> Waiting:
    """One more that waits."""
    waiting = places.wait(priority, now)
    assert waiting is not None
    return waiting


def test_places_are_taken_up_to_the_limit_and_given_back() -> None:
    """Two run, the third does not; when one has ended, it does."""
    places = full(2)
    assert not places.take()
    assert (places.in_flight, places.load) == (2, 1.0)
    places.give_back()
    assert places.take()
    assert places.admitted == 3
    assert repr(places) == "<Intake 2 of 2 running, 0 waiting; 3 admitted, 0 refused>"


def test_the_newest_goes_first() -> None:
    """Last in, first out; the load counts those that wait."""
    places = full(3)
    first, second, third = waits(places), waits(places), waits(places)
    assert places.load == 2.0
    order = []
    for _ in range(3):
        places.give_back()
        order.append(places.next(0.0))
    assert order == [third, second, first]
    assert places.next(0.0) is None


def test_nobody_overtakes_the_queue() -> None:
    """A new call takes no place while another one waits, though one is free."""
    places = full(2)
    waiting = waits(places)
    places.give_back()
    assert not places.take()
    assert places.next(0.0) is waiting


def test_a_full_queue_refuses_its_oldest() -> None:
    """At once, and by name: its driver tells it."""
    places = full(2)
    first, second, third = waits(places), waits(places), waits(places)
    assert first.displaced is None
    assert second.displaced is None
    assert third.displaced is first
    assert first.gone
    assert (places.waiting, places.refused) == (2, 1)


def test_the_important_go_first_and_are_refused_last() -> None:
    """The sheddable make room for the others, and a sheddable call never drives out another kind."""
    places = full(2)
    low, middle = waits(places, LOW), waits(places, MIDDLE)
    high = waits(places, HIGH)
    assert high.displaced is low
    assert places.wait(LOW, 0.0) is None
    again = waits(places, MIDDLE)
    assert again.displaced is middle
    assert waits(places, HIGH).displaced is again
    assert places.wait(MIDDLE, 0.0) is None
    assert waits(places, HIGH).displaced is high
    assert places.refused == 6


def test_an_important_call_goes_before_a_newer_one() -> None:
    """Priority first, then the time."""
    places = full(3)
    high, low, middle = waits(places, HIGH), waits(places, LOW), waits(places, MIDDLE)
    order = []
    for _ in range(3):
        places.give_back()
        order.append(places.next(0.0))
    assert order == [high, middle, low]


def test_who_has_waited_too_long_is_refused() -> None:
    """At ``until`` exactly, and never admitted after it."""
    places = full(2)
    first, second = waits(places, now=0.0), waits(places, now=0.5)
    assert places.expires_at() == 1.0
    assert places.expired(0.999) == []
    assert places.expired(1.0) == [first]
    assert places.expires_at() == 1.5
    places.give_back()
    assert places.next(1.5) is None
    assert places.expired(1.5) == [second]
    assert (places.refused, places.waiting) == (2, 0)
    assert places.expires_at() is None


def test_who_has_waited_too_long_keeps_no_place_from_others() -> None:
    """A loop that was blocked lets a call end before the alarm: the free place goes to the next that comes, at once.

    Those that waited are still told when the alarm comes, which is due.
    """
    places = full(1)
    late = waits(places, now=0.0)
    places.give_back()
    assert places.next(5.0) is None
    assert (places.waiting, places.refused) == (0, 1)
    assert places.take()
    assert places.expires_at() == 1.0
    places.leave(late)
    assert places.expired(5.0) == [late]
    assert places.expired(5.0) == []
    assert (places.waiting, places.refused) == (0, 1)


def test_a_late_important_call_does_not_hold_up_the_others() -> None:
    """It waits no more, so the newest of the next priority goes."""
    places = full(2)
    late, fresh = waits(places, HIGH, now=0.0), waits(places, LOW, now=0.9)
    places.give_back()
    assert places.next(1.2) is fresh
    assert places.expired(1.2) == [late]


def test_who_leaves_makes_room() -> None:
    """From anywhere in the queue; leaving twice, or after all was decided, is nothing."""
    places = full(4)
    a, b, c = waits(places), waits(places), waits(places)
    places.leave(b)
    places.leave(b)
    assert places.waiting == 2
    places.give_back()
    assert places.next(0.0) is c
    places.leave(c)
    assert (places.waiting, places.in_flight) == (1, 4)
    places.leave(a)
    assert places.waiting == 0
    assert places.refused == 0


def test_without_a_queue_nobody_waits() -> None:
    """A call that finds no place is refused."""
    assert full(2, queue=0).wait(HIGH, 0.0) is None
    assert full(2, queue=1).wait(LOW, 0.0) is not None


def test_a_shrunken_limit_lets_nobody_in_until_enough_have_ended() -> None:
    """What runs goes on, and the queue keeps whom it has."""
    places = full(4)
    kept = [waits(places) for _ in range(4)]
    places.limit.limit = 2
    assert waits(places).displaced is kept[0]
    assert places.waiting == 4
    for _ in range(2):
        places.give_back()
        assert places.next(0.0) is None
    places.give_back()
    assert places.next(0.0) is not None
    assert places.next(0.0) is None


def test_what_calls_take_moves_the_limit() -> None:
    """`learn` comes before the place is given back, so that the call itself counts."""
    state = ConcurrencyLimit(limit=4, adaptive=True, min_limit=1).new_state()
    places = Intake(state, queue=4, queue_s=QUEUE_S)
    baseline = Baseline()
    for number in range(40):
        while places.take():
            pass
        places.learn(0.01, number * 0.02, baseline)
        places.give_back()
    assert state.limit > 4
    assert baseline.usual_s == 0.01


class Model(RuleBasedStateMachine):
    """Calls come, wait, leave and end, the limit moves, time passes: every call has one end, and the order holds."""

    def __init__(self) -> None:
        super().__init__()
        self.places = intake(3, QUEUE)
        self.now = 0.0
        self.line: list[Waiting] = []  # in the order of their coming
        self.asked = self.left = self.told = 0
        self.ends = Counter[Waiting]()

    def wait_on(self, waiting: Waiting) -> bool:
        """Whether it has still time."""
        return waiting.until > self.now

    def end(self, waiting: Waiting) -> None:
        """It waits no more."""
        self.line.remove(waiting)
        self.ends[waiting] += 1
        assert waiting.gone

    def hand_on(self) -> None:
        """What a driver does when places may be free."""
        while (waiting := self.places.next(self.now)) is not None:
            assert self.places.in_flight <= self.places.limit.limit
            assert self.wait_on(waiting)
            rivals = [other for other in self.line if self.wait_on(other)]
            assert waiting.priority == max(other.priority for other in rivals)
            assert waiting is [other for other in rivals if other.priority is waiting.priority][-1]
            self.end(waiting)
        if self.places.in_flight < self.places.limit.limit:
            assert not any(self.wait_on(waiting) for waiting in self.line)

    @rule(priority=st.sampled_from(Priority))
    def come(self, priority: Priority) -> None:
        """A call."""
        self.asked += 1
        places = self.places
        free, before = places.in_flight < places.limit.limit, places.waiting
        if places.take():
            assert free
            assert not any(self.wait_on(waiting) for waiting in self.line)
            return
        assert not free
        waiting = places.wait(priority, self.now)
        room = QUEUE
        if waiting is None:
            assert before >= room
            assert all(other.priority > priority for other in self.line if not other.gone)
            self.told += 1
            return
        displaced = waiting.displaced
        assert (displaced is not None) == (before >= room)
        if displaced is not None:
            assert displaced.priority <= priority
            assert displaced.priority == min(other.priority for other in self.line)
            assert displaced is next(other for other in self.line if other.priority is displaced.priority)
            self.end(displaced)
            self.told += 1
        self.line.append(waiting)

    @precondition(lambda self: self.places.in_flight)
    @rule(limit=st.integers(1, 5))
    def finish(self, limit: int) -> None:
        """A call ends, and the limit may move with it."""
        self.places.limit.limit = limit
        self.places.give_back()
        self.hand_on()

    @rule(after_s=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
    def pass_time(self, after_s: float) -> None:
        """Nothing happens, not even the alarm: a loop may be blocked."""
        self.now += after_s

    @rule()
    def alarm(self) -> None:
        """It is looked who has waited too long."""
        at = self.places.expires_at()
        assert at == min((waiting.until for waiting in self.line), default=None)
        late = [waiting for waiting in self.line if not self.wait_on(waiting)]
        over = self.places.expired(self.now)
        assert sorted(map(id, over)) == sorted(map(id, late))
        for waiting in over:
            self.end(waiting)
        self.told += len(over)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        """A client hangs up."""
        waiting = data.draw(st.sampled_from(self.line))
        if waiting.gone:  # it is late already, and will be told so
            self.places.leave(waiting)
            return
        self.places.leave(waiting)
        self.end(waiting)
        self.left += 1

    @invariant()
    def it_adds_up(self) -> None:
        """Every call has been admitted, refused, or has left, or waits."""
        places = self.places
        assert places.waiting == sum(not waiting.gone for waiting in self.line)
        assert places.admitted + places.refused + self.left + places.waiting == self.asked
        assert self.told == places.refused - sum(waiting.gone for waiting in self.line)
        assert places.in_flight >= 0

    def teardown(self) -> None:
        """When time has passed, nobody waits, and nobody was told twice."""
        self.now += 2 * QUEUE_S
        self.alarm()
        assert not self.line
        assert self.places.waiting == 0
        assert set(self.ends.values()) <= {1}


Model.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


def test_a_driver_may_have_less_places_than_the_limit() -> None:
    """``most`` holds for who comes and for who waits; when it grows, they go on."""
    places = intake(limit=3)
    places.most = 1
    assert places.take()
    assert not places.take()
    waiting = waits(places)
    assert places.next(0.0) is None
    places.most = 2
    assert places.next(0.0) is waiting
    assert places.in_flight == 2
