"""What a load-balancing policy is.

A policy is a frozen bag of settings: one object may serve many channels. Its only method
makes a *picker*: a snapshot over the candidates that are admitted right now. The balancer
asks for a new picker when that set (or a weight) changed, and hands over the previous one,
so that a policy can go on where it was. A picker is used by one channel, never by two
threads at once, so it needs no lock; once it was handed over as ``previous`` it picks no more.

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

What a policy may have beyond that stands in `Hooks`; what it lacks costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Protocol

from lb.core.endpoint import Endpoint
from lb.core.outcome import Outcome


class Candidate(Protocol):
    """What a policy may read of an endpoint. The balancer owns and changes it, all but ``stats``."""

    stats: Any
    """The policy's own record of the endpoint; None at first, and again after a change of policy."""

    @property
    def endpoint(self) -> Endpoint:
        """The instance: its ``id``, ``address``, ``zone`` and ``metadata``, as the resolver told them."""

    @property
    def weight(self) -> int:
        """Its effective weight, >= 1 (the balancer has sorted out weights of 0)."""

    @property
    def in_flight(self) -> int:
        """Attempts on it that have not ended, and those that a server's error ended sooner than a good answer comes.

        The latter count until then: who fails at once is not idle.
        """

    @property
    def ready_since(self) -> float | None:
        """The instant since which its connection stands; None when that is not known."""


class CallInfo(Protocol):
    """What a policy may read of the call it picks for."""

    @property
    def method(self) -> str:
        """``/package.Service/Method``."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The call's metadata, keys in lower case; empty unless the policy ``needs_metadata``."""


class Picker(Protocol):
    """A snapshot that picks, in O(1) or O(log n).

    It may also have ``explain() -> str``: its rule in words, for snapshots; and
    ``repeatable = True``: a pick has no effect on later ones, so retries and hedges, which need an
    endpoint that was not tried, may ask several times; ``prefers``: those of its candidates among which retries,
    hedges, and calls that found their endpoint full, look for another first; and ``turn(rng)``, when it goes
    in turn: to go on from a random place.
    """

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """One of the candidates the picker was made from. ``now`` is in monotonic seconds."""


class Policy(Protocol):
    """Settings of a way to choose, and the maker of its pickers."""

    @property
    def name(self) -> str:
        """Short, for spans and snapshots: ``weighted_round_robin``."""

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Picker:
        """A picker over ``candidates`` (never empty). ``previous`` is this channel's last one."""


class Hooks(Protocol):
    """What a policy may have beyond `Policy`, each by itself. What is not there is not called.

    The hooks belong to the policy, which serves many channels: what they learn of an endpoint
    goes into ``candidate.stats``.
    """

    spreads: ClassVar[bool]
    """True: which endpoint a call gets has nothing to do with what the call asks, so that their answers can be
    compared, and who answers far worse than the others is left out (`Breaker.good_ratio`). False, or not there: they
    are not compared."""

    needs_metadata: ClassVar[bool]
    """True: the pick waits until the call's metadata is known, and ``call.metadata`` has it."""

    in_order: ClassVar[bool]
    """True: new endpoints are connected in the resolver's order. Else the order is left to chance, so that many clients
    that start together do not all begin with the same endpoint."""

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """An attempt on ``candidate`` ended, after so many seconds. Called once for each attempt."""

    def report(self, candidate: Candidate, report: bytes, now: float) -> None:
        """An attempt on ``candidate`` ended OK, and its server has reported its load.

        ``report`` is what stood under ``lb-endpoint-load-metrics-bin`` in the trailing metadata: gRFC A51's message.
        """
