"""The core's record of a call: how it begins, and what telemetry is told of its end."""

from __future__ import annotations

import logging
from typing import Any

from lb.aio import _grpcio
from lb.aio.protocols import Owner
from lb.core.actions import Done, Failed
from lb.core.call import Call, Shared
from lb.core.upkeep import Overdue
from lb.shared import scopes

_log = logging.getLogger("lb.channel")


def new_record(
    channel: Owner, shared: Shared, deadline: float | None, wait_for_ready: bool | None, now: float
) -> tuple[Call, Any, scopes.Scope | None]:
    """The core's record of a call that begins, its span (see `Carrier`), and the incoming call that it is made for.

    ``shared`` is what it shares with all calls of its method. ``deadline`` is the caller's own, an instant of the
    monotonic clock; others may be earlier.
    """
    if now > channel.pulse.renew_at:
        channel.keep_pulse()
    rules = shared.rules
    if deadline is None and rules.default_timeout_s is not None:
        deadline = now + rules.default_timeout_s
    scope = scopes.current() if channel.propagate else None
    if scope is not None:
        deadline = scope.bound(deadline)
    if rules.timeout_s is not None:
        latest = now + rules.timeout_s
        deadline = latest if deadline is None else min(latest, deadline)
    record = channel.record_type(shared, deadline, wait_for_ready, now)
    return record, channel.tracer.call_started(record, now), scope


def log_raised(channel: Owner, end: Failed | Done | Overdue) -> None:
    """Write to the log what a user's policy or retry strategy raised, if that led to this."""
    if end.raised is not None:
        words = end.details if isinstance(end, Failed) else end.raised
        _log.error("%s: %s", channel.target, words, exc_info=end.raised)


def told(channel: Owner, record: Call, span: Any, status: Any) -> None:
    """Tell telemetry how a call has ended."""
    if channel.metrics.on:
        channel.metrics.call_ended(record, _grpcio.STATUS_CODES[status.code()], span)
    if span is not None and not isinstance(span, tuple):  # a tuple: there is none, only headers
        channel.tracer.call_ended(span, record, _grpcio.STATUS_CODES[status.code()], status.details())
