"""How the connection to each endpoint is kept: reconnecting, keepalive, idling.

All of it becomes grpcio's channel options; an option that the user gives by its own name wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lb.core import checks

STOOD_S = 1.0
"""A connection that lasted this long, or for ``Connection.max_backoff_s`` if that is less, was no failure."""
DOUBT_S = 0.01
"""How long a connection must last before it is used, when the one before it ended too soon."""
JITTER = 0.2
"""A pause is longer or shorter by up to this share, as gRPC's own backoff is."""
_MOST_S = 2e6  # more milliseconds than core counts in 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How the connection to each endpoint is made and kept. All fields but one are in seconds.

    Args:
        connect_timeout_s: how long one attempt to connect may take, > 0. The default is grpcio's: a server under load
            may need seconds for a TLS handshake. Calls wait for a connection, up to their deadline, only if no other
            endpoint is connected.
        backoff_s: the pause between two attempts to connect, > 0. It doubles each time, up to ``max_backoff_s``. It is
            shorter than grpcio's (1 s to 120 s), because other endpoints take the calls meanwhile. A connection that
            ends within a second (or ``max_backoff_s``, if that is less) without having answered a call counts as a
            failed attempt.
        max_backoff_s: the longest pause, >= ``backoff_s``.
        keepalive_s: send a ping after this time without data, >= 0.1; None: no pings. Pings find a peer that is gone
            without a word, such as a stopped process. The server must allow them
            (``grpc.http2.min_ping_interval_without_data_ms``), or it answers GOAWAY.
        keepalive_timeout_s: close the connection if a ping is not answered in this time, > 0.
        keepalive_without_calls: whether to ping while no call runs.
        idle_s: a channel without calls closes its connections after this time, > 0, and connects again at the next
            call; None: never.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    connect_timeout_s: float = 20.0
    backoff_s: float = 0.1
    max_backoff_s: float = 0.5
    keepalive_s: float | None = None
    keepalive_timeout_s: float = 5.0
    keepalive_without_calls: bool = False
    idle_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "backoff_s", "max_backoff_s", "keepalive_timeout_s"):
            checks.number(f"Connection.{name}", getattr(self, name), "seconds > 0", most=_MOST_S, above=True)
        if self.max_backoff_s < self.backoff_s:
            accepted = f"seconds >= backoff_s ({self.backoff_s!r})"
            raise ValueError(f"Connection.max_backoff_s is {self.max_backoff_s!r}; expected {accepted}")
        if self.keepalive_s is not None:
            accepted = "seconds >= 0.1, or None"
            checks.number("Connection.keepalive_s", self.keepalive_s, accepted, least=0.1, most=_MOST_S)
        if self.idle_s is not None:
            checks.number("Connection.idle_s", self.idle_s, "seconds > 0, or None", above=True)
        checks.flag("Connection.keepalive_without_calls", self.keepalive_without_calls)

    def options(self) -> tuple[tuple[str, int], ...]:
        """The same as grpcio's channel options."""
        found = [
            ("grpc.initial_reconnect_backoff_ms", _ms(self.backoff_s)),
            ("grpc.min_reconnect_backoff_ms", _ms(self.connect_timeout_s)),  # also one attempt's time-out
            ("grpc.max_reconnect_backoff_ms", _ms(self.max_backoff_s)),
        ]
        if self.keepalive_s is not None:
            found += [
                ("grpc.keepalive_time_ms", _ms(self.keepalive_s)),
                ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
                ("grpc.keepalive_permit_without_calls", int(self.keepalive_without_calls)),
                ("grpc.http2.max_pings_without_data", 0),  # no bound: keepalive says how often
            ]
        return tuple(found)


class Pace:
    """When the next connection to an endpoint may be made, by how long the last ones lasted.

    Core's own backoff is for attempts that fail. Without this, a server that accepts and hangs up (it is full, it is a
    proxy without a server behind it, it speaks another protocol) would be connected to hundreds of times a second.
    """

    __slots__ = ("_longest_s", "_pause_s", "_rng", "_shortest_s", "short")

    def __init__(self, settings: Connection, rng: Random) -> None:
        self._rng = rng
        self._shortest_s = self._pause_s = settings.backoff_s
        self._longest_s = settings.max_backoff_s
        self.short = 0
        """How many connections in a row ended too soon."""

    def ended(self, stood_s: float, *, answered: bool) -> float:
        """A connection ended that had lasted ``stood_s`` seconds; ``answered``: a call on it had an answer.

        Returns how many seconds to wait before the next one is made.
        """
        if answered or stood_s >= min(STOOD_S, self._longest_s):
            self.short = 0
            self._pause_s = self._shortest_s
            return 0.0
        pause_s = self._pause_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        self._pause_s = min(2 * self._pause_s, self._longest_s)
        self.short += 1
        return max(0.0, pause_s - stood_s)

    @property
    def doubt_s(self) -> float:
        """How long a new connection must last before calls are sent on it, in seconds."""
        return DOUBT_S if self.short else 0.0

    def __repr__(self) -> str:
        return f"<Pace {self.short} in a row ended soon>"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
