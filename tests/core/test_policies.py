"""Names, round robin, random and weighted random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core import policies
from lb.core.policies import Candidate, Picker, Policy, RoundRobin, WeightedRandom, WeightedRoundRobin
from tests.core.backends import STRANGER, backend, backends, ids

NAMES = [
    "least_request",
    "orca",
    "p2c",
    "pick_first",
    "random",
    "round_robin",
    "weighted_random",
    "weighted_round_robin",
]
SETS = st.lists(st.integers(1, 9), min_size=1, max_size=80)


def picks(picker: Picker, count: int, seed: int = 1) -> list[str]:
    """The ids of the next ``count`` picks."""
    rng = Random(seed)
    return ids([picker.pick(None, 0.0, rng) for _ in range(count)])


class First:
    """The smallest policy of a user's own."""

    name = "first"

    def __init__(self, candidate: Candidate | None = None) -> None:
        self.candidate = candidate

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> First:
        """Always the first."""
        return First(candidates[0])

    def pick(self, call: object, now: object, rng: object) -> Candidate:
        """The first."""
        assert self.candidate is not None
        return self.candidate


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_found_by_its_name(name: str) -> None:
    """Each policy answers to the name it carries, and equal settings are equal objects."""
    assert policies.by_name(name).name == name
    assert policies.by_name(name) == policies.resolve(name)


def test_an_unknown_name_says_what_is_accepted() -> None:
    """The error of a misspelt name has the value and all accepted names."""
    with pytest.raises(ValueError, match=r"policy is 'robin'; expected one of " + ", ".join(NAMES)):
        policies.by_name("robin")


def test_resolve_takes_nothing_a_name_or_an_object() -> None:
    """Nothing means weighted round robin; an object of a user's own is taken as it is."""
    own = First()
    assert policies.resolve(None) == WeightedRoundRobin()
    assert policies.resolve("random") == policies.Random()
    assert policies.resolve(own) is own


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RoundRobin, r"the class RoundRobin; expected an object, for example RoundRobin\(\)"),
        (3, r"policy is 3; expected a name, or an object with picker\(candidates, previous\)"),
        (type("Nameless", (), {"picker": lambda *_: None})(), "policy.name is None; expected a string"),
        (type("Blank", (), {"picker": lambda *_: None, "name": ""})(), "policy.name is ''; expected a string"),
    ],
)
def test_resolve_says_what_an_object_lacks(wrong: Policy, message: str) -> None:
    """An object that is no policy is a TypeError that names it and what is missing."""
    with pytest.raises(TypeError, match=message):
        policies.resolve(wrong)


@pytest.mark.parametrize("name", NAMES)
@given(weights=SETS, later=SETS, seed=st.integers(0, 99))
def test_every_policy_picks_from_its_set(name: str, weights: list[int], later: list[int], seed: int) -> None:
    """Whatever came before (nothing, a stranger, another set), a pick is one of the picker's own candidates."""
    policy, rng = policies.by_name(name), Random(seed)
    for previous in (None, STRANGER):
        first = policy.picker(backends(weights), previous)
        assert picks(first, 5, seed)
    candidates = backends(later)
    picker = policy.picker(candidates, first)
    assert all(picker.pick(None, 0.0, rng) in candidates for _ in range(2 * len(later)))


@pytest.mark.parametrize("name", NAMES)
def test_every_picker_explains_its_rule(name: str) -> None:
    """A picker says its rule in words, with the number of candidates."""
    for size in (3, 70):
        picker = policies.by_name(name).picker(backends([1] * size), None)
        explain = getattr(picker, "explain", None)
        assert explain is not None
        assert str(size) in explain()


@given(size=st.integers(1, 70), seed=st.integers(0, 99))
def test_round_robin_takes_each_in_turn(size: int, seed: int) -> None:
    """Any ``size`` picks in a row are each candidate once, and the same order repeats."""
    got = picks(RoundRobin().picker(backends([1] * size), None), 3 * size, seed)
    assert sorted(got[:size]) == sorted(ids(backends([1] * size)))
    assert got[:size] == got[size : 2 * size] == got[2 * size :]


def test_round_robin_begins_anywhere() -> None:
    """Many clients that begin at the same time do not all go to the same endpoint."""
    starts = Counter(picks(RoundRobin().picker(backends([1] * 4), None), 1, seed)[0] for seed in range(400))
    assert set(starts) == set("abcd")
    assert min(starts.values()) > 60


def test_round_robin_begins_anywhere_after_one_that_was_alone() -> None:
    """The first to be connected has had the first call; the second one goes to any."""
    starts = Counter[str]()
    for seed in range(400):
        candidates = backends([1] * 4)
        alone = RoundRobin().picker(candidates[:1], None)
        picks(alone, 1, seed)
        starts.update(picks(RoundRobin().picker(candidates, alone), 1, seed))
    assert set(starts) == set("abcd")
    assert min(starts.values()) > 60


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("abcd", "cdab"),  # nothing changed
        ("acd", "cda"),  # the one picked last (b) is gone
        ("abd", "dab"),  # the next one is gone
        ("xabycd", "cdxaby"),  # a newcomer right before the next one waits for the next round
        ("xyz", None),  # nobody is left: begin anywhere
    ],
)
def test_round_robin_goes_on_in_a_new_set(after: str, expected: str | None) -> None:
    """A change of the set does not restart the round: the one that was next comes next."""
    picker = RoundRobin().picker([backend(name) for name in "abcd"], None)
    while picks(picker, 1) != ["b"]:
        pass
    got = picks(RoundRobin().picker([backend(name) for name in after], picker), len(after))
    if expected is None:
        assert sorted(got) == sorted(after)
    else:
        assert "".join(got) == expected


def test_round_robin_does_not_starve_who_stays() -> None:
    """Though the set changes before every pick, who stays waits no longer than a round of all 12."""
    rng, picker, waited = Random(3), None, Counter[str]()
    stay = backends([1] * 6)
    for _ in range(500):
        flapping = [backend(f"x{i}") for i in range(6) if rng.random() < 0.5]
        picker = RoundRobin().picker([*stay, *flapping], picker)
        waited.update(ids(stay))
        waited[picker.pick(None, 0.0, rng).endpoint.id] = 0
        assert max(waited[name] for name in ids(stay)) <= 12


def test_random_is_even_and_weighted_random_is_by_weight() -> None:
    """Over 20,000 seeded draws each share is within 4 standard deviations of what it should be."""
    draws, weights = 20_000, [1, 2, 5, 12]
    for policy, expected in ((policies.Random(), [0.25] * 4), (WeightedRandom(), [w / 20 for w in weights])):
        count = Counter(picks(policy.picker(backends(weights), None), draws, seed=7))
        for name, share in zip("abcd", expected, strict=True):
            assert abs(count[name] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


class Edge(Random):
    """Draws the largest number that ``random()`` can return."""

    def random(self) -> float:
        """Just below 1."""
        return 1 - 2**-53


@given(weights=st.lists(st.integers(1, 65_535), min_size=1, max_size=300))
def test_the_largest_draw_is_the_last_candidate(weights: list[int]) -> None:
    """Rounding never leads past the end of the list."""
    candidates = backends(weights)
    for policy in (policies.Random(), WeightedRandom()):
        assert policy.picker(candidates, None).pick(None, 0.0, Edge()) is candidates[-1]
