"""What a user sets of a server's bounds: what is accepted, and what an error says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lb.core.serving.rates import Rates
from lb.core.serving.settings import Concurrency, Limits, Rate

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limit": 0}, "Concurrency.limit is 0; expected a whole number >= 1"),
        ({"limit": 1.5}, "Concurrency.limit is 1.5; expected a whole number >= 1"),
        ({"limit": True}, "Concurrency.limit is True; expected a whole number >= 1"),
        ({"min_limit": 0}, "Concurrency.min_limit is 0; expected a whole number >= 1"),
        ({"max_limit": "9"}, "Concurrency.max_limit is '9'; expected a whole number >= 1"),
        ({"adaptive": 1}, "Concurrency.adaptive is 1; expected True or False"),
        ({"queue": -0.1}, "Concurrency.queue is -0.1; expected a whole number >= 0"),
        ({"queue": NAN}, "Concurrency.queue is nan; expected a whole number >= 0"),
        ({"queue": None}, "Concurrency.queue is None; expected a whole number >= 0"),
        ({"queue_s": 0}, "Concurrency.queue_s is 0; expected seconds > 0"),
        ({"queue_s": math.inf}, "Concurrency.queue_s is inf; expected seconds > 0"),
        ({"limit": 3, "min_limit": 4}, "Concurrency.limit is 3; expected min_limit (4) <= limit <= max_limit (1000)"),
        ({"limit": 2000}, "Concurrency.limit is 2000; expected min_limit (1) <= limit <= max_limit (1000)"),
    ],
)
def test_a_bad_concurrency_is_named(fields: dict[str, Any], said: str) -> None:
    """Field, value, and what is accepted."""
    with pytest.raises((ValueError, TypeError)) as caught:
        Concurrency(**fields)
    assert said in str(caught.value)


def test_a_fixed_limit_may_be_outside_the_bounds_of_the_adaptive_one() -> None:
    """They do not concern it."""
    state = Concurrency(limit=5000, adaptive=False).new_state()
    for number in range(100):
        state.observe(1.0, 5000, number * 1.0)
    assert state.limit == 5000


def test_the_limit_begins_and_is_bounded_as_set() -> None:
    """Each field reaches the limit."""
    state = Concurrency(limit=5, min_limit=3, max_limit=7).new_state()
    assert state.limit == 5
    for _ in range(50):
        state.overloaded()
    assert state.limit == 3
    for number in range(2000):
        state.observe(0.01, state.limit, number * 0.02)
    assert state.limit == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0,), "Rate.per_s is 0; expected a number > 0"),
        ((-1,), "Rate.per_s is -1; expected a number > 0"),
        ((NAN,), "Rate.per_s is nan; expected a number > 0"),
        (("9",), "Rate.per_s is '9'; expected a number > 0"),
        ((2e15,), "Rate.per_s is 2000000000000000.0; expected a number > 0"),
        ((1, -1), "Rate.burst is -1; expected a number >= 0"),
        ((1, 0.5), "Rate.burst is 0.5; expected a number >= 1"),
        ((1, None), "Rate.burst is None; expected a number >= 0"),
    ],
)
def test_a_bad_rate_is_named(arguments: tuple[Any, ...], said: str) -> None:
    """Field, value, and what is accepted."""
    with pytest.raises((ValueError, TypeError)) as caught:
        Rate(*arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(("per_s", "burst"), [(1000.0, 2000.0), (0.1, 1.0), (0.5, 1.0), (1e15, 1e15), (1e-9, 1.0)])
def test_a_burst_is_twice_the_rate_if_nothing_is_said(per_s: float, burst: float) -> None:
    """And at least one call. Whatever rate is accepted, its bucket can be made, and has a first token."""
    rate = Rate(per_s)
    assert rate.burst == burst
    assert Rates(rate, {}, None).take("/shop.Shop/Get", "", 0.0) == 0.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"concurrency": 9}, "Limits.concurrency is 9; expected a Concurrency or None"),
        ({"rate": 9}, "Limits.rate is 9; expected a Rate or None"),
        ({"client_rate": "9"}, "Limits.client_rate is '9'; expected a Rate or None"),
        ({"method_rates": [1]}, "Limits.method_rates is [1]; expected a mapping of methods to rates"),
        ({"method_rates": None}, "Limits.method_rates is None; expected a mapping of methods to rates"),
        ({"method_rates": {"Get": Rate(1)}}, "Limits.method_rates has 'Get'; expected /package.Service/Method"),
        ({"method_rates": {"/a.B/C": 9}}, "Limits.method_rates['/a.B/C'] is 9; expected a Rate"),
        ({"client_key": ""}, "Limits.client_key is ''; expected a string that is not empty"),
        ({"client_key": 9}, "Limits.client_key is 9; expected a string"),
        ({"client_key": "X-Client"}, "Limits.client_key is 'X-Client'; expected a key of metadata"),
        ({"client_key": "client-bin"}, "Limits.client_key is 'client-bin'; expected a key of metadata"),
        ({"timeout_s": 0}, "Limits.timeout_s is 0; expected seconds > 0"),
        ({"timeout_s": "9"}, "Limits.timeout_s is '9'; expected seconds > 0"),
        ({"hopeless": None}, "Limits.hopeless is None; expected True or False"),
    ],
)
def test_bad_limits_are_named(fields: dict[str, Any], said: str) -> None:
    """Field, value, and what is accepted."""
    with pytest.raises((ValueError, TypeError)) as caught:
        Limits(**fields)
    assert said in str(caught.value)


def test_all_has_a_default() -> None:
    """Places by an adaptive limit, no rates, no time-out, hopeless calls refused."""
    limits = Limits()
    assert limits.concurrency == Concurrency(
        limit=16, adaptive=True, min_limit=1, max_limit=1000, queue=64, queue_s=0.1
    )
    assert (limits.rate, limits.client_rate, limits.timeout_s, limits.hopeless) == (None, None, None, True)
    assert limits == Limits(method_rates={})
