"""The circuit breaker: each rule by example, then random histories against a naive model."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from lb.core.breaker import REFUSED, Breaker, BreakerState, State, Transition
from lb.core.outcome import Verdict

OK, BAD, IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED
RNG = Random(0)
STEADY = Breaker(jitter=0.0)


def state_of(breaker: BreakerState) -> State:
    """A call, so that a type checker does not take the state of before for that of now."""
    return breaker.state


def feed(breaker: BreakerState, verdicts: list[Verdict], now: float) -> None:
    """Admit and end one attempt per verdict."""
    for verdict in verdicts:
        breaker.release(breaker.acquire(now), verdict, now, RNG)


def opened(settings: Breaker = STEADY, now: float = 0.0) -> BreakerState:
    """A breaker that five failures have opened at ``now``."""
    breaker = settings.new_state()
    feed(breaker, [BAD] * 5, now)
    assert state_of(breaker) is State.OPEN
    return breaker


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("consecutive_failures", 0, "a whole number >= 1, or None"),
        ("consecutive_failures", 2.5, "a whole number >= 1, or None"),
        ("consecutive_failures", True, "a whole number >= 1, or None"),
        ("failure_ratio", 0, "a number > 0 and <= 1, or None"),
        ("failure_ratio", 1.01, "a number > 0 and <= 1, or None"),
        ("minimum_calls", 0, "a whole number >= 1"),
        ("minimum_calls", None, "a whole number >= 1"),
        ("window_s", 0, "seconds > 0"),
        ("window_s", float("inf"), "seconds > 0, at most 1e+09"),
        ("open_s", -1, "seconds > 0"),
        ("open_s", "1", "seconds > 0"),
        ("probe_s", float("nan"), "seconds > 0"),
        ("refused_s", 0, "seconds > 0, or None"),
        ("unanswered_s", -1, "seconds > 0, or None"),
        ("max_open_s", 0.5, "seconds >= open_s (1.0)"),
        ("jitter", 1.5, "a number from 0 to 1"),
    ],
)
def test_a_bad_setting_is_named(field: str, value: object, accepted: str) -> None:
    """The error has field, value and what is accepted."""
    with pytest.raises((TypeError, ValueError)) as error:
        Breaker(**{field: value})  # type: ignore[arg-type]  # the point of the test
    assert str(error.value) == f"Breaker.{field} is {value!r}; expected {accepted}"


def test_five_failures_in_a_row_open_it() -> None:
    """The fifth failure in a row opens, four and a success do not; ignored ends neither count nor reset."""
    breaker = Breaker().new_state()
    feed(breaker, [BAD] * 4 + [OK] + [BAD, IGNORED, BAD, IGNORED, BAD, BAD], 0.0)
    assert state_of(breaker) is State.CLOSED
    move = breaker.release(breaker.acquire(1.0), BAD, 1.0, RNG)
    assert move is not None
    assert (move.before, move.after, move.at, move.reason) == (State.CLOSED, State.OPEN, 1.0, "5 failures in a row")
    assert breaker.last == move
    assert breaker.retry_at == 1.0 + move.open_s


def test_half_of_ten_calls_open_it() -> None:
    """Failures spread among successes open by their share, once there are enough calls; ignored ones are no calls."""
    breaker = Breaker().new_state()
    feed(breaker, [BAD, OK] * 4 + [IGNORED] * 20 + [OK], 0.0)
    assert state_of(breaker) is State.CLOSED
    feed(breaker, [BAD], 0.0)
    assert state_of(breaker) is State.OPEN
    assert breaker.last is not None
    assert breaker.last.reason == "5 of 10 calls failed in 20 s"


def test_old_failures_do_not_count() -> None:
    """Failures older than the window have no part in the share."""
    breaker = Breaker().new_state()
    feed(breaker, [BAD, OK] * 4 + [OK], 0.0)
    feed(breaker, [BAD], 20.0)
    assert state_of(breaker) is State.CLOSED


def test_each_limit_can_be_turned_off() -> None:
    """None turns a limit off; with both off nothing opens it."""
    by_share = Breaker(consecutive_failures=None).new_state()
    feed(by_share, [BAD] * 9, 0.0)
    assert state_of(by_share) is State.CLOSED
    feed(by_share, [BAD], 0.0)
    assert state_of(by_share) is State.OPEN
    by_row = Breaker(failure_ratio=None).new_state()
    feed(by_row, [BAD, BAD, OK] * 100, 0.0)
    assert state_of(by_row) is State.CLOSED
    never = Breaker(consecutive_failures=None, failure_ratio=None).new_state()
    feed(never, [BAD] * 1000, 0.0)
    assert state_of(never) is State.CLOSED


def test_open_refuses_until_its_time_is_up_then_admits_one_probe() -> None:
    """Looking (``admits``) moves nothing; the first ``acquire`` after the time takes the only place."""
    breaker = opened()
    assert not breaker.admits(0.99)
    assert breaker.acquire(0.99) == REFUSED
    assert breaker.admits(1.0)
    assert state_of(breaker) is State.OPEN
    probe = breaker.acquire(1.0)
    assert probe
    assert state_of(breaker) is State.HALF_OPEN
    assert not breaker.admits(1.0)
    assert breaker.acquire(1.0) == REFUSED


def test_a_good_probe_closes_and_forgets() -> None:
    """A success in HALF_OPEN closes; failures of before count no more and the next opening is short again."""
    breaker = opened()
    feed(breaker, [BAD], 1.0)
    move = breaker.release(breaker.acquire(3.0), OK, 3.0, RNG)
    assert move is not None
    assert (move.after, breaker.retry_at) == (State.CLOSED, None)
    feed(breaker, [BAD] * 4, 3.0)
    assert state_of(breaker) is State.CLOSED
    feed(breaker, [BAD], 3.0)
    assert breaker.last is not None
    assert breaker.last.open_s == 1.0


def test_failed_probes_double_the_open_time_up_to_the_longest() -> None:
    """1, 2, 4 ... seconds, and never more than ``max_open_s``."""
    breaker, now, seen = opened(Breaker(jitter=0.0, max_open_s=10.0)), 0.0, []
    for _ in range(6):
        assert breaker.retry_at is not None
        seen.append(breaker.retry_at - now)
        now = breaker.retry_at
        feed(breaker, [BAD], now)
    assert seen == [1, 2, 4, 8, 10, 10]


def test_jitter_spreads_every_opening_and_never_exceeds_the_longest() -> None:
    """Breakers that fail together open again at different instants, also at the longest open time."""
    rng, setting = Random(5), Breaker(open_s=1.0, max_open_s=4.0, jitter=0.5)
    for rounds, low, high in ((0, 1.0, 1.5), (1, 2.0, 3.0), (2, 4 / 1.5, 4.0), (5, 4 / 1.5, 4.0)):
        seen = []
        for _ in range(200):
            breaker, now = opened(setting), 0.0
            for _ in range(rounds):
                assert breaker.retry_at is not None
                now = breaker.retry_at
                breaker.release(breaker.acquire(now), BAD, now, rng)
            assert breaker.last is not None
            seen.append(breaker.last.open_s)
        assert low <= min(seen)
        assert max(seen) <= high
        if rounds:
            assert len(set(seen)) > 190


def test_an_ignored_probe_gives_its_place_back() -> None:
    """The next one may probe at once."""
    breaker = opened()
    assert breaker.release(breaker.acquire(1.0), IGNORED, 1.1, RNG) is None
    assert (state_of(breaker), breaker.retry_at) == (State.HALF_OPEN, None)
    assert breaker.admits(1.1)
    feed(breaker, [OK], 1.1)
    assert state_of(breaker) is State.CLOSED


def test_a_probe_that_never_returns_is_given_up() -> None:
    """After ``probe_s`` the place is free; the lost one, should it come back after all, decides nothing."""
    breaker = opened(Breaker(jitter=0.0, probe_s=30.0))
    lost = breaker.acquire(1.0)
    assert breaker.retry_at == 31.0
    assert not breaker.admits(30.9)
    second = breaker.acquire(31.0)
    assert second not in (REFUSED, lost)
    assert breaker.release(lost, BAD, 31.5, RNG) is None
    assert breaker.acquire(31.5) == REFUSED
    breaker.release(second, OK, 32.0, RNG)
    assert state_of(breaker) is State.CLOSED


def test_a_straggler_decides_nothing() -> None:
    """An attempt from before the opening neither closes a HALF_OPEN breaker nor fails its probe."""
    breaker = STEADY.new_state()
    stragglers = [breaker.acquire(0.0) for _ in range(4)]
    feed(breaker, [BAD] * 5, 0.0)
    assert breaker.release(stragglers[0], OK, 0.5, RNG) is None
    probe = breaker.acquire(1.0)
    assert breaker.release(stragglers[1], OK, 1.0, RNG) is None
    assert breaker.release(stragglers[2], BAD, 1.0, RNG) is None
    assert state_of(breaker) is State.HALF_OPEN
    breaker.release(probe, OK, 1.0, RNG)
    assert breaker.release(stragglers[3], BAD, 1.0, RNG) is None
    assert state_of(breaker) is State.CLOSED


def test_a_forced_attempt_decides_nothing() -> None:
    """Who calls although refused releases REFUSED, in any state, without effect."""
    for breaker in (STEADY.new_state(), opened()):
        before = repr(breaker)
        for verdict in Verdict:
            assert breaker.release(REFUSED, verdict, 0.5, RNG) is None
        assert repr(breaker) == before


def test_a_permit_returned_twice_counts_once() -> None:
    """The second return of a probe decides nothing."""
    breaker = opened()
    probe = breaker.acquire(1.0)
    breaker.release(probe, IGNORED, 1.0, RNG)
    assert breaker.release(probe, OK, 1.0, RNG) is None
    assert state_of(breaker) is State.HALF_OPEN


# ---- late answers ----


def test_late_answers_count_in_a_row_and_not_into_the_share() -> None:
    """Five late ones in a row open it; with a success between them nothing happens, however many there are."""
    breaker = STEADY.new_state()
    for _ in range(4):
        assert breaker.late(breaker.acquire(0.0), 0.0, RNG) is None
    move = breaker.late(breaker.acquire(0.0), 0.0, RNG)
    assert move is not None
    assert (move.after, move.reason) == (State.OPEN, "5 failures or late answers in a row")
    breaker = STEADY.new_state()
    for _ in range(100):
        breaker.late(breaker.acquire(0.0), 0.0, RNG)
        feed(breaker, [OK], 0.0)
    assert state_of(breaker) is State.CLOSED


def test_late_answers_and_failures_add_up_in_a_row() -> None:
    """Three and two."""
    breaker = STEADY.new_state()
    feed(breaker, [BAD] * 3, 0.0)
    breaker.late(breaker.acquire(0.0), 0.0, RNG)
    assert breaker.late(breaker.acquire(0.0), 0.0, RNG) is not None


def test_a_late_probe_has_failed() -> None:
    """And a late straggler from before decides nothing."""
    breaker = opened()
    old = breaker.generation - 1
    assert breaker.late(old, 0.5, RNG) is None
    move = breaker.late(breaker.acquire(1.0), 1.0, RNG)
    assert move is not None
    assert (move.before, move.after) == (State.HALF_OPEN, State.OPEN)


def test_without_a_limit_in_a_row_late_answers_open_nothing() -> None:
    """They are no failures of the share."""
    breaker = Breaker(consecutive_failures=None).new_state()
    for _ in range(50):
        assert breaker.late(breaker.acquire(0.0), 0.0, RNG) is None


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_permit_that_was_never_given_out_raises(ahead: int) -> None:
    """Releasing what nobody acquired is a caller's bug: an error that shows the breaker."""
    breaker = opened()
    with pytest.raises(ValueError, match="never given out by <BreakerState OPEN"):
        breaker.release(breaker.generation + ahead, OK, 0.0, RNG)


def in_state(state: State) -> tuple[BreakerState, list[int]]:
    """A breaker in that state, and the permits that are out: the newest last."""
    breaker = STEADY.new_state()
    permits = [breaker.acquire(0.0)]
    if state is not State.CLOSED:
        feed(breaker, [BAD] * 5, 0.0)
    if state is State.HALF_OPEN:
        permits.append(breaker.acquire(1.0))
    assert breaker.state is state
    return breaker, permits


WAYS_BACK: dict[str, Callable[[BreakerState, int, float], Transition | None]] = {
    "success": lambda breaker, permit, now: breaker.release(permit, OK, now, RNG),
    "failure": lambda breaker, permit, now: breaker.release(permit, BAD, now, RNG),
    "ignored": lambda breaker, permit, now: breaker.release(permit, IGNORED, now, RNG),
    "late": lambda breaker, permit, now: breaker.late(permit, now, RNG),
    "open now": lambda breaker, permit, now: breaker.open_now(permit, now, RNG, "it refuses all calls"),
}


@pytest.mark.parametrize(
    ("state", "way", "to"),
    [
        (State.CLOSED, "success", None),
        (State.CLOSED, "failure", None),
        (State.CLOSED, "ignored", None),
        (State.CLOSED, "late", None),
        (State.CLOSED, "open now", State.OPEN),
        *((State.OPEN, way, None) for way in WAYS_BACK),
        (State.HALF_OPEN, "success", State.CLOSED),
        (State.HALF_OPEN, "failure", State.OPEN),
        (State.HALF_OPEN, "ignored", None),
        (State.HALF_OPEN, "late", State.OPEN),
        (State.HALF_OPEN, "open now", State.OPEN),
    ],
)
def test_each_way_back_in_each_state(state: State, way: str, to: State | None) -> None:
    """The table at the top of the module, line by line: where the newest permit that is out leads to."""
    breaker, permits = in_state(state)
    move = WAYS_BACK[way](breaker, permits[-1], 1.0)
    assert (move and (move.before, move.after)) == (to and (state, to))
    assert breaker.state is (to or state)


@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize("state", [State.OPEN, State.HALF_OPEN])
def test_a_permit_from_before_a_move_moves_nothing(state: State, way: str) -> None:
    """In whichever way it comes back."""
    breaker, permits = in_state(state)
    before = repr(breaker)
    assert WAYS_BACK[way](breaker, permits[0], 1.0) is None
    assert repr(breaker) == before


def test_blame_stays_until_it_opens_for_another_reason() -> None:
    """It says why the breaker is open; a probe that failed leaves it as it is."""
    breaker = STEADY.new_state()
    breaker.open_now(breaker.acquire(0.0), 0.0, RNG, "the others answer far better", blamed=True)
    assert breaker.blamed == "the others answer far better"
    feed(breaker, [BAD], 1.0)
    assert breaker.blamed == "the others answer far better"
    feed(breaker, [OK], 3.0)
    breaker.open_now(breaker.acquire(3.0), 3.0, RNG, "it refuses all calls")
    assert breaker.blamed == ""


def test_repr_tells_the_state() -> None:
    """A failing assertion explains itself: state, until when, why, generation."""
    assert repr(opened()) == "<BreakerState OPEN until=1.000 (5 failures in a row) generation=2 in_row=0 newest=0/0>"


class AgainstAModel(RuleBasedStateMachine):
    """Random histories of a breaker, beside a model that keeps everything it ever saw."""

    settings_ = Breaker(
        consecutive_failures=3,
        failure_ratio=0.5,
        minimum_calls=6,
        window_s=10.0,
        open_s=2.0,
        max_open_s=16.0,
        jitter=0.5,
        probe_s=8.0,
    )
    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = self.settings_.new_state()
        self.rng = Random(1)
        self.now = 0.0
        self.state = State.CLOSED
        self.epoch = 0  # grows with every move: permits of an older one are stragglers
        self.row = 0
        self.calls: list[tuple[float, bool]] = []
        self.origin: float | None = None
        self.opening = 2.0
        self.until = 0.0
        self.probe: tuple[int, float] | None = None  # its serial number and when it is given up
        self.serial = 0
        self.last_at = -1.0

    def model_admits(self) -> bool:
        """By the words of the docstring."""
        if self.state is State.OPEN:
            return self.now >= self.until
        return self.state is State.CLOSED or self.probe is None or self.now >= self.probe[1]

    def model_too_many(self) -> bool:
        """Either limit, from the list of all calls. A bucket is 1 s; the first begins with the first call."""
        if self.row >= 3:
            return True
        assert self.origin is not None
        newest = int(self.now - self.origin)
        seen = [bad for at, bad in self.calls if at >= self.origin and int(at - self.origin) > newest - 10]
        return len(seen) >= 6 and sum(seen) >= 0.5 * len(seen)

    def model_move(self, to: State) -> None:
        """Every move forgets what was counted."""
        self.state = to
        self.epoch += 1
        self.row = 0
        self.calls = []
        self.origin = None
        self.probe = None

    @rule(quarters=st.integers(0, 48))
    def time_passes(self, quarters: int) -> None:
        """By quarters of a second, so that sums are exact."""
        self.now += quarters / 4

    @rule(target=permits)
    def acquire(self) -> tuple[int, int, int]:
        """Admitted exactly when the model says so. A refused one goes on by force."""
        admitted = self.model_admits()
        assert self.breaker.admits(self.now) is admitted
        generation = self.breaker.acquire(self.now)
        assert (generation != REFUSED) is admitted
        self.serial += 1
        if not admitted:
            return generation, -1, self.serial
        if self.state is not State.CLOSED:
            if self.state is State.OPEN:
                self.model_move(State.HALF_OPEN)
            self.probe = (self.serial, self.now + 8.0)
        return generation, self.epoch, self.serial

    @rule(permit=permits, verdict=st.sampled_from(Verdict))
    def release(self, permit: tuple[int, int, int], verdict: Verdict) -> None:
        """Moves exactly when the model does; the new open time is in the model's bounds."""
        generation, epoch, serial = permit
        before = self.state
        move = self.breaker.release(generation, verdict, self.now, self.rng)
        if epoch == self.epoch and verdict is not IGNORED and self.state is State.CLOSED:
            newest = None if self.origin is None or not self.calls else int(self.calls[-1][0] - self.origin)
            if self.origin is None or newest is None or int(self.now - self.origin) - newest >= 10:
                self.origin = self.now
            self.calls.append((self.now, verdict is BAD))
            self.row = self.row + 1 if verdict is BAD else 0
            if verdict is BAD and self.model_too_many():
                self.model_open(move.open_s if move else 0.0)
        elif epoch == self.epoch and self.probe is not None and self.probe[0] == serial:
            self.probe = None
            if verdict is OK:
                self.opening = 2.0
                self.model_move(State.CLOSED)
            elif verdict is BAD:
                self.model_open(move.open_s if move else 0.0)
        assert (move is not None) is (self.state is not before)
        if move is not None:
            assert (move.before, move.after, move.at) == (before, self.state, self.now)

    def model_open(self, open_s: float) -> None:
        """The jitter is taken over from the breaker, within bounds."""
        base = min(self.opening, 16.0 / 1.5)
        assert base <= open_s <= base * 1.5
        assert open_s <= 16.0
        self.opening = min(self.opening * 2, 16.0)
        self.model_move(State.OPEN)
        self.until = self.now + open_s

    @precondition(lambda self: self.state is State.OPEN)
    @rule()
    def wait_for_the_probe(self) -> None:
        """Go to the instant that ``retry_at`` names: it admits then, and not before."""
        retry_at = self.breaker.retry_at
        assert retry_at is not None
        if retry_at > self.now:
            assert not self.breaker.admits(self.now)
            # Up to the next quarter: the model's buckets need exact sums.
            self.now = -(-retry_at * 4 // 1) / 4
        assert self.breaker.admits(self.now)

    @invariant()
    def agree(self) -> None:
        """Same state, same answer, for now and for later; and it never waits for nothing."""
        breaker = self.breaker
        assert breaker.state is self.state
        assert breaker.admits(self.now) is self.model_admits()
        if breaker.retry_at is not None:
            assert breaker.admits(breaker.retry_at)
            assert breaker.state is not State.CLOSED
        assert self.state.name in repr(breaker)


AgainstAModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase
