"""For how long the client itself was held up: such time counts against no endpoint.

The user's own code may hold the event loop or the interpreter for seconds, and a machine may stop a process.
Meanwhile answers arrive and are not read. A time-out that goes by the clock alone ("no answer for half a
second") would then blame endpoints that are well. So time-outs count the time for which the client ran::

    beats      │    │    │    │                        │    │    │
    running    ├──────────────┤         held           ├─────────
                                   ▲ the next beat was due here: held from here on

A driver beats every `BEAT_S` while anything may have to be judged. A beat that comes more than `LATE_S` late shows
that it was held, so what holds it for 0.1 s or longer is always seen.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf

BEAT_S = 0.05
LATE_S = 0.05
_REMEMBERED = 64


class Pulse:
    """When one event loop was held. Any thread may ask; one driver beats."""

    __slots__ = ("_due", "_held", "renew_at")

    def __init__(self) -> None:
        self._due = inf
        # When it was held last: beginnings, ends, and how long in all until each end. Replaced as a whole, since
        # other threads read it.
        self._held: tuple[list[float], list[float], list[float]] = ([], [], [])
        self.renew_at = -inf
        """What begins after this instant has to ask the driver to go on beating."""

    def beat(self, now: float, *, last: bool = False) -> None:
        """The driver runs. ``last``: it stops beating, and what follows is not known."""
        if now - self._due > LATE_S:
            begins, ends, sums = (kept[1 - _REMEMBERED :] for kept in self._held)
            begins.append(self._due)
            ends.append(now)
            sums.append((sums[-1] if sums else 0.0) + now - self._due)
            self._held = (begins, ends, sums)
        self._due = inf if last else now + BEAT_S

    def expect(self, now: float) -> None:
        """A beat is due from now on, if none was: the driver was asked to begin, and may be held up before it does."""
        if self._due == inf:
            self._due = now + BEAT_S

    def held_s(self, since: float, now: float) -> float:
        """For how many seconds from ``since`` to ``now`` it was held, as far as beats show it."""
        held_s = now - max(since, self._due) if now - self._due > LATE_S else 0.0
        ends = self._held[1]
        if ends and ends[-1] > since:
            held_s += self._held_until(now) - self._held_until(since)
        return held_s

    def _held_until(self, instant: float) -> float:
        """For how many seconds it was held in all until this instant, without the present stall."""
        begins, ends, sums = self._held
        at = bisect_right(ends, instant)
        if at == len(ends):
            return sums[-1]
        return sums[at] - ends[at] + max(begins[at], min(ends[at], instant))

    def ran_s(self, since: float, now: float) -> float:
        """How many seconds from ``since`` to ``now`` count."""
        return now - since - self.held_s(since, now)

    def left_s(self, since: float, limit_s: float, now: float) -> float:
        """Seconds until a time-out that began at ``since`` may be judged; 0: now.

        That is when the client has run for ``limit_s``. After it was held it has to run for at least one beat, since it
        takes some turns of the loop to read what has arrived meanwhile.
        """
        left_s = limit_s - (now - since)
        if left_s > 0.0:
            return left_s
        left_s = limit_s - self.ran_s(since, now)
        return max(left_s, BEAT_S) if left_s > 0.0 else 0.0

    def __repr__(self) -> str:
        begins, ends, _ = self._held
        held = ", ".join(f"{end - begin:.3f} s" for begin, end in zip(begins, ends, strict=True))
        return f"<Pulse due={self._due:.3f} held=[{held}]>"
