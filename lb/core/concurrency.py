"""How many calls may run at once: a fixed number, or one that follows the latency.

A limit turns a queue that grows without bound, somewhere behind the endpoint, into a short one
here. For each endpoint of a channel it keeps the calls in flight below the number that the server takes
(``MAX_CONCURRENT_STREAMS``: above it core queues silently, and grpcio's servers refuse streams, from
which `StreamLimit` learns). A server may use the same limit.

The adaptive limit is Netflix's *Gradient2* (concurrency-limits, ``Gradient2Limit.java``): the
ratio of the long-term latency to that of the newest call says whether a queue is building up.
While it is below 1 the limit shrinks by that ratio, else it grows by its own square root; both
smoothed. A refusal for overload or a time-out takes a tenth off at once. One thing differs: while the
limit is reached, the long-term latency rises fifty times slower. Theirs follows the queue that the
limit itself lets in, so a server that is always full drives the limit up to its upper bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lb.core import checks

_SMOOTHING = 0.2
_TOLERANCE = 1.5
_LONG_WINDOW = 600
_BACKOFF = 0.9
_FIRST = 10
_WHILE_FULL = 0.02
_PROBE_S = 1.0
_PROBE_MOST_S = 60.0
_PROBE_SHARE = 20
_LEAST_STREAMS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyLimit:
    """How many calls of a channel may run at once on each endpoint.

    If all endpoints are full, calls wait in the channel's queue. The adaptive limit is *Gradient2* of Netflix's
    concurrency-limits: it shrinks when the latest calls take longer than usual, because then they wait in the server.

    Args:
        limit: calls at once, >= 1: the fixed limit, or the first value of the adaptive one.
        adaptive: whether the limit follows the latency, from ``min_limit`` to ``max_limit``.
        min_limit: the lowest adaptive limit, >= 1.
        max_limit: the highest adaptive limit, >= ``min_limit``.
        queue: how many calls may wait in the queue, >= 0. Others are refused at once.
        queue_s: how long a call may wait in the queue, in seconds, > 0. Then it is refused.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    limit: int = 100
    adaptive: bool = False
    min_limit: int = 4
    max_limit: int = 1000
    queue: int = 64
    queue_s: float = 1.0

    def __post_init__(self) -> None:
        checks.flag("ConcurrencyLimit.adaptive", self.adaptive)
        for name, least in (("limit", 1), ("min_limit", 1), ("max_limit", 1), ("queue", 0)):
            checks.whole(f"ConcurrencyLimit.{name}", getattr(self, name), least=least)
        if self.adaptive and not self.min_limit <= self.limit <= self.max_limit:
            raise ValueError(
                f"ConcurrencyLimit.limit is {self.limit}; expected min_limit ({self.min_limit})"
                f" <= limit <= max_limit ({self.max_limit})"
            )
        checks.number("ConcurrencyLimit.queue_s", self.queue_s, above=True)

    def new_state(self) -> LimitState:
        """The limit of one endpoint (or server), at its beginning."""
        return LimitState(self)


class LimitState:
    """One endpoint's limit. ``limit`` is how many calls may run at once now; the caller counts them."""

    __slots__ = ("_exact", "_long_s", "_samples", "limit", "settings")

    def __init__(self, settings: ConcurrencyLimit) -> None:
        """Use ``ConcurrencyLimit.new_state``."""
        self.settings = settings
        self.limit = settings.limit
        self._exact = float(settings.limit)
        self._long_s = 0.0
        self._samples = 0

    def observe(self, duration_s: float, in_flight: int) -> None:
        """A call ended well after ``duration_s``, with ``in_flight`` running (itself too). Adaptive only."""
        if not self.settings.adaptive or duration_s <= 0:
            return
        if self._samples < _LONG_WINDOW:
            self._samples += 1
        # The mean of the first samples, then an exponential one over about the last 600.
        share = 2 / (self._samples + 1)
        if in_flight >= self.limit and self._samples > _FIRST and duration_s > self._long_s:
            share *= _WHILE_FULL  # most of it is the queue: learnt at once, it would excuse a longer one
        self._long_s += (duration_s - self._long_s) * share
        if self._long_s > 2 * duration_s:  # the load is gone: forget its latency faster
            self._long_s *= 0.95
        if in_flight * 2 < self._exact:
            return  # the limit is not what bounds it: nothing is learnt
        gradient = max(0.5, min(1.0, _TOLERANCE * self._long_s / duration_s))
        wanted = self._exact * gradient + math.sqrt(self._exact)
        self._set(self._exact * (1 - _SMOOTHING) + wanted * _SMOOTHING)

    def overloaded(self) -> None:
        """A call was refused for overload, or timed out. Adaptive only."""
        if self.settings.adaptive:
            self._set(self._exact * _BACKOFF)

    def grows(self, in_flight: int, now: float) -> bool:
        """Whether there is room for one more by now, although it is reached. Never: only answers make it grow."""
        return False

    def _set(self, exact: float) -> None:
        self._exact = min(float(self.settings.max_limit), max(float(self.settings.min_limit), exact))
        self.limit = int(self._exact)

    def __repr__(self) -> str:
        return f"<LimitState {self.limit}{' adaptive' if self.settings.adaptive else ''}>"


class StreamLimit:
    """How many streams a server takes on a connection, as far as its refusals tell (REFUSED_STREAM).

    HTTP/2 tells a client that number, but some servers (grpcio's) refuse streams below it: they also count those that
    have ended and are not cleaned up yet. So it is learnt: a refusal lowers it to the number of calls in flight at that
    moment. While the limit is reached it grows by a twentieth, after a pause that every refusal doubles (from 1 s to a
    minute), since each try may cost a call that cannot be sent again. It is forgotten with its connection.

    ``own`` is the endpoint's limit by the user's settings, or None; the smaller one counts.
    """

    __slots__ = ("_exact", "_grow_at", "_grown", "_pause_s", "own")

    def __init__(self, own: LimitState | None) -> None:
        self.own = own
        self._exact: float = math.inf
        self._pause_s = _PROBE_S / 2
        self._grow_at = math.inf
        self._grown = True

    @property
    def limit(self) -> float:
        """How many may run at once now."""
        return self._exact if self.own is None else min(self._exact, self.own.limit)

    def refused(self, in_flight: int, now: float) -> None:
        """A stream was refused while ``in_flight`` others ran."""
        if self._grown:  # else it comes with others, which said the same
            self._grown = False
            self._pause_s = min(2 * self._pause_s, _PROBE_MOST_S)
        self._exact = max(_LEAST_STREAMS, min(self._exact, in_flight))
        self._grow_at = now + self._pause_s

    def observe(self, duration_s: float, in_flight: int) -> None:
        """See `LimitState`."""
        if self.own is not None:
            self.own.observe(duration_s, in_flight)

    def overloaded(self) -> None:
        """See `LimitState`."""
        if self.own is not None:
            self.own.overloaded()

    def grows(self, in_flight: int, now: float) -> bool:
        """Whether there is room for one more by now, although it is reached. Then it has grown."""
        if now < self._grow_at or (self.own is not None and in_flight >= self.own.limit):
            return False
        self._exact += max(1, self._exact // _PROBE_SHARE)
        self._grow_at = now + self._pause_s
        self._grown = True
        return True

    def __repr__(self) -> str:
        return f"<StreamLimit {self.limit:g}>"
