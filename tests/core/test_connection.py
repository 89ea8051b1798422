"""Settings of a connection, and the channel options that they become."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lb.core.connection import DOUBT_S, JITTER, STOOD_S, Connection, Pace


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connect_timeout_s", 0),
        ("backoff_s", -1),
        ("backoff_s", "1"),
        ("max_backoff_s", 0.05),
        ("max_backoff_s", float("inf")),
        ("keepalive_s", 0.05),
        ("keepalive_s", True),
        ("keepalive_timeout_s", 0),
        ("keepalive_without_calls", 1),
        ("idle_s", 0),
        ("idle_s", float("nan")),
    ],
)
def test_a_bad_setting_is_named(field: str, value: Any) -> None:
    """An error with field and value."""
    with pytest.raises((ValueError, TypeError), match=f"Connection.{field} is {value!r}"):
        Connection(**{field: value})


def test_reconnecting_is_quick_and_keepalive_off_by_default() -> None:
    """100 ms up to 500 ms, 20 s to connect, and no ping that a server might take for abuse."""
    assert dict(Connection().options()) == {
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 20_000,
        "grpc.max_reconnect_backoff_ms": 500,
    }


def test_keepalive_becomes_four_options() -> None:
    """Seconds become milliseconds; core's own bound on pings without data would silence keepalive."""
    options = dict(Connection(keepalive_s=0.25, keepalive_timeout_s=2, keepalive_without_calls=True).options())
    assert options["grpc.keepalive_time_ms"] == 250
    assert options["grpc.keepalive_timeout_ms"] == 2000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_pings_without_data"] == 0


def test_no_option_is_rounded_to_0() -> None:
    """Core takes 0 for something else."""
    assert set(dict(Connection(connect_timeout_s=1e-5, backoff_s=1e-5, max_backoff_s=1e-5).options()).values()) == {1}


class Even(Random):
    """Chance that always takes the middle."""

    def uniform(self, a: float, b: float) -> float:
        """Half way."""
        return (a + b) / 2


def test_connections_that_end_soon_are_made_more_and_more_slowly() -> None:
    """Twice the pause each time, up to the longest; what the connection stood is part of it."""
    pace = Pace(Connection(backoff_s=0.1, max_backoff_s=0.5), Even())
    assert [pace.ended(0.0, answered=False) for _ in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    assert pace.ended(0.2, answered=False) == pytest.approx(0.3)
    assert pace.short == 6
    for _ in range(5000):  # days of it
        assert pace.ended(0.0, answered=False) == pytest.approx(0.5)


@pytest.mark.parametrize(("longest_s", "enough_s"), [(0.5, 0.5), (120.0, STOOD_S)])
def test_a_connection_that_stood_for_a_while_is_followed_at_once(longest_s: float, enough_s: float) -> None:
    """And what went before is forgotten: the next one that ends soon costs the shortest pause."""
    pace = Pace(Connection(backoff_s=0.1, max_backoff_s=longest_s), Even())
    assert pace.ended(1e9, answered=False) == 0.0
    for _ in range(3):
        pace.ended(0.0, answered=False)
    assert pace.doubt_s == DOUBT_S
    assert pace.ended(enough_s, answered=False) == 0.0
    assert (pace.short, pace.doubt_s) == (0, 0.0)
    assert pace.ended(0.0, answered=False) == pytest.approx(0.1)


def test_a_connection_that_answered_is_followed_at_once() -> None:
    """However soon it ended: a server with a maximum age of a few calls, say."""
    pace = Pace(Connection(backoff_s=0.1, max_backoff_s=0.5), Even())
    pace.ended(0.0, answered=False)
    assert pace.ended(0.001, answered=True) == 0.0
    assert pace.short == 0


def test_the_pauses_of_many_clients_differ() -> None:
    """By a fifth up and down, so that those whom one server hung up on do not all come back at one moment."""
    settings = Connection(backoff_s=1, max_backoff_s=1)
    pauses = [Pace(settings, Random(seed)).ended(0.0, answered=False) for seed in range(200)]
    assert 1 - JITTER <= min(pauses) < 0.85
    assert 1.15 < max(pauses) <= 1 + JITTER
