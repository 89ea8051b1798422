"""Settings of a connection, and the channel options that they become."""

from __future__ import annotations

from typing import Any

import pytest

from lb.core.connection import Connection


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
    """100 ms up to 500 ms, one second to connect, and no ping that a server might take for abuse."""
    assert dict(Connection().options()) == {
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 1000,
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
