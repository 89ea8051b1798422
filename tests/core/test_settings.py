"""What a user may set of a channel, checked once; what holds for one method; and what core is told."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from tenacity import RetryCallState, stop_after_attempt

from lb.core.breaker import Breaker, State
from lb.core.budget import Budget
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.hedging import Hedging
from lb.core.outcome import Verdict
from lb.core.policies import RoundRobin, WeightedRoundRobin
from lb.core.retry import Retry
from lb.core.settings import SERVICE_CONFIG_OPTION, MethodSettings, settings
from lb.core.throttle import Throttle

GET = "/shop.Shop/Get"
PUT = "/shop.Shop/Put"
RETRY = {
    "maxAttempts": 2,
    "initialBackoff": "1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["INTERNAL"],
}
HEDGE = {"maxAttempts": 3, "hedgingDelay": "0.2s"}


def config(*, names: Any = ({"service": "shop.Shop", "method": "Get"},), **entry: Any) -> dict[str, Any]:
    """A document with one methodConfig."""
    return {"methodConfig": [{"name": list(names), **entry}]}


def test_nothing_given_means_the_defaults() -> None:
    """Each setting has its own default object; hedging, limit and health are off."""
    found = settings()
    assert isinstance(found.policy, WeightedRoundRobin)
    assert found.retry.enabled
    assert (found.breaker, found.ejection, found.connection) == (Breaker(), Ejection(), Connection())
    assert (found.hedging, found.limit, found.health, found.core_config()) == (None, None, None, None)
    assert found.budget == Budget()
    assert found.propagate


@pytest.mark.parametrize(
    "name", ["retry", "breaker", "hedging", "limit", "ejection", "connection", "health", "propagate", "service_config"]
)
@pytest.mark.parametrize("value", [7, object(), ["x"]])
def test_an_object_of_another_kind_is_named(name: str, value: Any) -> None:
    """TypeError with the setting's name (a document is called by its own)."""
    with pytest.raises(TypeError, match="service config" if name == "service_config" else f"{name} is "):
        settings(**{name: value})


def test_what_a_document_says_of_a_method_wins() -> None:
    """Over what was given for all methods; other methods keep that."""
    retry, hedging = Retry(), Hedging(delay_s=1)
    found = settings(retry=retry, hedging=hedging, service_config=config(retryPolicy=RETRY, timeout="2s"))
    get = found.method(GET, declared_idempotent=True)
    put = found.method(PUT, declared_idempotent=True)
    assert get.retry is not retry
    assert (get.timeout_s, get.wait_for_ready) == (2.0, None)
    assert put.retry is retry
    assert put.timeout_s is None
    assert get.hedging is put.hedging is hedging


def test_retries_may_be_turned_off_altogether() -> None:
    """By the client, whatever a document says (gRFC A6); also in grpcio's way, unless settings are given."""
    off, document = ("grpc.enable_retries", 0), config(retryPolicy=RETRY)

    def enabled(**given: Any) -> tuple[bool, bool]:
        found = settings(**given)
        return tuple(found.method(name, declared_idempotent=True).retry.enabled for name in (GET, PUT))  # type: ignore[return-value]

    assert enabled(service_config=document) == (True, True)
    assert enabled(service_config=document, retry=Retry(enabled=False)) == (False, False)
    assert enabled(service_config=document, options=(off,)) == (False, False)
    assert enabled(options=(off, ("grpc.enable_retries", 1))) == (False, False)
    assert enabled(options=(("grpc.enable_retries", 1), off)) == (True, True)
    assert enabled(options=(off,), retry=Retry()) == (True, True)


def test_an_attempts_time_holds_where_the_document_names_none() -> None:
    """A retryPolicy must not take away what guards against endpoints that hang."""
    retry = Retry(attempt_timeout_s=0.5)
    for policy, limit in ((RETRY, 0.5), ({**RETRY, "perAttemptRecvTimeout": "2s"}, 2.0)):
        found = settings(retry=retry, service_config=config(retryPolicy=policy))
        assert found.method(GET, declared_idempotent=False).retry.attempt_timeout_s == limit


def test_hedges_are_all_there_is() -> None:
    """A hedgingPolicy's attempts are not followed by retries (gRFC A6); our own settings may stop earlier."""
    for retry, most in ((Retry(), 3), (Retry(stop=stop_after_attempt(2)), 2)):
        found = settings(retry=retry, service_config=config(hedgingPolicy=HEDGE))
        stop = found.method(GET, declared_idempotent=False).retry.stop
        assert [n for n in range(1, 6) if not stop(_after(n))] == list(range(1, most))
        assert found.method(PUT, declared_idempotent=False).retry is retry


def _after(attempts: int) -> RetryCallState:
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # strategies do not look at these
    state.attempt_number = attempts
    return state


def test_only_idempotent_methods_are_hedged() -> None:
    """Declared by the proto, by name, or by a hedgingPolicy of their own."""
    found = settings(
        hedging=Hedging(delay_s=1), retry=Retry(idempotent=[PUT]), service_config=config(hedgingPolicy=HEDGE)
    )
    assert found.method("/shop.Shop/Other", declared_idempotent=False).hedging is None
    assert found.method("/shop.Shop/Other", declared_idempotent=True).hedging == Hedging(delay_s=1)
    assert found.method(PUT, declared_idempotent=False).hedging == Hedging(delay_s=1)
    by_document = found.method(GET, declared_idempotent=False).hedging
    assert by_document is not None
    assert (by_document.delay_s, by_document.max_attempts) == (0.2, 3)


def test_the_more_specific_entry_stands_alone() -> None:
    """As in gRPC: entries do not add up."""
    document = {
        "methodConfig": [
            {"name": [{}], "timeout": "1s"},
            {"name": [{"service": "shop.Shop"}], "timeout": "2s", "waitForReady": True},
            {"name": [{"service": "shop.Shop", "method": "Get"}], "timeout": "3s"},
        ]
    }
    found = settings(service_config=json.dumps(document))
    times = [found.method(name, declared_idempotent=False) for name in (GET, PUT, "/other.Other/Get")]
    assert [(m.timeout_s, m.wait_for_ready) for m in times] == [(3.0, None), (2.0, True), (1.0, None)]


def test_a_policy_given_wins_over_the_documents() -> None:
    """And so does health; without them the document's count."""
    document = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": "shop"}}
    assert isinstance(settings(service_config=document).policy, RoundRobin)
    assert settings(service_config=document).health == "shop"
    found = settings(policy="weighted_round_robin", health="", service_config=document)
    assert isinstance(found.policy, WeightedRoundRobin)
    assert found.health == ""


def test_throttling_takes_the_budgets_place() -> None:
    """Retries and hedges ask it instead."""
    document = {"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5}}
    assert settings(service_config=document, retry=Retry(budget=Budget(ratio=9))).budget == Throttle(
        max_tokens=10, token_ratio=0.5
    )
    assert settings(retry=Retry(budget=Budget(ratio=9))).budget == Budget(ratio=9)


def test_the_document_may_stand_among_the_options() -> None:
    """The first of several counts, as in core; one given by name wins; what is no text is left to core."""
    one, two = json.dumps(config(timeout="1s")), json.dumps(config(timeout="2s"))

    def timeout(**given: Any) -> float | None:
        return settings(**given).method(GET, declared_idempotent=False).timeout_s

    assert timeout(options=((SERVICE_CONFIG_OPTION, one), (SERVICE_CONFIG_OPTION, two))) == 1.0
    assert timeout(options=((SERVICE_CONFIG_OPTION, one),), service_config=two) == 2.0
    assert timeout(options=((SERVICE_CONFIG_OPTION, one.encode()),)) == 1.0
    assert timeout(options=((SERVICE_CONFIG_OPTION, 7),)) is None
    with pytest.raises(ValueError, match="service config"):
        timeout(options=((SERVICE_CONFIG_OPTION, b'{"loadBalancingPolicy": "\xff"}'),))
    with pytest.raises(ValueError, match="service config"):
        timeout(options=((SERVICE_CONFIG_OPTION, "{"),))


def test_core_is_told_of_sizes_alone() -> None:
    """Of all entries, since the most specific one stands alone; what we do ourselves is not in it."""
    document = {
        "methodConfig": [
            {"name": [{}], "maxRequestMessageBytes": 10, "retryPolicy": RETRY},
            {"name": [{"service": "shop.Shop", "method": "Get"}], "timeout": "1s"},
            {"name": [{"service": "shop.Shop"}], "maxResponseMessageBytes": 20, "waitForReady": True},
        ],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5},
        "loadBalancingConfig": [{"round_robin": {}}],
    }
    told = settings(service_config=document).core_config()
    assert told is not None
    entries = {json.dumps(entry.pop("name")): entry for entry in json.loads(told).pop("methodConfig")}
    assert entries == {
        "[{}]": {"maxRequestMessageBytes": 10},
        '[{"service": "shop.Shop", "method": "Get"}]': {},
        '[{"service": "shop.Shop"}]': {"maxResponseMessageBytes": 20},
    }
    assert list(json.loads(told)) == ["methodConfig"]
    assert settings(service_config=config(timeout="1s")).core_config() is None


def test_a_health_watch_is_ours_to_do() -> None:
    """Core is not told of it."""
    assert settings(health="shop").core_config() is None
    assert settings(limit=ConcurrencyLimit()).core_config() is None


@pytest.mark.parametrize("name", ["\ud800", "a\n", "\0"])
def test_a_health_service_has_a_name_that_can_be_sent(name: str) -> None:
    """Core would refuse the document that tells it of it, and every call with it."""
    with pytest.raises(ValueError, match="health is "):
        settings(health=name)


def test_false_is_off_and_none_the_default() -> None:
    """Everywhere alike."""
    off = settings(retry=False, breaker=False, hedging=False, limit=False)
    assert not off.retry.enabled
    assert off.limit is None
    breaker, rng = off.breaker.new_state(), Random(1)
    for step in range(200):
        breaker.release(breaker.generation, Verdict.FAILURE, float(step), rng)
    assert breaker.state is State.CLOSED
    assert off.method(GET, declared_idempotent=True).hedging is None
    default = settings(retry=None, breaker=None, hedging=None, limit=None)
    assert (default.retry.enabled, default.breaker, default.limit) == (True, Breaker(), None)


@pytest.mark.parametrize("name", ["retry", "breaker", "hedging", "limit"])
@pytest.mark.parametrize("value", [True, 0, "off"])
def test_only_false_is_off(name: str, value: Any) -> None:
    """What else is accepted is in the error's words."""
    with pytest.raises(TypeError, match=rf"{name} is .*; expected an lb\.\w+, False \(off\) or None"):
        settings(**{name: value})


def test_hedging_off_holds_against_the_document() -> None:
    """A client may turn hedges off altogether; what is left are the channel's retries."""
    retry = Retry()
    found = settings(hedging=False, retry=retry, service_config=config(hedgingPolicy=HEDGE))
    assert found.method(GET, declared_idempotent=False).hedging is None
    assert found.method(GET, declared_idempotent=False).retry is retry


def test_a_whole_service_may_be_declared_idempotent() -> None:
    """Its methods and no other's."""
    found = settings(retry=Retry(idempotent=["/shop.Shop/*"]))
    assert found.method(GET, declared_idempotent=False).idempotent
    assert found.method(PUT, declared_idempotent=False).idempotent
    assert not found.method("/shop.Shopping/Get", declared_idempotent=False).idempotent
    assert not found.method("/a.shop.Shop/Get", declared_idempotent=False).idempotent


def test_what_is_said_of_a_method_wins() -> None:
    """``methods`` over the document, that over the channel's own; the method's entry over its service's, alone."""
    ours, theirs, service = Retry(jitter=0.1), Retry(jitter=0.2), Retry(jitter=0.3)
    hedging = Hedging(delay_s=1)
    found = settings(
        retry=ours,
        hedging=Hedging(delay_s=2),
        timeout_s=9,
        methods={
            GET: MethodSettings(timeout_s=1, retry=theirs, hedging=hedging),
            "/shop.Shop/*": MethodSettings(retry=service, hedging=False, idempotent=True),
            "/shop.Other/*": MethodSettings(timeout_s=False, retry=False),
        },
        service_config=config(names=[{}], retryPolicy=RETRY, timeout="5s"),
    )
    get = found.method(GET, declared_idempotent=True)
    assert (get.retry, get.hedging, get.default_timeout_s, get.timeout_s) == (theirs, hedging, 1, 5.0)
    put = found.method(PUT, declared_idempotent=False)
    assert (put.retry, put.hedging, put.default_timeout_s, put.idempotent) == (service, None, 9, True)
    other = found.method("/shop.Other/Get", declared_idempotent=False)
    assert (other.retry.enabled, other.hedging, other.default_timeout_s, other.timeout_s) == (False, None, None, 5.0)
    third = found.method("/shop.Third/Get", declared_idempotent=True)
    assert third.retry not in (ours, theirs, service)
    assert (third.hedging, third.default_timeout_s) == (Hedging(delay_s=2), 9)


def test_one_method_may_be_retried_where_others_are_not() -> None:
    """``retry=False`` is the channel's, and the entry more specific."""
    found = settings(retry=False, methods={GET: MethodSettings(retry=Retry())})
    assert found.method(GET, declared_idempotent=False).retry.enabled
    assert not found.method(PUT, declared_idempotent=False).retry.enabled


def test_hedging_of_a_method_that_may_not_run_twice_is_told() -> None:
    """It is not used, and that would be hard to see; for a whole service it means those that may."""
    hedging = MethodSettings(hedging=Hedging())
    found = settings(methods={GET: hedging, "/shop.Shop/*": hedging})
    assert found.method(GET, declared_idempotent=False).doubt == (
        "methods['/shop.Shop/Get'] has hedging, which is not used: the method is not declared idempotent. "
        "Set idempotent=True if it may run twice"
    )
    assert found.method(GET, declared_idempotent=True).doubt == ""
    assert found.method(PUT, declared_idempotent=False).doubt == ""


def test_which_entries_a_method_goes_by() -> None:
    """All of them, so that the ones that are left over are those that nothing went by."""
    found = settings(
        retry=Retry(idempotent=[GET, "/shop.Shop/*"]), methods={"/shop.Shop/*": MethodSettings(), PUT: MethodSettings()}
    )
    assert found.entries == {GET, PUT, "/shop.Shop/*"}
    assert set(found.method(GET, declared_idempotent=False).entries) == {GET, "/shop.Shop/*"}
    assert set(found.method("/shop.Other/Get", declared_idempotent=False).entries) == set()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"methods": []}, "methods is []; expected lb.MethodSettings by method, or None"),
        ({"methods": {"Get": MethodSettings()}}, "methods has 'Get'; expected /package.Service/Method"),
        (
            {"methods": {GET: {"timeout": 1}}},
            "methods['/shop.Shop/Get'] is {'timeout': 1}; expected an lb.MethodSettings",
        ),
        ({"timeout_s": 0}, "timeout_s is 0; expected seconds > 0, or None"),
        ({"timeout_s": False}, "timeout_s is False; expected seconds > 0, or None"),
    ],
    ids=str,
)
def test_what_is_no_setting_of_methods(given: dict[str, Any], says: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError)) as raised:
        settings(**given)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"timeout_s": 0}, "MethodSettings.timeout_s is 0; expected seconds > 0, False (off) or None"),
        ({"timeout_s": "1s"}, "MethodSettings.timeout_s is '1s'"),
        ({"retry": True}, "MethodSettings.retry is True; expected an lb.Retry, False (off) or None"),
        ({"hedging": 1}, "MethodSettings.hedging is 1; expected an lb.Hedging, False (off) or None"),
        ({"idempotent": 1}, "MethodSettings.idempotent is 1; expected True or False"),
    ],
    ids=str,
)
def test_a_bad_value_of_method_settings_is_named(given: dict[str, Any], says: str) -> None:
    """When it is made."""
    with pytest.raises((TypeError, ValueError)) as raised:
        MethodSettings(**given)
    assert says in str(raised.value)
