"""The circuit breaker: stop calling what keeps failing, and try it again carefully.

::

      5 failures in a row, half of >= 10 calls in 20 s, or far worse than the others
        ┌──────────┐ ──────────────────────────────────────────────► ┌──────────┐
        │  CLOSED  │                                                 │   OPEN   │
        │ admits   │                                                 │ refuses  │
        └──────────┘                                                 └──────────┘
             ▲                                                        │      ▲
             │                                its time is up and ...  │      │ probe failed:
             │ probe succeeded                 someone acquires       ▼      │ open twice as long
             │                                                     ┌───────────────┐
             └──────────────────────────────────────────────────── │   HALF_OPEN   │
                                                                   │ one at a time │
                                                                   └───────────────┘

What each state does. There are no other moves.

=========== ============================== ===============================================================
state       ``acquire``                    a permit comes back
=========== ============================== ===============================================================
CLOSED      admits                         ``release``: FAILURE counts in a row and in the share, SUCCESS ends
                                           the row and counts in the share, IGNORED counts nowhere;
                                           ``late``: counts in the row. A limit that is full: **to OPEN**.
                                           ``open_now``: **to OPEN**
OPEN        refuses until ``retry_at``,    decides nothing: it is from before
            then **to HALF_OPEN**
HALF_OPEN   refuses while a probe is out,  the probe's: SUCCESS **to CLOSED**; FAILURE, ``late`` and
            for ``probe_s`` at most        ``open_now`` **to OPEN**; IGNORED frees its place for the next one.
                                           Any other: decides nothing
=========== ============================== ===============================================================

A permit is the *generation* of its time, which grows with every move and every probe: so a permit from before
a move, or of a probe that was given up, is known by it.

An endpoint that was blamed for answering worse than the others (`lb.core.comparison`) is closed by a good answer
only: ``blamed`` tells the caller that returns the probe to report any other answer as a FAILURE.

Time only passes through ``now``, and nothing here knows endpoints: a server or an HTTP client
may use a breaker as well. Numbers: five in a row is Envoy's and finagle's default, the share is
Armeria's, the doubling of 1 s to 60 s with a jitter of 0.5 is linkerd's.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from lb.core import checks
from lb.core.outcome import Verdict
from lb.core.window import Window


class State(enum.Enum):
    """CLOSED admits, OPEN refuses, HALF_OPEN admits one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Reading a member of an enum takes longer than reading a global, and every call does it.
_CLOSED = State.CLOSED
_SUCCESS, _IGNORED = Verdict.SUCCESS, Verdict.IGNORED

REFUSED = 0
"""What ``acquire`` returns instead of a generation. Releasing it decides nothing."""


class Transition(NamedTuple):
    """One move of a breaker, for listeners and snapshots."""

    before: State
    after: State
    at: float
    """Monotonic seconds."""
    reason: str
    """In words: ``5 failures in a row``."""
    open_s: float
    """After a move to OPEN: how long it refuses, in seconds. Otherwise 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When an endpoint is ejected for a while. One object may serve many endpoints.

    The defaults are those of other projects: five in a row of Envoy and Finagle, the share of failures of Armeria, the
    doubling from 1 s to 60 s of linkerd.

    Args:
        consecutive_failures: open after this many failures in a row, >= 1; None turns this rule off.
        failure_ratio: open at this share of failures in the last ``window_s``, > 0 and <= 1; None turns this rule off.
        minimum_calls: ``failure_ratio`` counts only if there were this many calls in the window, >= 1.
        window_s: length of the window in seconds, > 0.
        open_s: how long the first opening lasts, in seconds, > 0. If the probe after it fails, the next one lasts
            twice as long.
        max_open_s: the longest opening in seconds, >= ``open_s``. An endpoint that answers its probes, even with
            errors, is probed sooner where there are enough calls, because a probe then costs few of them.
        jitter: each opening is made longer by a random share of itself, up to this one, from 0 to 1, so that many
            clients do not probe at the same moment.
        probe_s: seconds, > 0. A probe that has not ended by then is given up, and another call may be the probe.
        unanswered_s: seconds, > 0, or None. A call that ends at its own deadline counts as a failure if it has waited
            at least this long without a response. This is the only sign of a hung endpoint.
        refused_s: seconds, > 0, or None. Open if the endpoint has refused every call (with push-back) for this time and
            for four of its usual latencies, and at least ``consecutive_failures`` calls. A refusal is otherwise no
            failure, because an endpoint that is full still answers some calls.
        good_ratio: > 0 and < 1, or None. Open if the endpoint's share of good answers is less than this part of the
            share of all others, and chance does not explain it. With 0.5: the others answer 90 % of calls well, and
            this one fewer than 45 %. Only with policies whose choice does not depend on the call (`Hooks.spreads`).
        slow_call_s: seconds, > 0, or None. A call that takes this long or longer counts as a failure, whatever its
            status. For a stream of responses, the time to the first one counts.

    If both ``consecutive_failures`` and ``failure_ratio`` are None, the breaker never opens.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    consecutive_failures: int | None = 5
    failure_ratio: float | None = 0.5
    minimum_calls: int = 10
    window_s: float = 20.0
    open_s: float = 1.0
    max_open_s: float = 60.0
    jitter: float = 0.5
    probe_s: float = 30.0
    unanswered_s: float | None = 1.0
    refused_s: float | None = 0.5
    good_ratio: float | None = 0.5
    slow_call_s: float | None = None

    def __post_init__(self) -> None:
        if self.consecutive_failures is not None:
            accepted = "a whole number >= 1, or None"
            checks.whole("Breaker.consecutive_failures", self.consecutive_failures, accepted, least=1)
        if self.failure_ratio is not None:
            accepted = "a number > 0 and <= 1, or None"
            checks.number("Breaker.failure_ratio", self.failure_ratio, accepted, most=1, above=True)
        checks.whole("Breaker.minimum_calls", self.minimum_calls, least=1)
        for name in ("window_s", "open_s", "probe_s"):
            checks.number(f"Breaker.{name}", getattr(self, name), above=True)
        for name in ("unanswered_s", "refused_s", "slow_call_s"):
            value = getattr(self, name)
            if value is not None:
                checks.number(f"Breaker.{name}", value, "seconds > 0, or None", above=True)
        if self.good_ratio is not None:
            accepted = "a number > 0 and < 1, or None"
            checks.number("Breaker.good_ratio", self.good_ratio, accepted, most=1, above=True)
            if self.good_ratio == 1:
                raise ValueError(f"Breaker.good_ratio is {self.good_ratio!r}; expected {accepted}")
        accepted = f"seconds >= open_s ({self.open_s!r})"
        checks.number("Breaker.max_open_s", self.max_open_s, accepted, least=self.open_s)
        checks.number("Breaker.jitter", self.jitter, "a number from 0 to 1", most=1)

    @property
    def opens(self) -> bool:
        """Whether anything can open it."""
        return self.consecutive_failures is not None or self.failure_ratio is not None

    def new_state(self) -> BreakerState:
        """A new CLOSED state machine with these settings."""
        return BreakerState(self)


class BreakerState:
    """The state machine of one endpoint (or of whatever is called). Not thread-safe.

    ``state``, ``generation`` and ``last`` (the latest move) may be read, never written.
    """

    __slots__ = (
        "_failures",
        "_open_s",
        "_retry_at",
        "_window",
        "blamed",
        "generation",
        "last",
        "openings",
        "settings",
        "state",
    )

    def __init__(self, settings: Breaker) -> None:
        """Use ``Breaker.new_state``."""
        self.settings = settings
        self.state = State.CLOSED
        self.generation = REFUSED + 1
        self.last: Transition | None = None
        self.openings = 0
        """How often it has opened since it was CLOSED last. More than once means that a probe failed."""
        self.blamed = ""
        """Why it was blamed, in words, when that is what opened it last; else empty."""
        self._failures = 0  # in a row
        self._window = Window(math.inf if settings.failure_ratio is None else settings.window_s)
        self._open_s = settings.open_s  # of the next opening, before jitter
        self._retry_at: float | None = None

    @property
    def retry_at(self) -> float | None:
        """The instant from which it admits again although no outcome came; None when it admits now.

        OPEN: when its time is up. HALF_OPEN with its probe out: when that probe is given up.
        """
        return self._retry_at

    def admits(self, now: float) -> bool:
        """Whether ``acquire(now)`` would admit. Changes nothing."""
        retry_at = self._retry_at  # read once: another thread may look on
        return retry_at is None or now >= retry_at

    def acquire(self, now: float) -> int:
        """A permit, to be given back by ``release`` or one of its kin; ``REFUSED`` (0) when not admitted.

        When an OPEN breaker's time is up it becomes HALF_OPEN, and the permit is that of its probe. A caller that has
        to call although it was refused (panic: every endpoint refuses) uses the 0, and that outcome decides
        nothing.
        """
        if self.state is _CLOSED:
            return self.generation
        if self._retry_at is not None and now < self._retry_at:
            return REFUSED
        if self.state is State.OPEN:
            self._move(State.HALF_OPEN, now, "its open time is over")
        else:
            self.generation += 1  # the last probe was given up, or decided nothing
        self._retry_at = now + self.settings.probe_s
        return self.generation

    # ---- CLOSED: a permit comes back ----

    def release(
        self, permit: int, verdict: Verdict, now: float, rng: Random, longest_s: float = math.inf
    ) -> Transition | None:
        """Return a permit with what became of it; the move that follows, if one does.

        ``longest_s``: should a probe have failed, it is open no longer than that (or than ``open_s``, if that is more),
        jitter included.

        Raises:
            ValueError: no such permit was ever given out.
        """
        if permit != self.generation or self.state is not _CLOSED:
            return self._return_probe(permit, verdict, now, rng, longest_s)
        if verdict is _IGNORED:
            return None
        window = self._window
        if now >= window.edge:
            window.roll(now)
        window.calls += 1
        if verdict is _SUCCESS:
            self._failures = 0
            return None
        window.marked += 1
        self._failures += 1
        reason = self._too_many(now)
        return self._open(now, rng, reason) if reason else None

    def late(self, permit: int, now: float, rng: Random) -> Transition | None:
        """Return the permit of a call that another endpoint answered, although this one had far more time.

        It counts as a failure in a row, but not in the share: a healthy endpoint is late now and
        then, while one that hangs or has become far slower is late each time. A late probe has failed.
        """
        if permit != self.generation or self.state is not _CLOSED:
            return self._return_probe(permit, Verdict.FAILURE, now, rng)
        self._failures += 1
        limit = self.settings.consecutive_failures
        if limit is not None and self._failures >= limit:
            return self._open(now, rng, f"{self._failures} failures or late answers in a row")
        return None

    def open_now(
        self, permit: int, now: float, rng: Random, reason: str, *, blamed: bool = False, longest_s: float = math.inf
    ) -> Transition | None:
        """Return a permit whose outcome shows that calls should go elsewhere: that opens it, whatever was counted.

        ``blamed``: the others answer far better. An endpoint that is blamed again soon is open for longer each time, up
        to ``longest_s``: now and then a broken one answers well, and that has closed it. A probe has failed.
        """
        if permit != self.generation or self.state is not _CLOSED:
            return self._return_probe(permit, Verdict.FAILURE, now, rng, longest_s)
        move = self._open(now, rng, reason, longest_s)
        self.blamed = reason if blamed else ""
        return move

    def _too_many(self, now: float) -> str:
        """Which limit the failures so far fill, in words; empty when none."""
        limit, ratio = self.settings.consecutive_failures, self.settings.failure_ratio
        if limit is not None and self._failures >= limit:
            return f"{self._failures} failures in a row"
        if ratio is not None:
            calls, failures = self._window.totals(now)
            if calls >= self.settings.minimum_calls and failures >= ratio * calls:
                return f"{failures} of {calls} calls failed in {self.settings.window_s:g} s"
        return ""

    # ---- OPEN and HALF_OPEN: a permit comes back ----

    def _return_probe(
        self, permit: int, verdict: Verdict, now: float, rng: Random, longest_s: float = math.inf
    ) -> Transition | None:
        if permit > self.generation or (permit == self.generation and self.state is State.OPEN):
            raise ValueError(f"breaker: permit {permit} was never given out by {self!r}")
        if permit != self.generation or self._retry_at is None:  # from before; or returned already
            return None
        self._retry_at = None
        if verdict is _IGNORED:
            return None
        if verdict is _SUCCESS:
            self.openings = 0
            if not self.blamed:
                self._open_s = self.settings.open_s
            return self._move(State.CLOSED, now, "the probe succeeded")
        return self._open(now, rng, "the probe failed", longest_s)

    # ---- the moves ----

    def _open(self, now: float, rng: Random, reason: str, longest_s: float = math.inf) -> Transition:
        settings = self.settings
        if self.state is _CLOSED:
            self.blamed = ""
            if self.last is None or now - self.last.at > settings.window_s:
                self._open_s = settings.open_s
        # Below the cap by as much as the jitter may add: the longest openings are spread as well.
        stretched = 1 + settings.jitter
        base = min(self._open_s, settings.max_open_s / stretched, max(longest_s / stretched, settings.open_s))
        open_s = base * (1 + settings.jitter * rng.random())
        self._open_s = min(self._open_s * 2, settings.max_open_s)
        self.openings += 1
        self._retry_at = now + open_s
        return self._move(State.OPEN, now, reason, open_s)

    def _move(self, to: State, now: float, reason: str, open_s: float = 0.0) -> Transition:
        self.last = Transition(self.state, to, now, reason, open_s)
        self.state = to
        self.generation += 1
        self._failures = 0
        self._window.clear()
        return self.last

    def __repr__(self) -> str:
        until = "" if self._retry_at is None else f" until={self._retry_at:.3f}"
        why = f" ({self.last.reason})" if self.last else ""
        counts = f"in_row={self._failures} newest={self._window.marked}/{self._window.calls}"
        return f"<BreakerState {self.state.name}{until}{why} generation={self.generation} {counts}>"
