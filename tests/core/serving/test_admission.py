"""All rules of one server as one object: what is refused, and what a refusal says."""

from __future__ import annotations

from random import Random

import pytest
from grpc import StatusCode

from lb.core.serving.admission import Admission, Refusal
from lb.core.serving.priority import Priority
from lb.core.serving.settings import MOST_METHODS, Concurrency, Limits, Rate

GET = "/shop.Shop/Get"


def admission(limits: Limits | None = None) -> Admission:
    """With a seed."""
    return Admission(limits or Limits(), Random(5))


def test_without_limits_nothing_is_kept() -> None:
    """No places, no rates, and no client's name is asked for."""
    rules = admission(Limits(concurrency=None))
    assert rules.intake is None
    assert rules.client_key is None
    assert rules.left("orders", 0.0) is None
    assert all(rules.over_rate(GET, "orders", 0.0) is None for _ in range(1000))


def test_the_settings_reach_the_places() -> None:
    """The limit, the queue, and how long."""
    rules = admission(Limits(concurrency=Concurrency(limit=4, adaptive=False, queue=2, queue_s=3.0)))
    intake = rules.intake
    assert intake is not None
    assert [intake.take() for _ in range(5)] == [True] * 4 + [False]
    waiting = intake.wait(Priority.DEFAULT, 1.0)
    assert waiting is not None
    assert waiting.until == 4.0
    assert intake.wait(Priority.SHEDDABLE, 1.0) is not None
    assert intake.wait(Priority.SHEDDABLE, 1.0) is not None
    assert intake.waiting == 2


def test_too_many_a_second() -> None:
    """RESOURCE_EXHAUSTED, with the time after which it may be tried here, and no push-back: it is not retried."""
    rules = admission(Limits(rate=Rate(2.0, 1.0)))
    assert rules.over_rate(GET, "", 0.0) is None
    refusal = rules.over_rate(GET, "", 0.1)
    assert refusal is not None
    assert (refusal.code, refusal.pushback_ms) == (StatusCode.RESOURCE_EXHAUSTED, None)
    assert refusal.retry_s == pytest.approx(0.4)
    assert refusal.details == "too many calls a second, the server takes 2; try again in 0.4 s"


SERVICE = GET.rpartition("/")[0] + "/*"


@pytest.mark.parametrize(
    ("limits", "bound"),
    [
        (Limits(rate=Rate(0.5, 1.0)), "the server takes 0.5"),
        (Limits(rate=Rate(1.0, 1.0), method_rates={GET: Rate(0.5, 1.0)}), f"{GET} takes 0.5"),
        (Limits(method_rates={SERVICE: Rate(0.5, 1.0)}), f"{SERVICE} takes 0.5"),
        (Limits(rate=Rate(1.0, 1.0), client_rate=Rate(0.5, 1.0)), "each client has 0.5"),
        (Limits(rate=Rate(0.5, 1.0), client_rate=Rate(1.0, 1.0)), "the server takes 0.5"),
        (Limits(method_rates={GET: Rate(0.5, 1.0)}, client_rate=Rate(1.0, 1.0)), f"{GET} takes 0.5"),
    ],
)
def test_a_refusal_says_which_rate_it_is_for(limits: Limits, bound: str) -> None:
    """That for which the call has to wait longest, with its figure."""
    rules = admission(limits)
    assert rules.over_rate(GET, "orders", 0.0) is None
    refusal = rules.over_rate(GET, "orders", 0.0)
    assert refusal is not None
    assert refusal.details == f"too many calls a second, {bound}; try again in 2 s"


def test_a_clients_name_is_asked_for_where_it_has_a_rate() -> None:
    """By the key that is set."""
    rules = admission(Limits(client_rate=Rate(1.0, 2.0), client_key="x-client"))
    assert rules.client_key == "x-client"
    assert [rules.over_rate(GET, "orders", 0.0) is None for _ in range(3)] == [True, True, False]
    assert rules.left("orders", 0.0) == pytest.approx(0.0)
    assert rules.left("catalog", 0.0) == 2.0


def test_a_full_server_sends_the_client_to_another_one() -> None:
    """UNAVAILABLE with a push-back of 0 ms while it serves most, and of about a second at ten times the load."""
    rules = admission()
    rules.demand.asked(0.0)
    assert rules.full(0.0) == Refusal(
        StatusCode.UNAVAILABLE, "the server is at its concurrency limit", pushback_ms=0, retry_s=None
    )
    for number in range(1000):
        rules.demand.asked(5.0)
        if number % 10:
            rules.demand.refused(5.0)
    pushback_ms = rules.full(5.0).pushback_ms
    assert pushback_ms is not None
    assert 400 <= pushback_ms <= 1400


def test_each_refusal_counts_as_one() -> None:
    """Who refuses all of many calls sends its clients away, without any other bookkeeping."""
    rules = admission()
    for _ in range(100):
        rules.demand.asked(0.0)
        refusal = rules.full(0.0)
    assert rules.demand.share(0.0) == 1.0
    assert refusal.pushback_ms is not None
    assert refusal.pushback_ms >= 2500


def test_a_call_that_cannot_be_answered_in_time() -> None:
    """DEADLINE_EXCEEDED, with both times; nothing is said of a retry."""
    rules = admission()
    times = rules.times(GET)
    for _ in range(200):
        times.typical.observe(0.2)
    assert rules.hopeless(times, 0.3) is None
    refusal = rules.hopeless(times, 0.05)
    assert refusal is not None
    assert (refusal.code, refusal.pushback_ms, refusal.retry_s) == (StatusCode.DEADLINE_EXCEEDED, None, None)
    assert refusal.details.startswith("0.05 s are left, and the method takes about 0.1")
    assert refusal.details.endswith("nothing was done")
    assert admission(Limits(hopeless=False)).hopeless(times, 0.05) is None
    assert rules.hopeless(rules.times("/shop.Shop/Put"), 0.0) is None


def test_what_is_known_of_a_method_stays_with_it() -> None:
    """The same object each time, for as many methods as are told apart."""
    rules = admission()
    known = {name: rules.times(name) for name in (f"/shop.Shop/M{number}" for number in range(MOST_METHODS))}
    beyond = rules.times("/shop.Shop/One")
    assert all(rules.times(name) is times for name, times in known.items())
    assert all(beyond is not times for times in known.values())


def test_the_methods_beyond_count_as_one_kind_and_are_never_hopeless() -> None:
    """A proxy may meet any number of names: memory is bounded, and a fast method is not judged by a slow one."""
    rules = admission()
    for number in range(MOST_METHODS):
        rules.times(f"/shop.Shop/M{number}")
    for _ in range(500):
        rules.times("/shop.Shop/Slow").typical.observe(1.0)
    assert rules.hopeless(rules.times("/shop.Shop/Slow"), 0.0) is None
    assert rules.times("/shop.Shop/A").baseline is rules.times("/shop.Shop/B").baseline
    assert "Intake" in repr(rules)
