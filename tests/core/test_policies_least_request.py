"""Least request: shares, fairness, and what two choices are worth under load."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core import policies
from lb.core.policies import LeastRequest, Policy, RoundRobin
from tests.core.backends import backends, ids
from tests.core.fleet import Fleet, takes


def counts(policy: Policy, weights: list[int], in_flight: list[int], draws: int = 20_000) -> Counter[str]:
    """How often each is picked while the calls in flight stay as they are."""
    servers = backends(weights)
    for server, load in zip(servers, in_flight, strict=True):
        server.in_flight = load
    picker, rng = policy.picker(servers, None), Random(5)
    return Counter(ids([picker.pick(None, 0.0, rng) for _ in range(draws)]))


@pytest.mark.parametrize("choices", [2, 3, 9])
def test_idle_and_equal_is_even(choices: int) -> None:
    """Ties are fair: each of five idle endpoints gets a fifth, within 4 standard deviations."""
    count = counts(LeastRequest(choices=choices), [1] * 5, [0] * 5)
    assert all(abs(count[name] - 4000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5 for name in "abcde")


def test_idle_endpoints_get_their_shares_by_weight() -> None:
    """While nothing is in flight, weights 1, 2, 5 mean 1/8, 2/8, 5/8."""
    count = counts(LeastRequest(), [1, 2, 5], [0, 0, 0])
    for name, weight in zip("abc", (1, 2, 5), strict=True):
        assert abs(count[name] / 20_000 - weight / 8) < 0.015


def test_the_most_loaded_gets_nothing() -> None:
    """Two distinct draws: who has strictly the most in flight never wins (Mitzenmacher)."""
    count = counts(LeastRequest(), [1, 1, 1], [3, 7, 1])
    assert count["b"] == 0
    assert abs(count["c"] / 20_000 - 2 / 3) < 0.02


def test_as_many_choices_as_endpoints_is_the_least_loaded() -> None:
    """With choices for all of them it is no chance any more."""
    assert set(counts(LeastRequest(choices=8), [1] * 4, [2, 3, 1, 5], 500)) == {"c"}


@given(
    loads=st.lists(st.integers(0, 30), min_size=2, max_size=12),
    choices=st.integers(2, 5),
    seed=st.integers(0, 999),
)
def test_a_pick_is_never_the_one_with_strictly_most(loads: list[int], choices: int, seed: int) -> None:
    """Whatever is in flight on whatever number of endpoints."""
    servers = backends([1] * len(loads))
    for server, in_flight in zip(servers, loads, strict=True):
        server.in_flight = in_flight
    picked = LeastRequest(choices=choices).picker(servers, None).pick(None, 0.0, Random(seed))
    assert picked.in_flight <= sorted(loads)[-2]


def test_under_load_calls_in_flight_stand_as_the_weights() -> None:
    """With 64 in flight over weights 1, 2, 5, each holds its part of them, within two calls."""
    fleet = Fleet(LeastRequest(), backends([1, 2, 5]), takes({})).run(3000, 64)
    for server in fleet.servers:
        assert abs(server.in_flight - 8 * server.weight) <= 2 * server.weight


@pytest.mark.parametrize("policy", [RoundRobin(), policies.Random()])
def test_a_slow_endpoint_hurts_less_than_with(policy: Policy) -> None:
    """One of ten is ten times slower: fewer calls meet it, and more calls are done in the same time."""
    slow = {"a": 0.05}
    ours = Fleet(LeastRequest(), backends([1] * 10), takes(slow)).run(20_000, 64)
    theirs = Fleet(policy, backends([1] * 10), takes(slow)).run(20_000, 64)
    assert ours.share("a") < 0.03 < 0.09 < theirs.share("a")
    assert ours.now - 1000 < 0.7 * (theirs.now - 1000)


def test_the_highest_load_is_lower_than_by_chance() -> None:
    """With 200 in flight over 100 equal endpoints nobody ever holds more than 5; by chance somebody holds 9."""
    assert Fleet(LeastRequest(), backends([1] * 100), takes({})).run(20_000, 200).most <= 5
    assert Fleet(policies.Random(), backends([1] * 100), takes({})).run(20_000, 200).most >= 9


@pytest.mark.parametrize("choices", [1, 0, -2, 2.0, True, "2", None])
def test_bad_choices_are_said(choices: object) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=r"LeastRequest.choices is .*; expected a whole number >= 2"):
        LeastRequest(choices=choices)  # type: ignore[arg-type]
