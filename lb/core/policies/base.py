"""What a load-balancing policy is.

A policy is an object with settings only: one may serve many channels. Its only method
makes a *picker*: a snapshot over the candidates that are admitted right now. The balancer
asks for a new picker when that set (or a weight) changed, and passes the previous one,
so that the policy can go on where it was. A picker is used by one channel, never by two
threads at once, so it needs no lock. After it was passed as ``previous`` it is not asked to pick any more.

A candidate is the same object as long as its endpoint stays in the set, so policies compare
candidates by identity.

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

What a policy may have beyond that is described in `Hooks`; what it does not have costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Protocol

from lb.core.endpoint import Endpoint
from lb.core.outcome import Outcome


class Candidate(Protocol):
    """What a policy may read of an endpoint. The library changes it; a policy may set ``stats``."""

    stats: Any
    """The policy's own record of the endpoint. None at first, and again after the channel's policy has changed."""

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint, as the resolver described it."""

    @property
    def weight(self) -> int:
        """Its weight now, >= 1. An endpoint with weight 0 is not among the candidates while others are there."""

    @property
    def in_flight(self) -> int:
        """The number of attempts on it that run.

        A fast error counts for as long as a good answer takes, because an endpoint that fails at once is not idle.
        """

    @property
    def ready_since(self) -> float | None:
        """Since when it is connected, in monotonic seconds. None if that is not known."""


class CallInfo(Protocol):
    """What a policy may read of the call it picks for."""

    @property
    def method(self) -> str:
        """``/package.Service/Method``."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The call's metadata, with keys in lower case. Empty, unless the policy has ``needs_metadata``."""


class Picker(Protocol):
    """A snapshot over the candidates that can be used now. It picks one for each attempt, in O(1) or O(log n).

    A picker belongs to one channel, and no two threads use it at once. It may have more:

    - ``explain() -> str``: its rule in words, for snapshots.
    - ``repeatable = True``: a pick changes nothing. Retries and hedges may then ask several times, for an endpoint that
      was not tried.
    - ``prefers``: the candidates among which retries and hedges look first.
    - ``turn(rng)``: for a picker that goes in turn: continue at a random position.
    """

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """One of the candidates that the picker was made with.

        ``now`` is in monotonic seconds. Take chance from ``rng`` alone, and do no I/O. ``call`` is None outside of a
        channel.
        """


class Policy(Protocol):
    """How endpoints are chosen. An object has settings, and may serve many channels; its pickers do the work."""

    @property
    def name(self) -> str:
        """A short name for spans and snapshots, such as ``weighted_round_robin``."""

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Picker:
        """A picker over ``candidates``, of which there is at least one.

        It is called when the candidates, or a weight, have changed. ``previous`` is the channel's last picker, or None:
        copy the state that should survive. A candidate is the same object as long as its endpoint stays.
        """


class Hooks(Protocol):
    """What a policy may have in addition to `Policy`. Each part may be left out.

    A policy serves many channels. So keep what you learn about an endpoint in ``candidate.stats``.
    """

    spreads: ClassVar[bool]
    """If True, the choice does not depend on what the call asks for, so the endpoints' answers can be compared, and
    one that answers far worse than the others is ejected (``Breaker.good_ratio``). Default: False."""

    needs_metadata: ClassVar[bool]
    """If True, a pick waits until the call's metadata is known, and ``call.metadata`` has it. Default: False."""

    in_order: ClassVar[bool]
    """If True, new endpoints are connected in the resolver's order. Default: False, in a random order, so that
    clients that start together do not all begin with the same endpoint."""

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Called once after each attempt. ``duration_s`` is in seconds, ``now`` in monotonic seconds."""

    def report(self, candidate: Candidate, report: bytes, now: float) -> None:
        """Called when an attempt has ended OK and its server has reported its load.

        ``report`` is the value of ``lb-endpoint-load-metrics-bin`` in the trailing metadata, a serialized message of
        gRFC A51.
        """
