"""gRPC's service config: the JSON document with which a service's owner tells its clients how to call it.

Accepted is what grpcio accepts (a test asks grpcio itself), in the form of
`service_config.proto`_: ``methodConfig`` (``name``, ``timeout``, ``waitForReady``,
``retryPolicy``, ``hedgingPolicy``, ``maxRequestMessageBytes``, ``maxResponseMessageBytes``),
``retryThrottling``, ``loadBalancingConfig``, ``healthCheckConfig``. Errors name the path, all of
them at once::

    service config: methodConfig[1].retryPolicy.maxAttempts is 1; expected a whole number >= 2

Fields that are not known are ignored, as gRPC ignores them; `ServiceConfig.notes` lists them.

docs/service_config.md has the rules field by field, and where ours are not grpcio's.

.. _service_config.proto: https://github.com/grpc/grpc-proto/blob/master/grpc/service_config/service_config.proto
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from grpc import StatusCode
from tenacity import RetryCallState, stop_after_attempt, wait_exponential

from lb.core.documents import Fields, Problems, fields_of, in_json, read
from lb.core.hedging import MOST_ATTEMPTS, Hedging
from lb.core.method_config import ConfigEntry, ServiceConfig
from lb.core.outcome import Origin
from lb.core.retry import AttemptError, Retry
from lb.core.service_policies import policy_of
from lb.core.throttle import LEAST_RATIO, Throttle

_CODES: dict[int | str, StatusCode] = {key: code for code in StatusCode for key in (code.value[0], code.name)}


def parse(document: str | Mapping[str, Any]) -> ServiceConfig:
    """Read a service config, as JSON text or as what JSON text stands for.

    Raises:
        ValueError: not valid JSON, or values that are not accepted; every one is named by its path.
        TypeError: ``document`` is neither text nor a mapping.
    """
    problems = Problems("service config")
    top = read(document, problems)
    methods = _methods(top, problems)
    try:
        policy = policy_of(top, problems)
    except RecursionError:
        raise ValueError("service config: loadBalancingConfig is nested too deeply") from None
    throttle = _throttle(top)
    health = top.fields("healthCheckConfig")
    service_name = None if health is None else health.text("serviceName")
    return ServiceConfig(
        methods=MappingProxyType(methods),
        policy=policy,
        throttle=throttle,
        health=service_name,
        notes=problems.finish(),
    )


def _methods(top: Fields, problems: Problems) -> dict[str, ConfigEntry]:
    methods: dict[str, ConfigEntry] = {}
    for path, value in top.items("methodConfig") or ():
        entry = fields_of(value, path, problems)
        if entry is None:
            continue
        config = _method(entry, problems)
        for name_path, name in entry.items("name") or ():
            key = _key(name, name_path, problems)
            if key is None:
                continue
            if key in methods:
                problems.error(f"{name_path} is a second entry for {key or 'all methods'}; expected one")
            methods[key] = config
    return methods


def _key(value: object, path: str, problems: Problems) -> str | None:
    """The key in `ServiceConfig.methods` that an element of ``name`` stands for."""
    name = fields_of(value, path, problems)
    if name is None:
        return None
    service, method = name.text("service"), name.text("method")
    for part, text in (("service", service), ("method", method)):
        if text and "/" in text:
            problems.note(f"{name.at(part)} is {in_json(text)}: no call matches a name with a slash")
    if service:
        return f"/{service}/{method or ''}"
    if method:
        problems.error(f"{path} has the method {method!r} without a service; expected both, the service alone, or none")
        return None
    return ""


def _method(entry: Fields, problems: Problems) -> ConfigEntry:
    retry, hedging = entry.fields("retryPolicy"), entry.fields("hedgingPolicy")
    if retry is not None and hedging is not None:
        problems.error(f"{entry.path} has retryPolicy and hedgingPolicy; expected one of them")
    return ConfigEntry(
        retry=None if retry is None else _retry(retry, problems),
        hedging=None if hedging is None else _hedging(hedging, problems),
        timeout_s=entry.seconds("timeout") or None,  # core takes 0 for "none", too
        wait_for_ready=entry.flag("waitForReady"),
        max_request_bytes=entry.whole("maxRequestMessageBytes"),
        max_response_bytes=entry.whole("maxResponseMessageBytes"),
    )


def _retry(policy: Fields, problems: Problems) -> Retry | None:
    attempts = _attempts(policy, problems)
    initial = policy.seconds("initialBackoff", positive=True, required=True)
    most = policy.seconds("maxBackoff", positive=True, required=True)
    multiplier = policy.number("backoffMultiplier", positive=True, required=True)
    limit = policy.seconds("perAttemptRecvTimeout", positive=True)
    codes = _codes(policy, "retryableStatusCodes", problems)
    if not codes and policy.value("perAttemptRecvTimeout") is None and not policy.value("retryableStatusCodes"):
        policy.wrong("retryableStatusCodes", "a list of status codes that is not empty, or a perAttemptRecvTimeout")
    if attempts is None or initial is None or most is None or multiplier is None:
        return None
    return Retry(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=initial, exp_base=multiplier, max=most),
        retry=RetryOn(codes, timeouts=limit is not None),
        attempt_timeout_s=limit,
    )


def _hedging(policy: Fields, problems: Problems) -> Hedging | None:
    attempts = _attempts(policy, problems)
    delay = policy.seconds("hedgingDelay")
    codes = _codes(policy, "nonFatalStatusCodes", problems)
    if attempts is None:
        return None
    return Hedging(delay_s=delay or 0.0, max_attempts=attempts, non_fatal=codes)


def _attempts(policy: Fields, problems: Problems) -> int | None:
    attempts = policy.whole("maxAttempts", 2, required=True)
    if attempts is not None and attempts > MOST_ATTEMPTS:
        problems.note(f"{policy.at('maxAttempts')} is {attempts}; lb uses the maximum, {MOST_ATTEMPTS}")
        return MOST_ATTEMPTS
    return attempts


def _codes(policy: Fields, name: str, problems: Problems) -> frozenset[StatusCode]:
    codes = set()
    for path, value in policy.items(name) or ():
        key = value.upper() if isinstance(value, str) else value
        if not isinstance(key, (int, str)) or isinstance(key, bool) or key not in _CODES:
            problems.wrong(path, value, 'a status code like "UNAVAILABLE" or 14')
        else:
            codes.add(_CODES[key])
    return frozenset(codes - {StatusCode.OK})


def _throttle(top: Fields) -> Throttle | None:
    throttling = top.fields("retryThrottling")
    if throttling is None:
        return None
    tokens = throttling.whole("maxTokens", 1, required=True)
    ratio = throttling.number("tokenRatio", positive=True, required=True)
    if ratio is not None and ratio < LEAST_RATIO:
        throttling.wrong("tokenRatio", f"a number >= {LEAST_RATIO}")
        return None
    return None if tokens is None or ratio is None else Throttle(max_tokens=tokens, token_ratio=ratio)


@dataclass(frozen=True, slots=True)
class RetryOn:
    """A ``retry`` strategy for tenacity: yes for these codes and, with ``timeouts``, for attempts out of time."""

    codes: frozenset[StatusCode]
    timeouts: bool = False

    def __call__(self, state: RetryCallState) -> bool:
        """Whether the attempt that ``state`` is about may be followed by another."""
        error = None if state.outcome is None else state.outcome.exception()
        if not isinstance(error, AttemptError):
            return False
        return error.outcome.code in self.codes or (self.timeouts and error.outcome.origin is Origin.ATTEMPT_TIMEOUT)
