"""What all policies around another one must hold, whatever the picker inside looks like."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from lb.core.endpoint import Endpoint
from lb.core.policies import Candidate, Picker, Policy, SlowStart, Subset, ZoneAware
from tests.core.backends import Backend


class Falsy:
    """A user's picker that is false in a condition, since its length is 0."""

    def __init__(self, candidates: Sequence[Candidate], previous: Picker | None) -> None:
        self.candidates = candidates
        self.previous = previous

    def __len__(self) -> int:
        return 0

    def pick(self, call: object, now: float, rng: Random) -> Candidate:
        """The first."""
        return self.candidates[0]

    def explain(self) -> str:
        """Whose it is."""
        return f"the first of zone {self.candidates[0].endpoint.zone}"

    def turn(self, rng: Random) -> None:
        """Never used."""


class Own:
    """A policy that makes such pickers."""

    name = "own"

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Falsy:
        """One that remembers its predecessor."""
        return Falsy(candidates, previous)


CANDIDATES = [Backend(Endpoint(f"{zone}:1", id=zone, zone=zone), 1, ready_since=0.0) for zone in "ab"]
WRAPPERS = [
    ZoneAware(zone="a", policy=Own()),
    Subset(size=2, policy=Own(), client=0),
    SlowStart(policy=Own()),
]


@pytest.mark.parametrize("policy", WRAPPERS, ids=lambda policy: policy.name)
def test_a_falsy_picker_inside_is_asked_like_any_other(policy: Policy) -> None:
    """For its pick, its words and its turn: whether it is there is not a question of its truth."""
    picker = policy.picker(CANDIDATES, None)
    picked = picker.pick(None, 100.0, Random(1))
    assert picker.explain().endswith(f"the first of zone {picked.endpoint.zone}")  # type: ignore[attr-defined]
    assert callable(picker.turn)  # type: ignore[attr-defined]


def test_zone_aware_is_ruled_by_the_picker_of_its_own_zone() -> None:
    """Also when that one is false in a condition."""
    picker = ZoneAware(zone="a", policy=Own()).picker(CANDIDATES, None)
    assert picker.inner is picker.near
    assert picker.explain().endswith("the first of zone a")


@pytest.mark.parametrize("policy", WRAPPERS, ids=lambda policy: policy.name)
def test_a_falsy_picker_is_handed_on_to_its_successor(policy: Policy) -> None:
    """The policy inside gets its own last picker, so that it can go on where it was."""
    first = policy.picker(CANDIDATES, None)
    second = policy.picker(CANDIDATES, first)
    assert second.inner.previous is first.inner  # type: ignore[attr-defined]
