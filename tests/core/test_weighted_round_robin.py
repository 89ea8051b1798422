"""Weighted round robin: the sequence, its proportions, its smoothness, and what a change of the set keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import gcd
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.policies import Candidate, WeightedRoundRobin
from lb.core.policies.smooth import CYCLE_LIMIT, SmoothPicker
from lb.core.policies.weighted_round_robin import SMOOTH_LIMIT, Schedule
from tests.core.backends import Backend, backend, backends, ids

POLICY = WeightedRoundRobin()
SMALL = st.lists(st.integers(1, 100), min_size=1, max_size=SMOOTH_LIMIT)
SPREAD = st.one_of(st.just(1), st.sampled_from([1, 2, 5]), st.integers(1, 1000))
LARGE = st.lists(SPREAD, min_size=SMOOTH_LIMIT + 1, max_size=150)


class Beginning(Random):
    """Chance that begins a sequence at its pick of that number, from 0 on."""

    def __init__(self, at: int = 0) -> None:
        super().__init__(1)
        self._at = at

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """The number, once around if need be."""
        return self._at % start


def picks(picker: Schedule, count: int, rng: Random | None = None) -> list[str]:
    """The ids of the next ``count`` picks; a new sequence begins at its beginning, unless ``rng`` is given."""
    chance = rng or Beginning()
    return ids([picker.pick(None, 0.0, chance) for _ in range(count)])


def nginx(weights: Sequence[int], count: int) -> list[int]:
    """ngx_http_upstream_get_peer, word for word: the indices of ``count`` picks."""
    current, result = [0] * len(weights), []
    for _ in range(count):
        best = -1
        for i, weight in enumerate(weights):
            current[i] += weight
            if best < 0 or current[i] > current[best]:
                best = i
        current[best] -= sum(weights)
        result.append(best)
    return result


def deviations(sequence: Sequence[str], candidates: Sequence[Candidate]) -> tuple[float, float]:
    """How many picks any candidate was ever ahead of and behind its share, at any moment of ``sequence``."""
    total = sum(candidate.weight for candidate in candidates)
    share = {candidate.endpoint.id: candidate.weight for candidate in candidates}
    count = Counter[str]()
    ahead = behind = 0
    for slot, name in enumerate(sequence, 1):
        # Furthest behind is just before its pick, furthest ahead just after it.
        behind = max(behind, (slot - 1) * share[name] - count[name] * total)
        count[name] += 1
        ahead = max(ahead, count[name] * total - slot * share[name])
    for name, weight in share.items():
        behind = max(behind, len(sequence) * weight - count[name] * total)
    return ahead / total, behind / total


def test_nginx_s_own_example() -> None:
    """Weights 5, 1, 1 give a a b a c a a, again and again."""
    assert "".join(picks(POLICY.picker(backends([5, 1, 1]), None), 21)) == "aabacaa" * 3


@given(weights=SMALL)
def test_up_to_64_the_sequence_is_nginx_s(weights: list[int]) -> None:
    """Over more than two cycles, so also while a recorded cycle is replayed."""
    candidates = backends(weights)
    count = min(2 * sum(weights) + 3, 1500)
    expected = [candidates[i].endpoint.id for i in nginx(weights, count)]
    assert picks(POLICY.picker(candidates, None), count) == expected


@given(weights=SMALL)
@settings(max_examples=50, deadline=None)
def test_a_full_cycle_has_the_exact_proportions(weights: list[int]) -> None:
    """In as many picks as the (reduced) weights' sum, each candidate is picked exactly its weight."""
    common = gcd(*weights)
    count = Counter(picks(POLICY.picker(backends(weights), None), sum(weights) // common))
    assert count == {c.endpoint.id: c.weight // common for c in backends(weights)}


@given(weights=SMALL)
def test_nginx_s_sequence_is_smooth(weights: list[int]) -> None:
    """Nobody is ever a whole pick ahead of its share, nor further behind than the harmonic bound.

    The greedy choice of the highest credit is the game of emptying cups: the fullest cup
    never holds more than 1 + 1/2 + ... + 1/n.
    """
    ahead, behind = deviations(picks(POLICY.picker(backends(weights), None), 1000), backends(weights))
    assert ahead < 1
    assert behind <= sum(1 / i for i in range(1, len(weights) + 1))


@given(weights=LARGE, tower=st.booleans())
@settings(max_examples=50, deadline=None)
def test_beyond_64_nobody_is_three_picks_off(weights: list[int], tower: bool) -> None:
    """At every moment each count is less than 2.5 from its share, also when one weight towers over all others."""
    if tower:
        weights = [sum(weights), *weights]
    ahead, behind = deviations(picks(POLICY.picker(backends(weights), None), 3000), backends(weights))
    assert ahead < 2.5
    assert behind < 2.5


def test_beyond_64_the_start_is_not_bunched() -> None:
    """A weight that is half of all is picked every second time, from the first picks on."""
    got = picks(POLICY.picker(backends([100] + [1] * 100), None), 200)
    heavy = [slot for slot, name in enumerate(got) if name == "a"]
    assert len(heavy) == 100
    assert max(later - earlier for earlier, later in pairwise(heavy)) <= 3
    assert "a a a" not in " ".join(got)


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 1, 1], [7, 3], [1] * 64, [6, 2, 4]])
def test_clients_begin_anywhere_in_the_sequence(weights: list[int]) -> None:
    """As many clients as the sequence is long, each at another place: first picks, second, ... are shared by weight."""
    common = gcd(*weights)
    shares = {c.endpoint.id: c.weight // common for c in backends(weights)}
    length = sum(shares.values())
    clients = [picks(POLICY.picker(backends(weights), None), length, Beginning(at)) for at in range(length)]
    for turn in zip(*clients, strict=True):
        assert Counter(turn) == shares
    for client in clients:
        assert Counter(client) == shares  # each by itself, whatever its beginning


@given(weights=SMALL, at=st.integers(0, CYCLE_LIMIT - 1))
@settings(max_examples=50, deadline=None)
def test_a_client_that_begins_elsewhere_goes_on_as_nginx_does(weights: list[int], at: int) -> None:
    """From its first pick on it is the same sequence; so is what a rebuild carries over."""
    candidates = backends(weights)
    at %= min(sum(weights) // gcd(*weights), CYCLE_LIMIT)
    expected = [candidates[i].endpoint.id for i in nginx(weights, at + 300)][at:]
    first = POLICY.picker(candidates, None)
    assert picks(first, 100, Beginning(at)) + picks(POLICY.picker(candidates, first), 200) == expected


@pytest.mark.parametrize("weights", [[1] * 100, [100] + [1] * 100, [1, 2, 5, 60] * 30])
def test_beyond_64_clients_begin_anywhere(weights: list[int]) -> None:
    """First and second picks of many clients go where the weights say: nobody gets twice its share, or half."""
    total = sum(weights)
    turns: list[Counter[int]] = [Counter(), Counter()]
    candidates, clients = backends(weights), 3000
    for seed in range(clients):
        picker, rng = POLICY.picker(candidates, None), Random(seed)
        for turn in turns:
            turn[picker.pick(None, 0.0, rng).weight] += 1
    for turn in turns:
        for weight in set(weights):
            share = weight * weights.count(weight) / total
            assert abs(turn[weight] / clients - share) < 0.04
    equal = backends([1] * 100)
    starts = {POLICY.picker(equal, None).pick(None, 0.0, Random(seed)).endpoint.id for seed in range(200)}
    assert len(starts) > 60


@pytest.mark.parametrize("size", [3, 100])
def test_the_place_of_one_that_was_alone_says_nothing(size: int) -> None:
    """The first to be connected got the first call; the second one goes anywhere, too."""
    starts = Counter[str]()
    for seed in range(300):
        candidates, rng = backends([1] * size), Random(seed)
        first = POLICY.picker(candidates[:1], None)
        first.pick(None, 0.0, rng)
        starts[POLICY.picker(candidates, first).pick(None, 0.0, rng).endpoint.id] += 1
    assert len(starts) > min(size, 60) - 1
    assert max(starts.values()) < 150


@given(weights=SMALL, done=st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_a_rebuild_that_changes_nothing_changes_no_pick(weights: list[int], done: int) -> None:
    """A picker made anew over the same set goes on exactly where the last one was."""
    candidates = backends(weights)
    undisturbed, first = POLICY.picker(candidates, None), POLICY.picker(candidates, None)
    expected = picks(undisturbed, done + 1)[done:] + picks(undisturbed, 299)
    picks(first, done)
    assert picks(POLICY.picker(candidates, first), 300, Random(2)) == expected


@given(weights=LARGE, every=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_beyond_64_rebuilds_that_change_nothing_change_no_share(weights: list[int], every: int) -> None:
    """Rebuilt again and again over the same set, even before each pick: nobody is three picks off."""
    candidates, picker, got = backends(weights), None, list[str]()
    while len(got) < 1000:
        picker = POLICY.picker(candidates, picker)
        got += picks(picker, every)
    assert max(deviations(got, candidates)) < 3


def test_a_newcomer_gets_no_burst_and_survivors_keep_their_turn() -> None:
    """In the middle of a round the next ones come as they would have, the newcomer at its own rate."""
    stay = backends([1, 1, 1, 1])
    first = POLICY.picker(stay, None)
    assert picks(first, 2) == ["a", "b"]
    second = POLICY.picker([*stay, backend("x")], first)
    got = picks(second, 15)
    assert got[:2] == ["c", "d"]
    assert Counter(got) == dict.fromkeys("abcdx", 3)


def test_a_changed_weight_acts_at_once_and_without_a_burst() -> None:
    """Weight 1 to 8 among equals: from then on 8 of 10, never more than a pick ahead of it."""
    candidates = backends([1, 1, 1])
    first = POLICY.picker(candidates, None)
    picks(first, 7)
    candidates[0].weight = 8
    got = picks(POLICY.picker(candidates, first), 100)
    assert abs(got.count("a") - 80) <= 1
    assert max(deviations(got, candidates)) < 2


@pytest.mark.parametrize(("small", "large"), [(60, 70), (70, 60)])
def test_the_place_is_kept_across_the_two_schedules(small: int, large: int) -> None:
    """Growing past 64, or shrinking below: who was picked already waits until the others were."""
    candidates = backends([1] * max(small, large))
    first = POLICY.picker(candidates[:small], None)
    done = picks(first, 30)
    second = POLICY.picker(candidates[:large], first)
    soon = picks(second, 30)
    assert not set(done) & set(soon)


@given(
    seed=st.integers(0, 10_000),
    steady=st.lists(st.integers(1, 50), min_size=2, max_size=8),
    others=st.sampled_from([4, 90]),
    every=st.sampled_from([1, 3, 50]),
)
@settings(max_examples=60, deadline=None)
def test_who_stays_gets_its_share_while_others_come_and_go(
    seed: int, steady: list[int], others: int, every: int
) -> None:
    """With sets (and weights) that change all the time a survivor is within 4 picks of its share."""
    rng = Random(seed)
    stay = [backend(f"s{i}", weight) for i, weight in enumerate(steady)]
    picker: Schedule | None = None
    due = dict.fromkeys(ids(stay), Fraction(0))
    candidates: list[Backend] = []
    total = 0
    for step in range(400):
        if step % every == 0:
            flapping = [backend(f"x{i}", rng.randint(1, 20)) for i in range(others) if rng.random() < 0.5]
            candidates = [*stay, *flapping]
            total = sum(candidate.weight for candidate in candidates)
            picker = POLICY.picker(candidates, picker)
        assert picker is not None
        for candidate in stay:
            due[candidate.endpoint.id] += Fraction(candidate.weight, total)
        picked = picker.pick(None, 0.0, rng).endpoint.id
        if picked in due:
            due[picked] -= 1
    # Who leaves with more or less than its share leaves the difference to all who stay.
    mean = sum(due.values(), Fraction(0)) / len(due)
    assert all(abs(credit - mean) < 4 for credit in due.values()), due


def test_a_short_cycle_is_replayed_and_a_long_one_is_not_stored() -> None:
    """After one cycle a pick costs O(1); no list grows beyond the limit."""
    short, long = POLICY.picker(backends([5, 1, 1]), None), POLICY.picker(backends([CYCLE_LIMIT, 1]), None)
    picks(short, 7)
    picks(long, 3 * CYCLE_LIMIT)
    assert isinstance(short, SmoothPicker)
    assert isinstance(long, SmoothPicker)
    assert (short.recorded, long.recorded) == (7, 0)


@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    credits=st.lists(st.integers(-300, 300), min_size=8, max_size=8),
)
def test_only_a_cycle_that_closed_is_replayed(weights: list[int], credits: list[int]) -> None:
    """With any credits to begin with, replaying changes no pick: as a picker that never records."""
    start, candidates, total = credits[: len(weights)], backends(weights), sum(weights)
    replaying = SmoothPicker(candidates, weights, start, total // gcd(*weights))
    walking = SmoothPicker(candidates, weights, start, CYCLE_LIMIT + 1)
    assert picks(replaying, 1000) == picks(walking, 1000)
    assert replaying.credits() == walking.credits()


def test_rounding_does_not_favour_anybody() -> None:
    """Over 1,000 changes between totals of 4 and 16, two who stay keep their proportion of 1 to 3."""
    stay, picker, count = [backend("a", 1), backend("b", 3)], None, Counter[str]()
    for _ in range(500):
        for candidates in (stay, [*stay, backend("x", 12)]):
            picker = POLICY.picker(candidates, picker)
            count.update(picks(picker, 1))
    assert abs((count["a"] - 500 * (1 / 4 + 1 / 16)) - (count["b"] - 500 * (3 / 4 + 3 / 16))) < 3


class Counted(int):
    """A weight that counts how often it is added: once a visit."""

    visits = 0

    def __radd__(self, other: int) -> int:
        Counted.visits += 1
        return other + int(self)


@pytest.mark.parametrize("weights", [range(1, 1000), [1] * 99 + [65_535], [512, 1023]])
@pytest.mark.parametrize("size", [100, 10_000])
def test_a_pick_visits_two_candidates_at_most_on_average(weights: Sequence[int], size: int) -> None:
    """It counts, for it measures no time: 30,000 picks make no more than 60,000 visits, whatever the number."""
    candidates = backends([Counted(weights[i % len(weights)]) for i in range(size)])
    picker = POLICY.picker(candidates, None)
    Counted.visits = 0
    picks(picker, 30_000)
    assert Counted.visits <= 60_000


@pytest.mark.parametrize("mix", [[1], [1, 2, 5], [3, 700, 65_535]])
def test_survivors_of_a_change_beyond_64_keep_their_turn(mix: list[int]) -> None:
    """One of 300 leaves and one comes: those of a weight who were picked wait until their like were."""
    candidates = backends([mix[i % len(mix)] for i in range(300)])
    first = POLICY.picker(candidates, None)
    done = Counter(picks(first, 40))
    heavy = [c.endpoint.id for c in candidates if c.weight == max(mix)]
    second = POLICY.picker([*candidates[1:], backend("new", max(mix))], first)
    later = [name for name in picks(second, 100_000) if name in heavy][: len(heavy) - sum(done[h] for h in heavy) - 2]
    assert not set(later[:40]) & {name for name in heavy if done[name]}
