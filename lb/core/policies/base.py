"""What a load-balancing policy is.

A policy is a frozen bag of settings: one object may serve many channels. Its only method
makes a *picker*: a snapshot over the candidates that are admitted right now. The balancer
asks for a new picker when that set (or a weight) changed, and hands over the previous one,
so that a policy can go on where it was. A picker is used by one channel, never by two
threads at once, so it needs no lock.

The smallest policy of a user's own::

    class First:
        name = "first"

        def picker(self, candidates, previous):
            return self.Picker(candidates[0])

        class Picker:
            def __init__(self, candidate):
                self.candidate = candidate

            def pick(self, call, now, rng):
                return self.candidate
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

from lb.core.endpoint import Endpoint


class Candidate(Protocol):
    """What a policy may read of an endpoint. The balancer owns and changes it."""

    @property
    def endpoint(self) -> Endpoint:
        """The instance: ``id``, ``address``, ``zone``, ``metadata``."""

    @property
    def weight(self) -> int:
        """Its effective weight, >= 1 (the balancer has sorted out weights of 0)."""

    @property
    def in_flight(self) -> int:
        """Attempts on it that have not ended."""


class CallInfo(Protocol):
    """What a policy may read of the call it picks for."""

    @property
    def method(self) -> str:
        """``/package.Service/Method``."""


class Picker(Protocol):
    """A snapshot that picks, in O(1) or O(log n)."""

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """One of the candidates the picker was made from."""


class Policy(Protocol):
    """Settings of a way to choose, and the maker of its pickers."""

    @property
    def name(self) -> str:
        """Short, for spans and snapshots: ``weighted_round_robin``."""

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Picker:
        """A picker over ``candidates`` (never empty). ``previous`` is this channel's last one."""
