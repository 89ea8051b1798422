"""When a failed attempt is tried again: tenacity's strategies, read on our clock."""

from __future__ import annotations

import random
from datetime import timedelta
from random import Random
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    RetryCallState,
    retry_all,
    retry_if_exception,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_any,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
)

from lb.core.outcome import Origin, Outcome, classify
from lb.core.retry import Again, AttemptError, GiveUp, Retry, decide
from tests.core.rig import CANCELLED, INTERNAL, REFUSED, TIMED_OUT, UNAVAILABLE, UNSENT

START = 1000.0


def ask(
    settings: Retry,
    outcome: Outcome = UNAVAILABLE,
    *,
    attempts: int = 1,
    step: int | None = None,
    elapsed: float = 0.0,
    slept: float = 0.0,
    idempotent: bool = True,
    rng: Random | None = None,
) -> Again | GiveUp:
    """What the settings say of a call that began ``elapsed`` seconds ago."""
    return decide(
        settings,
        outcome,
        attempts=attempts,
        step=attempts if step is None else step,
        started_at=START,
        slept_s=slept,
        idempotent=idempotent,
        now=START + elapsed,
        rng=rng or Random(1),
    )


def steady(**changes: Any) -> Retry:
    """Settings without jitter."""
    return Retry(jitter=0.0, **changes)


# ---- what the table allows ----


@pytest.mark.parametrize(
    ("outcome", "idempotent", "why"),
    [
        (UNAVAILABLE, True, None),
        (UNAVAILABLE, False, "the method is not declared idempotent"),
        (TIMED_OUT, True, None),
        (TIMED_OUT, False, "the method is not declared idempotent"),
        (UNSENT, False, None),
        (REFUSED, False, None),
        (INTERNAL, True, "INTERNAL is not retried"),
        (CANCELLED, True, "the caller cancelled"),
        (classify(StatusCode.DEADLINE_EXCEEDED, origin=Origin.CALLER), True, "the call's deadline passed"),
        (classify(StatusCode.NOT_FOUND), True, "NOT_FOUND is not retried"),
        (classify(StatusCode.UNAVAILABLE, pushback="-1"), True, "the server said not to retry"),
        (classify(StatusCode.RESOURCE_EXHAUSTED), True, "RESOURCE_EXHAUSTED is not retried"),
    ],
)
def test_the_default_retries_what_the_table_allows(outcome: Outcome, idempotent: bool, why: str | None) -> None:
    """Always, only if idempotent, or never; the refusal says why in words."""
    choice = ask(Retry(), outcome, idempotent=idempotent)
    if why is None:
        assert isinstance(choice, Again)
    else:
        assert choice == GiveUp(why)


def test_retries_can_be_turned_off() -> None:
    """Then nothing is tried again, not even what was never sent."""
    assert ask(Retry(enabled=False), UNSENT) == GiveUp("retries are off")


# ---- stop ----


def test_four_attempts_by_default() -> None:
    """The first one counts."""
    assert isinstance(ask(Retry(), attempts=3), Again)
    assert ask(Retry(), attempts=4) == GiveUp("stopped after 4 attempts")


def test_stop_after_attempt() -> None:
    """Exactly so many attempts; one means no retry."""
    assert ask(Retry(stop=stop_after_attempt(1))) == GiveUp("stopped after 1 attempt")
    assert isinstance(ask(Retry(stop=stop_after_attempt(9)), attempts=8), Again)


def test_stop_after_delay_is_measured_on_our_clock() -> None:
    """From the call's begin to the attempt's end, whatever the machine's clock says."""
    settings = Retry(stop=stop_after_delay(2))
    assert isinstance(ask(settings, elapsed=1.999, attempts=99), Again)
    assert isinstance(ask(settings, elapsed=2.0), GiveUp)
    assert isinstance(ask(Retry(stop=stop_after_delay(timedelta(minutes=1))), elapsed=59), Again)


def test_stop_before_delay_sees_the_coming_wait() -> None:
    """It stops when the wait would end past its limit; also when the wait is the server's push-back."""
    settings = steady(stop=stop_before_delay(1.0), wait=wait_fixed(0.5))
    assert isinstance(ask(settings, elapsed=0.49), Again)
    assert isinstance(ask(settings, elapsed=0.5), GiveUp)
    assert isinstance(ask(settings, classify(StatusCode.UNAVAILABLE, pushback="1001")), GiveUp)
    assert isinstance(ask(settings, classify(StatusCode.UNAVAILABLE, pushback="999")), Again)


def test_stops_combine() -> None:
    """``|`` and ``stop_any`` stop at the first, ``&`` and ``stop_all`` at the last."""
    first, second = stop_after_attempt(3), stop_after_delay(1)
    for either in (first | second, stop_any(first, second)):
        assert isinstance(ask(Retry(stop=either), attempts=2, elapsed=0.9), Again)
        assert isinstance(ask(Retry(stop=either), attempts=3, elapsed=0.0), GiveUp)
        assert isinstance(ask(Retry(stop=either), attempts=1, elapsed=1.0), GiveUp)
    for both in (first & second, stop_all(first, second)):
        assert isinstance(ask(Retry(stop=both), attempts=3, elapsed=0.9), Again)
        assert isinstance(ask(Retry(stop=both), attempts=3, elapsed=1.0), GiveUp)


def test_a_function_may_be_a_strategy() -> None:
    """Plain functions of the state are strategies, as in tenacity; they see our instants and the failure."""
    seen: list[RetryCallState] = []

    def stop(state: RetryCallState) -> bool:
        seen.append(state)
        return False

    ask(steady(stop=stop, wait=wait_fixed(0.5)), attempts=2, elapsed=3.0, slept=0.7)
    state = seen[0]
    assert (state.start_time, state.outcome_timestamp, state.seconds_since_start) == (START, START + 3.0, 3.0)
    assert (state.attempt_number, state.idle_for, state.upcoming_sleep) == (2, 0.7, 0.5)
    assert state.outcome is not None
    assert state.outcome.failed
    error = state.outcome.exception()
    assert isinstance(error, AttemptError)
    assert (error.code(), error.details(), error.outcome) == (StatusCode.UNAVAILABLE, "Socket closed", UNAVAILABLE)
    assert str(error) == "UNAVAILABLE: Socket closed"


# ---- wait ----


def test_the_default_wait_doubles_from_25_ms_to_1_s() -> None:
    """25, 50, 100 ms ... and never above 1 s."""
    settings = steady(stop=stop_never)
    waits = [ask(settings, attempts=n) for n in range(1, 9)]
    assert waits == [Again(s) for s in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]
    assert ask(settings, attempts=5000) == Again(1.0)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (wait_none(), [0, 0, 0]),
        (wait_fixed(0.3), [0.3, 0.3, 0.3]),
        (wait_incrementing(0.1, 0.2), [0.1, 0.3, 0.5]),
        (wait_chain(wait_fixed(0.1), wait_fixed(0.5)), [0.1, 0.5, 0.5]),
        (wait_combine(wait_fixed(0.1), wait_fixed(0.2)), [0.3, 0.3, 0.3]),
        (wait_fixed(1) + wait_exponential(multiplier=0.1), [1.1, 1.2, 1.4]),
        (lambda state: state.attempt_number / 8, [0.125, 0.25, 0.375]),
    ],
)
def test_waits_are_as_tenacity_computes_them(wait: Any, expected: list[float]) -> None:
    """Each strategy, combined ones and plain functions too, without jitter."""
    settings = steady(wait=wait, stop=stop_never)
    for attempts, seconds in enumerate(expected, 1):
        choice = ask(settings, attempts=attempts)
        assert isinstance(choice, Again)
        assert choice.delay_s == pytest.approx(seconds)


def test_a_random_wait_of_tenacity_is_accepted() -> None:
    """Within its own bounds; it draws from the global generator."""
    random.seed(7)
    for _ in range(50):
        choice = ask(steady(wait=wait_random(0.1, 0.2)))
        assert isinstance(choice, Again)
        assert 0.1 <= choice.delay_s <= 0.2


def test_a_negative_wait_means_at_once() -> None:
    """No driver is ever told to wait a negative time."""
    assert ask(steady(wait=lambda _: -5)) == Again(0.0)


def test_the_servers_push_back_replaces_the_wait() -> None:
    """Exactly that delay, without jitter (gRFC A6)."""
    settings = Retry(wait=wait_fixed(9), jitter=1.0)
    assert ask(settings, classify(StatusCode.UNAVAILABLE, pushback="120")) == Again(0.12)
    assert ask(settings, classify(StatusCode.UNAVAILABLE, pushback="0")) == Again(0.0)


def test_the_wait_goes_by_its_own_step() -> None:
    """``wait`` sees how many attempts there were since the last push-back, ``stop`` and ``retry`` all of them."""
    seen: list[tuple[str, int]] = []

    def strategy(name: str, answer: Any) -> Any:
        def asked(state: RetryCallState) -> Any:
            seen.append((name, state.attempt_number))
            return answer

        return asked

    settings = steady(stop=strategy("stop", False), wait=strategy("wait", 0.5), retry=strategy("retry", True))
    assert ask(settings, INTERNAL, attempts=3, step=1) == Again(0.5)
    assert seen == [("retry", 3), ("wait", 1), ("stop", 3)]


@pytest.mark.parametrize("code", [StatusCode.CANCELLED, StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED])
def test_no_is_no_whatever_the_code(code: StatusCode) -> None:
    """Push-back below 0 forbids a retry of an idempotent method, too, also with codes that are no refusals."""
    assert ask(Retry(), classify(code, pushback="-1")) == GiveUp("the server said not to retry", counts=True)


def test_push_back_does_not_add_attempts() -> None:
    """Who has used all attempts stops, whatever the server allows (gRFC A6)."""
    assert ask(Retry(), REFUSED, attempts=4) == GiveUp("stopped after 4 attempts")


# ---- jitter ----


@given(jitter=st.floats(0, 1), wait=st.floats(0, 100), attempts=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_jitter_stays_in_its_bounds(jitter: float, wait: float, attempts: int, seed: int) -> None:
    """The wait times 1 - jitter to 1 + jitter, never below 0."""
    settings = Retry(jitter=jitter, wait=wait_fixed(wait), stop=stop_never)
    choice = ask(settings, attempts=attempts, rng=Random(seed))
    assert isinstance(choice, Again)
    assert wait * (1 - jitter) - 1e-9 <= choice.delay_s <= wait * (1 + jitter) + 1e-9
    assert choice.delay_s >= 0


def test_jitter_spreads_evenly_around_the_wait() -> None:
    """+-20 % by default, the mean is the wait itself."""
    rng, settings = Random(3), Retry(wait=wait_fixed(1.0))
    waits = [choice.delay_s for _ in range(4000) if isinstance(choice := ask(settings, rng=rng), Again)]
    assert len(waits) == 4000
    assert sum(waits) / 4000 == pytest.approx(1.0, abs=0.01)
    assert 0.8 <= min(waits) < 0.81
    assert 1.19 < max(waits) <= 1.2


def test_a_seeded_run_repeats() -> None:
    """The same seed gives the same waits; another seed others; the global generator plays no part."""

    def run(seed: int) -> list[Again | GiveUp]:
        rng = Random(seed)
        return [ask(Retry(stop=stop_never), attempts=n, elapsed=n, rng=rng) for n in range(1, 20)]

    random.seed(1)
    before = random.getstate()
    once = run(5)
    assert random.getstate() == before
    random.seed(2)
    assert run(5) == once
    assert run(6) != once


# ---- retry widens ----


def is_internal(error: BaseException) -> bool:
    """As users write it: by grpc's own error type."""
    return isinstance(error, grpc.RpcError) and error.code() is StatusCode.INTERNAL


def test_a_retry_strategy_widens_the_table() -> None:
    """What it says yes to is retried although the table would not, without being declared idempotent."""
    settings = Retry(retry=retry_if_exception(is_internal))
    assert isinstance(ask(settings, INTERNAL, idempotent=False), Again)
    assert ask(settings, classify(StatusCode.UNKNOWN)) == GiveUp("UNKNOWN is not retried")


def test_it_does_not_narrow_the_table() -> None:
    """What the table retries is retried though the strategy says no, and it is not even asked."""

    def never(state: RetryCallState) -> bool:
        raise AssertionError("not asked")

    assert isinstance(ask(Retry(retry=never)), Again)


def test_it_may_vouch_for_idempotence() -> None:
    """UNAVAILABLE of a method that is not declared idempotent is retried when it says so."""
    settings = Retry(retry=retry_if_exception_type(grpc.RpcError))
    assert isinstance(ask(settings, UNAVAILABLE, idempotent=False), Again)


def test_retry_strategies_combine() -> None:
    """``|``, ``retry_all``, by message and by result: as tenacity means them."""
    by_message = retry_if_exception_message(match="UNKNOWN: try later")
    settings = Retry(retry=retry_if_exception(is_internal) | by_message)
    assert isinstance(ask(settings, INTERNAL), Again)
    assert isinstance(ask(settings, classify(StatusCode.UNKNOWN, details="try later")), Again)
    assert isinstance(ask(settings, classify(StatusCode.UNKNOWN, details="no")), GiveUp)
    both = Retry(retry=retry_all(retry_if_exception(is_internal), by_message))
    assert isinstance(ask(both, INTERNAL), GiveUp)
    assert isinstance(ask(Retry(retry=retry_if_result(lambda _: True)), INTERNAL), GiveUp)


def test_the_servers_no_is_stronger() -> None:
    """Push-back below 0 forbids what a strategy would allow."""
    settings = Retry(retry=retry_if_exception(lambda _: True))
    assert ask(settings, classify(StatusCode.INTERNAL, pushback="-1")) == GiveUp("the server said not to retry")


def test_stop_holds_for_what_was_widened() -> None:
    """The number of attempts is the same for all."""
    settings = Retry(retry=retry_if_exception(is_internal), stop=stop_after_attempt(2))
    assert ask(settings, INTERNAL, attempts=2) == GiveUp("stopped after 2 attempts")


@pytest.mark.parametrize("code", [StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED])
def test_the_callers_own_end_is_never_widened(code: StatusCode) -> None:
    """Who cancelled, or whose deadline passed, wants no other attempt, whatever the strategy says of the code."""
    settings = Retry(retry=retry_if_exception(lambda _: True), wait=wait_none())
    assert isinstance(ask(settings, classify(code, origin=Origin.CALLER)), GiveUp)


def broken(state: RetryCallState) -> float:
    """A strategy with a bug."""
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stop": broken}, "Retry.stop raised ZeroDivisionError: oops"),
        ({"wait": broken}, "Retry.wait raised ZeroDivisionError: oops"),
        ({"retry": broken}, "Retry.retry raised ZeroDivisionError: oops"),
        ({"wait": lambda _: None}, "Retry.wait returned None; expected seconds"),
        ({"wait": lambda _: float("nan")}, "Retry.wait returned nan; expected seconds"),
        ({"wait": lambda _: float("inf")}, "Retry.wait returned inf; expected seconds"),
    ],
)
def test_a_strategy_with_a_bug_ends_the_call(changes: dict[str, Any], why: str) -> None:
    """The failed attempt's status stands, and the reason why there is no other names the strategy."""
    assert ask(Retry(**changes), INTERNAL if "retry" in changes else UNAVAILABLE) == GiveUp(why)


# ---- settings ----


def test_settings_are_values() -> None:
    """Frozen and usable by many channels; the defaults are as documented."""
    settings = Retry()
    assert (settings.jitter, settings.attempt_timeout_s, settings.enabled) == (0.2, None, True)
    assert (settings.budget.ratio, settings.budget.min_per_s) == (0.2, 10.0)
    with pytest.raises(AttributeError):
        settings.jitter = 0.5  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("jitter", -0.1, "Retry.jitter is -0.1; expected a number from 0 to 1"),
        ("jitter", 1.1, "Retry.jitter is 1.1; expected a number from 0 to 1"),
        ("jitter", float("nan"), "Retry.jitter is nan; expected a number from 0 to 1"),
        ("attempt_timeout_s", 0, "Retry.attempt_timeout_s is 0; expected seconds > 0, or None"),
        ("attempt_timeout_s", -1, "Retry.attempt_timeout_s is -1; expected seconds > 0, or None"),
        ("attempt_timeout_s", float("nan"), "Retry.attempt_timeout_s is nan; expected seconds > 0, or None"),
        *(
            (
                "idempotent",
                [name],
                f"Retry.idempotent has {name!r}; expected /package.Service/Method, or /package.Service/* for all of a "
                "service",
            )
            for name in ("Get", "/shop.Shop", "/shop.Shop/", "/shop.Shop/Get*", "/*/Get", "/*/*", "/shop.*/Get")
        ),
    ],
)
def test_a_bad_value_is_named(field: str, value: object, message: str) -> None:
    """The error has field, value and what is accepted."""
    with pytest.raises(ValueError, match="Retry") as error:
        Retry(**{field: value})  # type: ignore[arg-type]  # the point of the test
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stop", 3, "Retry.stop is 3; expected one of tenacity's, such as tenacity.stop_after_attempt(3)"),
        ("stop", None, "Retry.stop is None; expected one of tenacity's, such as tenacity.stop_after_attempt(3)"),
        (
            "wait",
            0.5,
            "Retry.wait is 0.5; expected one of tenacity's, such as tenacity.wait_exponential(multiplier=0.05, max=1)",
        ),
        (
            "retry",
            "always",
            "Retry.retry is 'always'; expected one of tenacity's, such as tenacity.retry_if_exception(predicate)",
        ),
        ("idempotent", "/a.B/C", "Retry.idempotent is '/a.B/C'; expected a list, such as ['/package.Service/Method']"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: object, message: str) -> None:
    """The same for what is no strategy, and for one name where several are expected."""
    with pytest.raises(TypeError, match="Retry") as error:
        Retry(**{field: value})  # type: ignore[arg-type]  # the point of the test
    assert str(error.value) == message


@pytest.mark.parametrize(("field", "value"), [("stop", stop_after_attempt), ("wait", wait_fixed), ("wait", wait_none)])
def test_a_class_in_place_of_a_strategy_is_named(field: str, value: object) -> None:
    """``stop=stop_after_attempt`` for ``stop_after_attempt(3)`` is a slip that must not wait for the first failure."""
    with pytest.raises(TypeError, match=f"Retry.{field} is "):
        Retry(**{field: value})  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("jitter", "0.2"),
        ("attempt_timeout_s", "1s"),
        ("idempotent", None),
        ("idempotent", [7]),
        ("budget", 0.2),
        ("attempt_timeout_s", True),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: object) -> None:
    """The user's mistake is told with field, value and what is accepted."""
    with pytest.raises(TypeError, match=rf"Retry\.{field} (is|has) .*; expected"):
        Retry(**{field: value})  # type: ignore[arg-type]  # the point of the test
