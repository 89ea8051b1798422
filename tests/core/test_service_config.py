"""gRPC's service config: what it means here, what is refused and in which words, and what grpcio says of the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any, cast

import grpc
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from tenacity import Future, RetryCallState

from lb.core.hedging import Hedging
from lb.core.method_config import NOTHING, ConfigEntry, ServiceConfig
from lb.core.outcome import Origin, classify
from lb.core.policies import P2C, LeastRequest, Orca, PickFirst, RingHash, RoundRobin
from lb.core.policies import Random as RandomPolicy
from lb.core.retry import Again, AttemptError, GiveUp, Retry, decide
from lb.core.service_config import parse
from lb.core.throttle import Throttle
from tests.support.releases import RELEASE

RETRY: Mapping[str, Any] = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def method(**fields: Any) -> dict[str, Any]:
    """A document whose only entry holds for all methods."""
    return {"methodConfig": [{"name": [{}], **fields}]}


def retrying(**fields: Any) -> dict[str, Any]:
    """The same with `RETRY`, changed in these fields."""
    return method(retryPolicy={**RETRY, **fields})


def balancing(*entries: Any) -> dict[str, Any]:
    """A document with these policies."""
    return {"loadBalancingConfig": list(entries)}


def outliers(*children: Any, **fields: Any) -> dict[str, Any]:
    """GRPC's outlier detection over these."""
    return {"outlier_detection_experimental": {"childPolicy": [*children], **fields}}


def only(document: str | Mapping[str, Any]) -> ConfigEntry:
    """What such a document says of any method."""
    return parse(document).method("/any.Service/Method")


def retry_of(**fields: Any) -> Retry:
    """The retry settings from `RETRY` with these changes."""
    retry = only(retrying(**fields)).retry
    assert retry is not None
    return retry


def refusal(document: Any) -> str:
    """What is said of a document that is refused."""
    with pytest.raises(ValueError, match="service config") as caught:
        parse(document)
    return str(caught.value)


# ---- what it means ----


def test_an_empty_document_says_nothing() -> None:
    """Everything is left open, for every method."""
    documents: tuple[Any, ...] = ("{}", {}, '{"methodConfig": []}')
    for document in documents:
        config = parse(document)
        assert config == ServiceConfig()
        assert config.method("/a.B/C") is NOTHING
    assert ConfigEntry() == NOTHING
    assert not NOTHING.idempotent


def test_all_fields_of_a_method() -> None:
    """Each field arrives with its unit; text and mapping mean the same."""
    document = method(
        timeout="1.5s", waitForReady=True, maxRequestMessageBytes=10, maxResponseMessageBytes="20", retryPolicy=RETRY
    )
    document["healthCheckConfig"] = {"serviceName": "catalog"}
    document["retryThrottling"] = {"maxTokens": 10, "tokenRatio": 0.1}
    document["loadBalancingConfig"] = [{"round_robin": {}}]
    for form in (document, MappingProxyType(document), json.dumps({**document, "methodConfig": [_plain(document)]})):
        config = parse(form)
        found = config.method("/a.B/C")
        assert (found.timeout_s, found.wait_for_ready) == (1.5, True)
        assert (found.max_request_bytes, found.max_response_bytes) == (10, 20)
        assert found.retry is not None
        assert found.hedging is None
        assert (config.health, config.throttle, config.policy) == (
            "catalog",
            Throttle(max_tokens=10, token_ratio=0.1),
            RoundRobin(),
        )
        assert config.notes == ()


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = dict(document["methodConfig"][0])
    return {**entry, "retryPolicy": dict(entry["retryPolicy"])}


def test_the_most_specific_entry_stands_alone() -> None:
    """A method's own entry, else its service's, else the default; they do not add up."""
    config = parse(
        {
            "methodConfig": [
                {"name": [{}], "timeout": "1s", "waitForReady": True},
                {"name": [{"service": "a.B"}, {"service": "a.D", "method": None}], "timeout": "2s"},
                {"name": [{"service": "a.B", "method": "C"}], "timeout": "3s"},
                {"name": [], "timeout": "4s"},
            ]
        }
    )
    names = ["/a.B/C", "/a.B/X", "/a.D/C", "/a/C", "/a.B.C/C"]
    assert [config.method(name).timeout_s for name in names] == [3, 2, 2, 1, 1]
    assert config.method("/a.B/C").wait_for_ready is None
    assert config.method("nonsense").timeout_s == 1
    without_default = parse({"methodConfig": [{"name": [{"service": "a"}], "timeout": "1s"}]})
    assert without_default.method("/b/C") is NOTHING


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("0.1s", 0.1),
        ("0.000000001s", 1e-9),
        ("1.000340012s", 1.000340012),
        ("01s", 1),
        ("315576000000s", 1e9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """proto3 JSON: seconds with up to nine decimals. Longer than grpcio's clocks reach is for ever."""
    assert only(method(timeout=text)).timeout_s == seconds


def test_a_timeout_of_zero_is_none() -> None:
    """As in grpcio's core."""
    assert only(method(timeout="0s")).timeout_s is None


def test_attempts_are_counted_up_to_five() -> None:
    """``maxAttempts`` counts the first one; above 5 it is 5, and that is noted."""
    for attempts, stops_at in ((2, 2), ("3", 3), (5, 5), (99, 5)):
        retry = retry_of(maxAttempts=attempts)
        assert [n for n in range(1, 9) if type(_decided(retry, n, "UNAVAILABLE")) is Again] == list(range(1, stops_at))
    assert parse(retrying(maxAttempts=99)).notes == (
        "methodConfig[0].retryPolicy.maxAttempts is 99; lb uses the maximum, 5",
    )
    assert parse(method(hedgingPolicy={"maxAttempts": 7})).notes != ()


def _decided(
    retry: Retry, attempts: int, code: str, *, origin: Origin = Origin.PEER, rng: Random | None = None
) -> Again | GiveUp:
    """What follows the ``attempts``-th attempt of a method that is not idempotent."""
    outcome = classify(StatusCode[code], origin=origin)
    return decide(
        retry,
        outcome,
        attempts=attempts,
        step=attempts,
        started_at=0.0,
        slept_s=0.0,
        idempotent=False,
        now=1.0,
        rng=rng or Random(1),
    )


def test_the_backoff_is_that_of_a6() -> None:
    """``min(initial * multiplier ** (n - 1), max)``, times 0.8 to 1.2."""
    retry = retry_of(maxAttempts=5, initialBackoff="0.1s", maxBackoff="0.35s", backoffMultiplier="2")
    for attempts, base in ((1, 0.1), (2, 0.2), (3, 0.35), (4, 0.35)):
        delays = []
        for seed in range(200):
            choice = _decided(retry, attempts, "UNAVAILABLE", rng=Random(seed))
            assert isinstance(choice, Again)
            delays.append(choice.delay_s)
        assert base * 0.8 <= min(delays) < base * 0.85
        assert base * 1.15 < max(delays) <= base * 1.2


def test_only_the_codes_that_are_listed_are_retried() -> None:
    """By name in any case, or by number; the others are not, though what no server has seen is."""
    retry = retry_of(retryableStatusCodes=["UNAVAILABLE", "aborted", 8, "OK"])
    again = [code.name for code in StatusCode if type(_decided(retry, 1, code.name)) is Again]
    assert again == ["RESOURCE_EXHAUSTED", "ABORTED", "UNAVAILABLE"]
    other = retry_of(retryableStatusCodes=["INTERNAL"])
    assert type(_decided(other, 1, "UNAVAILABLE")) is GiveUp
    assert type(_decided(other, 1, "UNAVAILABLE", origin=Origin.UNSENT)) is Again


def test_an_attempts_own_time_may_be_all_that_is_retried() -> None:
    """``perAttemptRecvTimeout`` makes an attempt end, and that is followed by another; a server's own is not."""
    retry = retry_of(retryableStatusCodes=[], perAttemptRecvTimeout="0.5s")
    assert retry.attempt_timeout_s == 0.5
    assert type(_decided(retry, 1, "DEADLINE_EXCEEDED", origin=Origin.ATTEMPT_TIMEOUT)) is Again
    assert type(_decided(retry, 1, "DEADLINE_EXCEEDED")) is GiveUp
    assert type(_decided(retry_of(), 1, "DEADLINE_EXCEEDED", origin=Origin.ATTEMPT_TIMEOUT)) is GiveUp


def test_the_strategy_is_only_for_our_own_errors() -> None:
    """Of what else tenacity might ask it, it knows nothing."""
    strategy: Any = retry_of().retry
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # strategies do not look at these
    assert strategy(state) is False
    state.outcome = Future(1)
    state.outcome.set_exception(OSError())
    assert strategy(state) is False
    state.outcome = Future(1)
    state.outcome.set_exception(AttemptError(classify(StatusCode.UNAVAILABLE)))
    assert strategy(state) is True


def test_hedging() -> None:
    """Delay, attempts and codes; no delay means all at once. It declares the method idempotent."""
    config = only(
        method(hedgingPolicy={"maxAttempts": 4, "hedgingDelay": "0.5s", "nonFatalStatusCodes": ["ABORTED", 0]})
    )
    assert config.hedging == Hedging(delay_s=0.5, max_attempts=4, non_fatal=frozenset({StatusCode.ABORTED}))
    assert config.idempotent
    assert config.retry is None
    assert only(method(hedgingPolicy={"maxAttempts": 9})).hedging == Hedging(
        delay_s=0.0, max_attempts=5, non_fatal=frozenset()
    )


@pytest.mark.parametrize(
    ("document", "name"),
    [({"healthCheckConfig": {}}, None), ({}, None), ({"healthCheckConfig": {"serviceName": ""}}, "")],
)
def test_health(document: Any, name: str | None) -> None:
    """An empty name asks for the server as a whole, none at all for nothing."""
    assert parse(document).health == name


def test_null_is_absent() -> None:
    """As proto3 JSON has it, for each field that may be absent."""
    nothing = {
        "methodConfig": None,
        "retryThrottling": None,
        "loadBalancingConfig": None,
        "loadBalancingPolicy": None,
        "healthCheckConfig": None,
    }
    assert parse(nothing) == ServiceConfig()
    fields = ("timeout", "waitForReady", "retryPolicy", "hedgingPolicy", "maxRequestMessageBytes")
    assert only(method(**dict.fromkeys(fields))) == NOTHING


def test_what_is_not_known_is_ignored_and_noted() -> None:
    """As in gRPC; here one can see what was."""
    config = parse({"foo": 1, "methodConfig": [{"name": [{"service": "a", "x": 1}], "retry": {}}], "bar": {"x": 1}})
    assert config.notes == tuple(
        f"{path} is unknown, and ignored"
        for path in ("foo", "bar", "methodConfig[0].retry", "methodConfig[0].name[0].x")
    )


def test_names_are_in_camel_case() -> None:
    """The proto's own names mean nothing, as in gRPC; what was meant can be seen in the notes."""
    config = parse({"method_config": [{"timeout": 5}], "methodConfig": [{"name": [{}], "wait_for_ready": 5}]})
    assert config.method("/a.B/C") == NOTHING
    assert config.notes == (
        "method_config is unknown, and ignored",
        "methodConfig[0].wait_for_ready is unknown, and ignored",
    )


def test_names_by_the_protos_words() -> None:
    """An empty text, null and nothing are the same; a slash is no part of a name, and that is noted."""
    same: list[dict[str, Any]] = [{}, {"service": ""}, {"method": ""}, {"service": None, "method": ""}]
    for name in same:
        assert set(parse({"methodConfig": [{"name": [name]}]}).methods) == {""}
    assert "without a service" in refusal({"methodConfig": [{"name": [{"service": "", "method": "m"}]}]})
    assert parse({"methodConfig": [{"name": [{"service": "/a.B", "method": "C"}]}]}).notes == (
        'methodConfig[0].name[0].service is "/a.B": no call matches a name with a slash',
    )


def test_half_a_character_is_no_text() -> None:
    """JSON can write it, and core, which is told of sizes and health, would refuse the whole document."""
    for document in ('{"healthCheckConfig": {"serviceName": "\\ud800"}}', {"loadBalancingPolicy": "\ud800"}):
        assert "expected a string of whole characters" in refusal(document)


# ---- policies ----


@pytest.mark.parametrize(
    ("document", "policy"),
    [
        (balancing({"round_robin": {}}), RoundRobin()),
        (balancing({"pick_first": {}}), PickFirst()),
        (balancing({"pick_first": {"shuffleAddressList": True}}), PickFirst(shuffle=True)),
        (balancing({"random": {}}), RandomPolicy()),
        (balancing({"weighted_round_robin": {}}), Orca()),
        (
            balancing(
                {
                    "weighted_round_robin": {
                        "blackoutPeriod": "0s",
                        "weightExpirationPeriod": "60s",
                        "weightUpdatePeriod": "0.01s",
                        "errorUtilizationPenalty": 0,
                        "oobReportingPeriod": "1s",
                        "enableOobLoadReport": False,
                    }
                }
            ),
            Orca(blackout_s=0, expiry_s=60, update_s=0.1, error_penalty=0),
        ),
        (balancing({"least_request_experimental": {}}), LeastRequest(choices=2)),
        (balancing({"least_request_experimental": {"choiceCount": 4}}), LeastRequest(choices=4)),
        (balancing({"ring_hash_experimental": {"requestHashHeader": "User-Id"}}), RingHash(key="user-id")),
        (balancing({"p2c": {}}), P2C()),
        (balancing({"ring_hash": {}}, {"least_request": {}}), LeastRequest()),
        (balancing(outliers({"grpclb": {}}, {"least_request_experimental": {}})), LeastRequest()),
        (balancing(outliers(outliers({"round_robin": {}}))), RoundRobin()),
        (balancing({"grpclb": {}}, {"random": {}}, {"round_robin": {}}, 1), RandomPolicy()),
        ({"loadBalancingPolicy": "ROUND_ROBIN"}, RoundRobin()),
        ({"loadBalancingPolicy": "random", "loadBalancingConfig": [{"round_robin": {}}]}, RoundRobin()),
        ({"loadBalancingPolicy": ""}, None),
        ({}, None),
    ],
)
def test_the_first_known_policy_wins(document: Any, policy: object) -> None:
    """Unknown ones are passed over, what stands behind is not looked at; the deprecated field counts last."""
    assert parse(document).policy == policy


def test_what_was_passed_over_is_noted() -> None:
    """Names of policies that are not known, and fields of the one that is taken."""
    config = parse(balancing({"grpclb": {"childPolicy": []}}, {"round_robin": {"x": 1}}))
    assert config.notes == (
        'loadBalancingConfig[0] is "grpclb", which is unknown, and ignored',
        "loadBalancingConfig[1].round_robin.x is unknown, and ignored",
    )


def test_what_of_a_policy_is_not_as_asked_is_noted() -> None:
    """Too many choices, and reports out of band."""
    assert parse(balancing({"least_request_experimental": {"choiceCount": 64}})).policy == LeastRequest(choices=10)
    documents = (
        balancing({"least_request_experimental": {"choiceCount": 64}}),
        balancing({"weighted_round_robin": {"enableOobLoadReport": True}}),
        balancing(outliers({"round_robin": {}}, interval="1s", successRateEjection={})),
    )
    assert [parse(document).notes for document in documents] == [
        ("loadBalancingConfig[0].least_request_experimental.choiceCount is 64; lb uses the maximum, 10",),
        (
            "loadBalancingConfig[0].weighted_round_robin.enableOobLoadReport is ignored: "
            "reports are taken from the calls",
        ),
        (
            "loadBalancingConfig[0].outlier_detection_experimental.successRateEjection is ignored: "
            "see lb.Breaker and lb.Ejection",
        ),
    ]


# ---- what is refused ----

WHOLE_2 = "expected a whole number >= 2"
REFUSED: list[tuple[Any, str]] = [
    (retrying(maxAttempts=1), f"methodConfig[0].retryPolicy.maxAttempts is 1; {WHOLE_2}"),
    (retrying(maxAttempts=2.0), f"methodConfig[0].retryPolicy.maxAttempts is 2.0; {WHOLE_2}"),
    (retrying(maxAttempts=True), f"methodConfig[0].retryPolicy.maxAttempts is true; {WHOLE_2}"),
    (retrying(maxAttempts="x"), f'methodConfig[0].retryPolicy.maxAttempts is "x"; {WHOLE_2}'),
    (retrying(maxAttempts=None), f"methodConfig[0].retryPolicy.maxAttempts is missing; {WHOLE_2}"),
    (retrying(maxAttempts=10**40), f"methodConfig[0].retryPolicy.maxAttempts is a very large number; {WHOLE_2}"),
    (
        retrying(initialBackoff="0s"),
        'methodConfig[0].retryPolicy.initialBackoff is "0s"; expected seconds as text like "0.1s", above 0',
    ),
    (
        retrying(maxBackoff=1),
        'methodConfig[0].retryPolicy.maxBackoff is 1; expected seconds as text like "0.1s", above 0',
    ),
    (
        retrying(perAttemptRecvTimeout="0s"),
        'methodConfig[0].retryPolicy.perAttemptRecvTimeout is "0s"; expected seconds as text like "0.1s", above 0',
    ),
    (retrying(backoffMultiplier=0), "methodConfig[0].retryPolicy.backoffMultiplier is 0; expected a number > 0"),
    (
        retrying(backoffMultiplier=float("nan")),
        "methodConfig[0].retryPolicy.backoffMultiplier is NaN; expected a number > 0",
    ),
    (
        retrying(retryableStatusCodes=[]),
        "methodConfig[0].retryPolicy.retryableStatusCodes is an empty list; "
        "expected a list of status codes that is not empty, or a perAttemptRecvTimeout",
    ),
    (
        retrying(retryableStatusCodes=["UNAVAILABLE", "NOPE"]),
        'methodConfig[0].retryPolicy.retryableStatusCodes[1] is "NOPE"; '
        'expected a status code like "UNAVAILABLE" or 14',
    ),
    (
        retrying(retryableStatusCodes="UNAVAILABLE"),
        'methodConfig[0].retryPolicy.retryableStatusCodes is "UNAVAILABLE"; expected a list',
    ),
    (method(retryPolicy=[1]), "methodConfig[0].retryPolicy is a list; expected an object"),
    (
        method(retryPolicy=RETRY, hedgingPolicy={"maxAttempts": 2}),
        "methodConfig[0] has retryPolicy and hedgingPolicy; expected one of them",
    ),
    (method(hedgingPolicy={}), f"methodConfig[0].hedgingPolicy.maxAttempts is missing; {WHOLE_2}"),
    (method(timeout="1"), 'methodConfig[0].timeout is "1"; expected seconds as text like "0.1s"'),
    (method(waitForReady="true"), 'methodConfig[0].waitForReady is "true"; expected true or false'),
    (
        method(maxRequestMessageBytes=-1),
        "methodConfig[0].maxRequestMessageBytes is -1; expected a whole number >= 0",
    ),
    (
        method(maxResponseMessageBytes=2**32),
        "methodConfig[0].maxResponseMessageBytes is 4294967296; expected a whole number >= 0",
    ),
    ({"methodConfig": {}}, "methodConfig is an object; expected a list"),
    ({"methodConfig": [{}, None]}, "methodConfig[1] is null; expected an object"),
    ({"methodConfig": [{"name": ["a"]}]}, 'methodConfig[0].name[0] is "a"; expected an object'),
    ({"methodConfig": [{"name": [{"service": 1}]}]}, "methodConfig[0].name[0].service is 1; expected a string"),
    (
        {"methodConfig": [{"name": [{"method": "m"}]}]},
        "methodConfig[0].name[0] has the method 'm' without a service; expected both, the service alone, or none",
    ),
    (
        {"methodConfig": [{"name": [{"service": "a"}]}, {"name": [{"service": "a", "method": ""}]}]},
        "methodConfig[1].name[0] is a second entry for /a/; expected one",
    ),
    (
        {"methodConfig": [{"name": [{}]}, {"name": [{"service": ""}]}]},
        "methodConfig[1].name[0] is a second entry for all methods; expected one",
    ),
    ({"retryThrottling": 1}, "retryThrottling is 1; expected an object"),
    (
        {"retryThrottling": {"maxTokens": 0, "tokenRatio": 0.0004}},
        "retryThrottling.maxTokens is 0; expected a whole number >= 1; "
        "retryThrottling.tokenRatio is 0.0004; expected a number >= 0.001",
    ),
    ({"healthCheckConfig": {"serviceName": 1}}, "healthCheckConfig.serviceName is 1; expected a string"),
    (balancing(1), "loadBalancingConfig[0] is 1; expected an object"),
    (balancing({}), "loadBalancingConfig[0] has 0 fields; expected one, the name of a policy"),
    (
        balancing({"round_robin": {}, "random": {}}),
        "loadBalancingConfig[0] has 2 fields; expected one, the name of a policy",
    ),
    (balancing({"round_robin": []}), "loadBalancingConfig[0].round_robin is an empty list; expected an object"),
    (balancing({"round_robin": None}), "loadBalancingConfig[0].round_robin is null; expected an object"),
    (
        balancing({"pick_first": {"shuffleAddressList": 1}}),
        "loadBalancingConfig[0].pick_first.shuffleAddressList is 1; expected true or false",
    ),
    (
        balancing({"least_request_experimental": {"choiceCount": 1}}),
        f"loadBalancingConfig[0].least_request_experimental.choiceCount is 1; {WHOLE_2}",
    ),
    (
        balancing({"weighted_round_robin": {"errorUtilizationPenalty": -1}}),
        "loadBalancingConfig[0].weighted_round_robin.errorUtilizationPenalty is -1; expected a number >= 0",
    ),
    (
        balancing({"ring_hash_experimental": {"minRingSize": 0, "requestHashHeader": "a-bin"}}),
        "loadBalancingConfig[0].ring_hash_experimental.minRingSize is 0; expected a whole number from 1 to 8388608; "
        'loadBalancingConfig[0].ring_hash_experimental.requestHashHeader is "a-bin"; '
        "expected the name of a metadata key that is no -bin",
    ),
    (
        balancing({"ring_hash_experimental": {}}),
        "loadBalancingConfig[0].ring_hash_experimental.requestHashHeader is missing; "
        "expected the name of a metadata key that is no -bin",
    ),
    ({"loadBalancingPolicy": 1}, "loadBalancingPolicy is 1; expected a string"),
    (
        balancing({"outlier_detection_experimental": {"interval": 1}}),
        "loadBalancingConfig[0].outlier_detection_experimental.interval is 1; "
        'expected seconds as text like "0.1s"; '
        "loadBalancingConfig[0].outlier_detection_experimental.childPolicy is missing; expected a list of policies",
    ),
]


@pytest.mark.parametrize(("document", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_refusal_names_path_value_and_what_is_accepted(document: Any, words: str) -> None:
    """Exactly these words."""
    assert refusal(document) == f"service config: {words}"


def test_no_known_policy() -> None:
    """The error lists what was there and what there could be."""
    for document, found in ((balancing(), "no entry"), (balancing({"grpclb": {}}, {"x": {}}), '"grpclb", "x"')):
        words = refusal(document)
        assert words.startswith(f"service config: loadBalancingConfig has {found}; expected at least one of ")
        where = "loadBalancingConfig[0].outlier_detection_experimental.childPolicy"
        assert f"{where} has {found}; expected" in refusal(balancing(outliers(*document["loadBalancingConfig"])))
        assert "pick_first, random, " in words
        assert "round_robin" in words
    assert refusal({"loadBalancingPolicy": "x"}).startswith(
        'service config: loadBalancingPolicy is "x"; expected one of '
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "service config is not valid JSON: "),
        ("{", "service config is not valid JSON: "),
        ("{}x", "service config is not valid JSON: "),
        ('{"a": NaN}', "service config is not valid JSON: NaN is not a JSON number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', 'service config is not valid JSON: "c" occurs twice in one object'),
        ('{"a": ' * 100_000, "service config: nested too deeply"),
        ('{"a": ' + "1" * 10_000 + "}", "service config is not valid JSON: "),
        ("null", "service config is null; expected an object"),
        ("[]", "service config is an empty list; expected an object"),
        ('"x"', 'service config is "x"; expected an object'),
    ],
)
def test_no_json(text: str, words: str) -> None:
    """What is no document at all is told so, without a traceback of the JSON reader."""
    assert refusal(text).startswith(words)


@pytest.mark.parametrize("document", [None, 1, [], b"{}"])
def test_neither_text_nor_mapping(document: Any) -> None:
    """A caller's mistake."""
    with pytest.raises(TypeError, match=r"service config is .*; expected JSON text or a mapping"):
        parse(document)


def test_policies_within_each_other_without_end() -> None:
    """A mapping can hold itself."""
    policy = outliers()
    policy["outlier_detection_experimental"]["childPolicy"].append(policy)
    assert refusal(balancing(policy)) == "service config: loadBalancingConfig is nested too deeply"


def test_all_errors_come_at_once_up_to_twenty() -> None:
    """Each with its path; of very many the rest is counted."""
    document = {"methodConfig": [{"timeout": 1}] * 25}
    words = refusal(document).split("; ")
    assert [word for word in words if word.endswith(" is 1")][1] == "methodConfig[1].timeout is 1"
    assert words[-1] == "and 5 more"


TEXT = st.text(st.characters(exclude_characters=";"), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "-1s", "OK"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FULL: dict[str, Any] = {
    "methodConfig": [
        {"name": [{"service": "a", "method": "b"}], "retryPolicy": {**RETRY, "perAttemptRecvTimeout": "1s"}},
        {
            "name": [{"service": "a"}, {}],
            "timeout": "1s",
            "waitForReady": False,
            "maxRequestMessageBytes": 1,
            "maxResponseMessageBytes": 1,
            "hedgingPolicy": {"maxAttempts": 2, "hedgingDelay": "1s", "nonFatalStatusCodes": ["ABORTED"]},
        },
    ],
    "retryThrottling": {"maxTokens": 1, "tokenRatio": 1},
    "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": False}}],
    "loadBalancingPolicy": "round_robin",
    "healthCheckConfig": {"serviceName": "a"},
}


def places(value: Any, path: str = "") -> list[str]:
    """The path of every value in a document."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inner = [(f"{path}.{name}" if path else name, element) for name, element in value.items()]
    elif isinstance(value, list):
        inner = [(f"{path}[{index}]", element) for index, element in enumerate(value)]
    return [where for place, element in inner for where in (place, *places(element, place))]


def replaced(value: Any, at: str, by: Any, path: str = "") -> Any:
    """The same document with another value at one path."""
    if path == at:
        return by
    if isinstance(value, dict):
        return {name: replaced(inner, at, by, f"{path}.{name}" if path else name) for name, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, at, by, f"{path}[{index}]") for index, inner in enumerate(value)]
    return value


@given(document=JSON)
def test_whatever_stands_in_the_text_is_taken_or_refused_in_words(document: Any) -> None:
    """Any JSON is read, or refused with ValueError: nothing else is ever raised."""
    for form in (json.dumps(document), document):
        if form is not document or isinstance(document, dict):
            with contextlib.suppress(ValueError):
                assert isinstance(parse(form), ServiceConfig)


@given(place=st.sampled_from(places(FULL)), value=JSON)
def test_one_wrong_value_is_found_where_it_is(place: str, value: Any) -> None:
    """Of a full document with one value replaced, every complaint is about that place, or about what it decides."""
    try:
        parse(replaced(FULL, place, value))
    except ValueError as error:
        words = str(error).removeprefix("service config: ")
        top = place.split("[")[0].split(".")[0]
        entry = place.split("]")[0]
        assert words.startswith((place, entry, top)), words
        for complaint in words.split("; ")[::2]:
            assert complaint.startswith(top), words


# ---- what grpcio says ----

_GOOD_DURATIONS: list[Any] = ["1s", "0.5s", "0.001s", None]
_BAD_DURATIONS: list[Any] = ["1", 1, "-1s", "1.0000000001s", ".1s", "1.s", "s", "1e1s", "315576000001s", True, [], {}]
_DURATIONS = _GOOD_DURATIONS + _BAD_DURATIONS
_PENALTIES: list[Any] = [0, 1, "2", -1, None, True, []]
_FLAGS: list[Any] = [True, None, 1]
_WHOLES: list[Any] = [0, 1, 2, 9, "2", "x", -1, 1.5, 2.0, True, None, 2**32, [], {}]
# By path: the values that are tried there. Left out is where grpcio and we differ, as the module says.
POOL: dict[str, list[Any]] = {
    "methodConfig": [{}, 1, "x", []],
    "methodConfig[0]": [None, 1, [], {}],
    "methodConfig[0].name": [None, 1, [], {}],
    "methodConfig[0].name[0]": [None, 1, [], {}, {"service": "a"}, {"method": "b"}],
    "methodConfig[0].name[0].service": ["", "x", None, 1, [], "a/b"],
    "methodConfig[0].name[0].method": ["", "x", None, 1, []],
    "methodConfig[0].retryPolicy": [1, [], {}, None],
    "methodConfig[0].retryPolicy.maxAttempts": [*_WHOLES, 99],
    "methodConfig[0].retryPolicy.initialBackoff": [*_DURATIONS, "0s"],
    "methodConfig[0].retryPolicy.maxBackoff": [*_DURATIONS, "0s"],
    "methodConfig[0].retryPolicy.perAttemptRecvTimeout": [*_DURATIONS, "0s"],
    "methodConfig[0].retryPolicy.backoffMultiplier": [0, 1, 0.5, "2", "x", -1, True, None, [], {}],
    "methodConfig[0].retryPolicy.retryableStatusCodes": [["OK"], ["ABORTED", "INTERNAL"], [[]], "OK", 1, {}, [True]],
    "methodConfig[1].timeout": [*_DURATIONS, "0s"],
    "methodConfig[1].waitForReady": [True, False, None, 1, "true", []],
    "methodConfig[1].maxRequestMessageBytes": _WHOLES,
    "methodConfig[1].maxResponseMessageBytes": _WHOLES,
    "methodConfig[1].name[0]": [{"service": "a", "method": "b"}, {"service": ""}, {"service": "a", "method": ""}],
    "retryThrottling": [1, [], {}, None],
    "retryThrottling.maxTokens": [0, 1, 1001, "5", "x", -1, 1.5, True, None, []],
    "retryThrottling.tokenRatio": [0, 0.1, 0.5466, 0.0004, "0.5", -1, "x", True, None, []],
    "loadBalancingConfig": [
        [{"round_robin": {}}],
        [{"x": {}}],
        [{"x": {}}, {"round_robin": {"y": 1}}],
        [{"x": 1}, {"round_robin": {}}],
        [{"round_robin": {}}, 1],
        [{"round_robin": {}, "x": {}}],
        [{"round_robin": None}],
        [{}],
        [1],
        [],
        {},
        1,
    ],
    "loadBalancingConfig[0].pick_first.shuffleAddressList": [True, False, None, 1, "true"],
    "loadBalancingConfig[0]": [
        *({"weighted_round_robin": {"blackoutPeriod": value}} for value in _DURATIONS),
        *({"weighted_round_robin": {"errorUtilizationPenalty": value}} for value in _PENALTIES),
        *({"weighted_round_robin": {"enableOobLoadReport": value}} for value in _FLAGS),
        *(
            {"ring_hash_experimental": {"requestHashHeader": "x-user", **sizes}}
            for sizes in (
                {},
                {"minRingSize": 1},
                {"minRingSize": 0},
                {"minRingSize": "2000", "maxRingSize": 3000},
                {"minRingSize": 2000, "maxRingSize": 1000},
                {"maxRingSize": 500},
                {"minRingSize": 5000},
                {"maxRingSize": 8388609},
            )
        ),
        *(
            outliers({"round_robin": {}}, **fields)
            for fields in cast(
                tuple[dict[str, Any], ...],
                (
                    {},
                    {"interval": "1s", "baseEjectionTime": "0s", "maxEjectionTime": None},
                    {"interval": 1},
                    {"maxEjectionPercent": 100},
                    {"maxEjectionPercent": 101},
                    {"childPolicy": None},
                    {"childPolicy": []},
                    {"childPolicy": [{"x": {}}]},
                    {"childPolicy": [{"x": {}}, {"pick_first": {}}]},
                    {"childPolicy": [{"round_robin": 1}]},
                ),
            )
        ),
    ],
    "loadBalancingPolicy": ["ROUND_ROBIN", "pick_first", "x", "", 1],
    "healthCheckConfig": [None, 1, {}, []],
    "healthCheckConfig.serviceName": ["", "x", None, 1, []],
}


async def grpcio_takes(document: Any) -> bool:
    """Whether grpcio makes a channel of it: one with a bad config fails at once, without connecting."""
    options = [("grpc.service_config", json.dumps(document)), ("grpc.experimental.enable_hedging", 1)]
    async with grpc.aio.insecure_channel("ipv4:127.0.0.1:1", options) as channel:
        return channel.get_state() is grpc.ChannelConnectivity.IDLE


async def test_grpcio_takes_what_we_take() -> None:
    """Each value of the pool at its place, and 300 mixtures of them: valid for grpcio if and only if for us."""
    rng = Random(1)
    cases = [[(place, value)] for place, values in POOL.items() for value in values]
    cases += [[(place, rng.choice(POOL[place])) for place in rng.sample(list(POOL), 2)] for _ in range(300)]
    valid = 0
    for case in cases:
        document: Any = FULL
        for place, value in case:
            document = replaced(document, place, value)
        try:
            parse(document)
            ours = ""
        except ValueError as error:
            ours = str(error)
        assert await grpcio_takes(document) == (not ours), (case, ours)
        valid += not ours
    assert valid > 100
    assert len(cases) - valid > 100


@pytest.mark.parametrize(
    "document",
    [
        retrying(initialBackoff="0.0001s"),
        retrying(retryableStatusCodes=[14]),
        retrying(retryableStatusCodes=["unavailable"]),
        {"methodConfig": None},
        {"loadBalancingConfig": None},
        balancing({"random": {}}),
        {"methodConfig": [{"name": [{"method": ""}]}]},
        {"connectionScaling": {"maxConnectionsPerSubchannel": "x"}},
    ],
)
async def test_grpcio_refuses_what_we_take_knowingly(document: Any) -> None:
    """The differences that the module names: should grpcio take these one day, its words must change."""
    parse(document)
    never_read = "connectionScaling" in document and RELEASE < (1, 84)
    assert await grpcio_takes(document) is never_read


@pytest.mark.parametrize(
    "document",
    [
        method(timeout=" 1s"),
        method(timeout="+1s"),
        method(hedgingPolicy={"maxAttempts": 1}),
        method(retryPolicy=RETRY, hedgingPolicy={"maxAttempts": 2}),
        {"methodConfig": [{"name": [{"service": "", "method": "m"}]}]},
        balancing({"ring_hash_experimental": {}}),
        balancing({"grpclb": {}}),
    ],
)
async def test_grpcio_takes_what_we_refuse_knowingly(document: Any) -> None:
    """Likewise."""
    assert refusal(document)
    assert await grpcio_takes(document)
