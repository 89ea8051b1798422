"""Candidates for tests of policies, as a balancer would hand them over."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lb.core.endpoint import Endpoint
from lb.core.policies import Candidate, Picker


@dataclass(slots=True, eq=False)
class Backend:
    """What a policy may read."""

    endpoint: Endpoint
    weight: int
    in_flight: int = 0
    stats: Any = None
    ready_since: float | None = None


def backends(weights: Sequence[int]) -> list[Backend]:
    """One backend per weight. Their ids are a, b, c, ... up to z, then 26, 27, ..."""
    letters = string.ascii_lowercase
    return [backend(letters[i] if i < len(letters) else str(i), weight) for i, weight in enumerate(weights)]


def backend(name: str, weight: int = 1) -> Backend:
    """A backend with this id."""
    return Backend(_endpoint(name), weight)


@functools.cache
def _endpoint(name: str) -> Endpoint:
    return Endpoint(f"{name}:1", id=name)


def ids(candidates: Sequence[Candidate]) -> list[str]:
    """Their endpoints' ids."""
    return [candidate.endpoint.id for candidate in candidates]


class Exhausted:
    """Not a picker of ours: what a policy may be handed as ``previous`` after a change of policy."""

    def pick(self, call: object, now: object, rng: object) -> Candidate:
        """Never used."""
        raise AssertionError("the previous picker must not pick")


STRANGER: Picker = Exhausted()
