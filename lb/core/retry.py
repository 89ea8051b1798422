"""Whether a failed attempt is tried again, and after how long.

The settings are tenacity's strategies: ``stop``, ``wait`` and ``retry`` objects that users
know and can combine. They are asked only after a failure, so a call that succeeds at
once never uses them. tenacity's own driver is not used, since it sleeps and reads the
clock itself; here the instants of its ``RetryCallState`` are overwritten from ``now``.

The wait is the one that tenacity computes. Jitter is added from the channel's own
``rng`` (+-20 % by default, gRFC A6), so that a seeded run repeats. A user's
``wait_random*`` is accepted, but it draws from the global ``random`` and does not repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import isfinite
from random import Random
from typing import Any, ClassVar

import grpc
from tenacity import Future, RetryCallState, stop_after_attempt, wait_exponential

from lb.core import checks
from lb.core.budget import Budget
from lb.core.checks import shown
from lb.core.outcome import Origin, Outcome, Retryable

Strategy = Callable[[RetryCallState], Any]


class AttemptError(grpc.RpcError):
    """A failed attempt, as tenacity's ``retry`` strategies see it (``retry_if_exception``)."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason())
        self.outcome = outcome

    def code(self) -> grpc.StatusCode:
        """The status code that the attempt ended with."""
        return self.outcome.code

    def details(self) -> str:
        """The details that came with it."""
        return self.outcome.details


_SUCH_AS = {
    "stop": "stop_after_attempt(3)",
    "wait": "wait_exponential(multiplier=0.05, max=1)",
    "retry": "retry_if_exception(predicate)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a failed attempt is tried again, and after how long. One object may serve many channels.

    ``stop``, ``wait`` and ``retry`` are strategies of tenacity. They are asked only after a failure.

    Args:
        stop: tenacity's ``stop_*``. It counts attempts, the first one included. Default: after 4.
        wait: tenacity's ``wait_*``, in seconds. Default: 25 ms, doubled each time, at most 1 s. A server's push-back
            replaces the wait, and restarts the sequence (gRFC A6).
        retry: tenacity's ``retry_if_*``, or None. It adds to the table of verdicts (`lb.core.outcome`): a failure for
            which it returns True is tried again even if the table would not, also where the method may not run twice.
            It sees the failure as a ``grpc.RpcError``. No call is tried again once it is committed.
        jitter: the share by which a wait is made longer or shorter at random, from 0 to 1.
        attempt_timeout_s: seconds from an attempt's last request to its first response, > 0; None: no limit. An
            attempt that takes longer counts as a failure of its endpoint. If another attempt can follow, this one is
                cancelled: the method may run twice (or ``retry`` allows it), retries are on, and attempts and budget
                are left. If not, the attempt continues until the call's timeout. A call without a timeout fails with
                UNAVAILABLE at that moment.
        budget: how many retries a channel may send. All methods of a channel share one.
        idempotent: methods that may run twice without harm, as ``/package.Service/Method``, or
            ``/package.Service/*`` for all of a service. Methods whose proto declares an ``idempotency_level`` need
            not be listed.
        enabled: False: no call is tried again, not even one that no server has seen.

    Raises:
        ValueError: a field is out of its range, or a method is not written as above; the message names it.
        TypeError: a field has a wrong type.
    """

    stop: Strategy = field(default_factory=lambda: stop_after_attempt(4))
    wait: Strategy = field(default_factory=lambda: wait_exponential(multiplier=0.025, max=1.0))
    retry: Strategy | None = None
    jitter: float = 0.2
    attempt_timeout_s: float | None = None
    budget: Budget = field(default_factory=Budget)
    idempotent: Collection[str] = ()
    enabled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise TypeError(f"Retry.budget is {shown(self.budget)}; expected an lb.Budget")
        checks.flag("Retry.enabled", self.enabled)
        for name, value in (("stop", self.stop), ("wait", self.wait), ("retry", self.retry)):
            if (not callable(value) or isinstance(value, type)) and not (name == "retry" and value is None):
                raise TypeError(
                    f"Retry.{name} is {shown(value)}; expected one of tenacity's, such as tenacity.{_SUCH_AS[name]}"
                )
        checks.number("Retry.jitter", self.jitter, "a number from 0 to 1", most=1)
        if self.attempt_timeout_s is not None:
            checks.number("Retry.attempt_timeout_s", self.attempt_timeout_s, "seconds > 0, or None", above=True)
        if isinstance(self.idempotent, (str, bytes)) or not isinstance(self.idempotent, Collection):
            raise TypeError(
                f"Retry.idempotent is {shown(self.idempotent)}; expected a list, such as ['/package.Service/Method']"
            )
        for method in self.idempotent:
            checks.method(f"Retry.idempotent has {shown(method)}", method)

    def declared_by(self, name: str) -> list[str]:
        """The entries of ``idempotent`` that ``/package.Service/Method`` goes by."""
        return [entry for entry in checks.entries(name) if entry in self.idempotent]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after ``delay_s`` seconds. ``counts``: as in `GiveUp`; it always does."""

    delay_s: float
    counts: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again; ``why`` in words. ``error`` is what a user's strategy raised, if one did.

    ``counts``: the failure is one that gRFC A6's throttle counts (it may be retried, or the server said not to).
    """

    why: str
    error: Exception | None = field(default=None, compare=False)
    counts: bool = field(default=False, compare=False)


_BY_CALLER = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "the call's deadline passed",
    grpc.StatusCode.CANCELLED: "the caller cancelled",
}


def decide(
    settings: Retry,
    outcome: Outcome,
    *,
    attempts: int,
    step: int,
    started_at: float,
    slept_s: float,
    idempotent: bool,
    now: float,
    rng: Random,
) -> Again | GiveUp:
    """What follows a failed, uncommitted attempt by these settings (the budget is not asked here).

    ``attempts`` is the number of attempts so far, ``step`` the number since the server's last push-back (it decides the
    wait), ``started_at`` is when the call began and ``slept_s`` how many seconds it has waited between its attempts.
    """
    if not settings.enabled:
        return GiveUp("retries are off")
    if outcome.origin is Origin.CALLER:
        return GiveUp(_BY_CALLER.get(outcome.code, "what the caller passed could not be sent"))
    if outcome.pushback_s is not None and outcome.pushback_s < 0:
        return GiveUp("the server said not to retry", counts=True)
    allowed = outcome.retryable is Retryable.ALWAYS or (outcome.retryable is Retryable.IF_IDEMPOTENT and idempotent)
    if not allowed and settings.retry is None:
        if outcome.retryable is Retryable.IF_IDEMPOTENT:
            return GiveUp("the method is not declared idempotent")
        return GiveUp(f"{outcome.code.name} is not retried")
    state = _state(outcome, attempts, started_at, slept_s, now)
    try:
        if not allowed and not _ask(settings, "retry", state):
            return GiveUp(f"{outcome.code.name} is not retried")
        if outcome.pushback_s is not None:
            delay = outcome.pushback_s  # the server's own word replaces our wait (gRFC A6)
        else:
            state.attempt_number = step
            delay = _ask(settings, "wait", state)
            state.attempt_number = attempts
            if not _number(delay) or not isfinite(delay):
                return GiveUp(f"Retry.wait returned {delay!r}; expected seconds")
            delay *= 1.0 + settings.jitter * (2.0 * rng.random() - 1.0)
        state.upcoming_sleep = delay
        if _ask(settings, "stop", state):
            return GiveUp(f"stopped after {attempts} attempt{'s' if attempts > 1 else ''}", counts=True)
    except _BrokenStrategyError as broken:
        return GiveUp(str(broken), broken)
    return Again(max(0.0, delay))


class _BrokenStrategyError(Exception):
    """A user's strategy raised."""


def _ask(settings: Retry, name: str, state: RetryCallState) -> Any:
    try:
        return getattr(settings, name)(state)
    except Exception as error:
        raise _BrokenStrategyError(f"Retry.{name} raised {type(error).__name__}: {error}") from error


def _state(outcome: Outcome, attempts: int, started_at: float, slept_s: float, now: float) -> RetryCallState:
    """The call as tenacity sees it, with its clock readings replaced by ours."""
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # strategies do not look at these
    state.start_time = started_at
    state.attempt_number = attempts
    state.idle_for = slept_s
    future = Future(attempts)
    future.set_exception(AttemptError(outcome))
    state.outcome = future
    state.outcome_timestamp = now
    return state
