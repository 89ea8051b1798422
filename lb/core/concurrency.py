"""How many calls may run at once: a fixed number, or one that follows the latency.

A limit turns a queue that grows without bound, somewhere behind the endpoint, into a short one
here. For each endpoint of a channel it keeps the calls in flight below the number that the server takes
(``MAX_CONCURRENT_STREAMS``: above it core queues silently, and grpcio's servers refuse streams, from
which `StreamLimit` learns). A server has one for its whole process (`lb.core.intake`).

The adaptive limit is a *gradient* controller, as Envoy's filter "adaptive concurrency" and Netflix's concurrency-limits
have it. The ratio of the usual latency to the present one says whether a queue is building up. While there is none, the
limit grows by its own square root. Else it shrinks by that ratio, and the square root is the queue that it allows
itself::

    no queue    limit ──► limit + sqrt(limit)
    a queue     limit ──► half way to  limit * 1.2 * usual / present + sqrt(limit)

Netflix's *Gradient2* (``Gradient2Limit.java``), which was here before, goes by each call, and by one long mean of all
latencies. ``tests/core/test_limits_in_simulation.py`` compares the two. Where this lets calls in until they take twice
as long as their work, Gradient2 does until they take eight times as long. It takes a slow method among fast ones
for a queue. With many places it drops far below them, and a server that becomes slower stays there. So these things
differ:

- **Rounds**: it judges by the mean of at least as many calls as the limit, and only by calls that began after its last
  step. An answer shows the limit of the time when its call began.
- **Each call is compared with its own method** (`Baseline`).
- **The usual latency is learnt while there can be no queue**: while less than half of the limit is in use.
- **Probes**: where the limit stays reached, that moment never comes. So after one second, then two, up to every ten,
  and when the limit has fallen by half, it is halved for 20 calls, and their latency counts (Envoy's "minRTT
  calculation"). A probe costs throughput: there is none while the limit grows, and those that come by time take a
  twentieth of it at most.
- **A probe may find a queue as well**, if half of the limit is still too much. Where the halving made calls faster,
  they wait for each other, and a latency above the usual one is not learnt: it would excuse the queue. Where it changed
  nothing, the work itself has become slower. That must be learnt: by the ratio alone, the limit of a server that
  becomes three times slower shrinks to 4, with any number of places unused.
- **Others' queue looks like slower work** to the limit of one of many clients, which halves only its own part. Each
  time it believed that, it would let in more, and so would the others. So of probes in a row that come by time and say
  "slower", each counts half of the one before. The limits still rise, by less in a minute than those of Gradient2 in
  twenty seconds: only the server's own limit sees everything.

A refusal for overload or a time-out takes a tenth off at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lb.core import checks

_TOLERANCE = 1.2
_SLACK_S = 0.002
"""So much longer than usual is no queue: it is what a busy event loop adds."""
_SMOOTHING = 0.5
_BACKOFF = 0.9
_LEAST = 10
"""Fewer calls say nothing of the limit."""
_FEW = 5
"""Fewer calls say nothing of a method."""
_REMEMBERED = 200
_SHARE = 0.3
_FIRST_PROBE_S = 1.0
_PROBE_EVERY_S = 10.0
_PROBE_SHARE = 20
"""A probe that comes by time may take a twentieth of it."""
_PROBE_CALLS = 20
_SAME = 0.85
"""Calls that take less at half the limit than this part of what they took before have waited for others."""
_PAUSE_S = 1.0
_PAUSE_MOST_S = 60.0
_GROWTH_SHARE = 20
_LEAST_STREAMS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyLimit:
    """How many calls of a channel may run at once on each endpoint.

    If all endpoints are full, calls wait in the channel's queue. The adaptive limit is a gradient controller, as in
    Envoy's adaptive concurrency: it shrinks when calls take longer than usual, because then they wait in the server.
    While it stays reached, it is halved for a moment every ten seconds, to see how long calls take without a queue.

    Args:
        limit: calls at once, >= 1: the fixed limit, or the first value of the adaptive one.
        adaptive: whether the limit follows the latency, from ``min_limit`` to ``max_limit``.
        min_limit: the lowest adaptive limit, >= 1. For a moment every ten seconds it may be half of that.
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


class Baseline:
    """How long the calls of one method usually take, while none has to wait for another."""

    __slots__ = ("calls", "samples", "took_s", "usual_s")

    def __init__(self) -> None:
        self.usual_s = 0.0
        self.samples = 0
        self.calls = 0
        """Of this round."""
        self.took_s = 0.0
        """All of them together."""

    def learn(self, took_s: float) -> None:
        """So long it takes: the mean of about the last `_REMEMBERED` calls counts."""
        if self.samples < _REMEMBERED:
            self.samples += 1
        self.usual_s += (took_s - self.usual_s) / self.samples

    def end_round(self) -> None:
        """Faster than usual is no queue, whatever the limit: learn it."""
        if self.calls >= _FEW and self.took_s < self.usual_s * self.calls:
            self._approach(_SHARE)
        self.calls = 0
        self.took_s = 0.0

    def end_probe(self, trust: float) -> None:
        """What was seen counts as much as it is; that it takes longer than usual, only as far as there is ``trust``."""
        share = self.calls / (self.calls + _FEW)
        self._approach(share if self.took_s < self.usual_s * self.calls else share * trust)
        self.calls = 0
        self.took_s = 0.0

    def _approach(self, share: float) -> None:
        self.usual_s += (self.took_s / self.calls - self.usual_s) * share

    def __repr__(self) -> str:
        return f"<Baseline {self.usual_s * 1000:.1f} ms of {self.samples}>"


class LimitState:
    """One endpoint's limit. ``limit`` is how many calls may run at once now; the caller counts them."""

    __slots__ = (
        *("_adaptive", "_baseline", "_busy", "_calls", "_exact", "_low", "_probe_at", "_probe_s", "_probing", "_round"),
        *("_since", "_strain", "_took_s", "_trust", "_usual_s", "limit", "settings"),
    )

    def __init__(self, settings: ConcurrencyLimit) -> None:
        """Use ``ConcurrencyLimit.new_state``."""
        self.settings = settings
        self._adaptive = settings.adaptive
        self.limit = settings.limit
        self._exact = float(settings.limit)
        self._baseline = Baseline()
        self._since = -math.inf
        self._round: list[Baseline] = []
        self._calls = self._busy = 0
        self._took_s = self._usual_s = 0.0
        self._probe_s = _FIRST_PROBE_S
        self._probe_at = math.inf
        self._probing = False
        self._low = self._exact / 2
        """A limit below it has fallen by half since the last probe."""
        self._strain = 0.0
        """How many times the usual latency calls took before the probe."""
        self._trust = 1.0
        """How much a probe counts that finds the work slower."""

    def observe(self, took_s: float, in_flight: int, now: float, of: Baseline | None = None) -> None:
        """A call ended well after ``took_s``, with ``in_flight`` running (itself too). Adaptive only.

        ``of`` is its method's; without it all calls are of one kind.
        """
        if not self._adaptive or took_s < 0.0:
            return
        baseline = self._baseline if of is None else of
        limit, probing = self.limit, self._probing
        busy = in_flight * 2
        if baseline.samples < _FEW or (busy <= limit and not probing):
            baseline.learn(took_s)
        if now - took_s < self._since:
            return  # it began under another limit
        if not baseline.calls:
            self._round.append(baseline)
        baseline.calls += 1
        baseline.took_s += took_s
        self._calls += 1
        self._took_s += took_s
        self._usual_s += baseline.usual_s
        if busy >= limit:
            self._busy += 1
        if probing:
            if self._calls >= _PROBE_CALLS:
                self._end_probe(now)
        elif self._calls >= limit and self._calls >= _LEAST:
            self._step(now)

    def _step(self, now: float) -> None:
        """A round is over."""
        for baseline in self._round:
            baseline.end_round()
        if self._busy * 2 <= self._calls:
            self._probe_at = math.inf  # the limit is not what bounds it: nothing is learnt of it
        else:
            usual_s = _TOLERANCE * self._usual_s + _SLACK_S * self._calls
            if self._took_s <= usual_s:
                self._set(self._exact + math.sqrt(self._exact))
                self._low = max(self._low, self._exact / 2)
            else:
                wanted = self._exact * max(0.5, usual_s / self._took_s) + math.sqrt(self._exact)
                self._set(self._exact + (wanted - self._exact) * _SMOOTHING)
                if self._probe_at == math.inf:
                    self._probe_at = now + self._probe_s
                fallen = self._exact < self._low
                if fallen or now >= self._probe_at:
                    self._probing = True
                    if fallen:
                        self._trust = 1.0
                    self._strain = self._took_s / self._usual_s if self._usual_s else 0.0
                    self.limit = max(1, self.limit // 2)
        self._begin_round(now)

    def _end_probe(self, now: float) -> None:
        self._probing = False
        slower = self._took_s > self._usual_s * max(1.0, _SAME * self._strain)
        for baseline in self._round:
            baseline.end_probe(self._trust if slower else 0.0)
        self._trust = self._trust / 2 if slower else min(1.0, 2 * self._trust)
        self._probe_s = min(2 * self._probe_s, _PROBE_EVERY_S)
        self._probe_at = now + max(self._probe_s, _PROBE_SHARE * (now - self._since))
        self._set(self._exact)
        self._low = self._exact / 2
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._since = now
        self._round.clear()
        self._calls = self._busy = 0
        self._took_s = self._usual_s = 0.0

    def overloaded(self) -> None:
        """A call was refused for overload, or timed out. Adaptive only."""
        if self._adaptive:
            self._set(self._exact * _BACKOFF)

    def grows(self, in_flight: int, now: float) -> bool:
        """Whether there is room for one more by now, although it is reached. Never: only answers make it grow."""
        return False

    def _set(self, exact: float) -> None:
        self._exact = min(float(self.settings.max_limit), max(float(self.settings.min_limit), exact))
        if not self._probing:
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
        self._pause_s = _PAUSE_S / 2
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
            self._pause_s = min(2 * self._pause_s, _PAUSE_MOST_S)
        self._exact = max(_LEAST_STREAMS, min(self._exact, in_flight))
        self._grow_at = now + self._pause_s

    def observe(self, took_s: float, in_flight: int, now: float) -> None:
        """See `LimitState`."""
        if self.own is not None:
            self.own.observe(took_s, in_flight, now)

    def overloaded(self) -> None:
        """See `LimitState`."""
        if self.own is not None:
            self.own.overloaded()

    def grows(self, in_flight: int, now: float) -> bool:
        """Whether there is room for one more by now, although it is reached. Then it has grown."""
        if now < self._grow_at or (self.own is not None and in_flight >= self.own.limit):
            return False
        self._exact += max(1, self._exact // _GROWTH_SHARE)
        self._grow_at = now + self._pause_s
        self._grown = True
        return True

    def __repr__(self) -> str:
        return f"<StreamLimit {self.limit:g}>"
