"""Everything a user may set of a channel, checked once and alike for asyncio and threads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tenacity import stop_after_attempt

from lb.core.breaker import Breaker
from lb.core.budget import Budget
from lb.core.checks import shown
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.hedging import Hedging
from lb.core.policies import Policy, resolve
from lb.core.retry import Retry
from lb.core.service_config import MethodConfig, ServiceConfig, parse
from lb.core.throttle import Throttle

T = TypeVar("T")

SERVICE_CONFIG_OPTION = "grpc.service_config"
_ENABLE_RETRIES = "grpc.enable_retries"


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """What holds for one method. ``hedging`` is None unless the method may run twice."""

    retry: Retry
    hedging: Hedging | None
    idempotent: bool
    timeout_s: float | None
    wait_for_ready: bool | None


@dataclass(frozen=True, slots=True)
class Settings:
    """A channel's settings. Made by `settings`; shared by nothing but the channel."""

    policy: Policy
    retry: Retry
    breaker: Breaker
    hedging: Hedging | None
    limit: ConcurrencyLimit | None
    ejection: Ejection
    connection: Connection
    health: str | None
    budget: Budget | Throttle
    config: ServiceConfig
    propagate: bool
    measure_sizes: bool

    def method(self, name: str, *, declared_idempotent: bool) -> MethodSettings:
        """What holds for ``/package.Service/Method``; ``declared_idempotent`` is what its proto says."""
        config = self.config.method(name)
        retry = self._retry(config)
        idempotent = declared_idempotent or config.idempotent or name in self.retry.idempotent
        hedging = config.hedging or self.hedging
        return MethodSettings(
            retry, hedging if idempotent else None, idempotent, config.timeout_s, config.wait_for_ready
        )

    def _retry(self, config: MethodConfig) -> Retry:
        """The channel's retries, as far as the document says nothing else of the method."""
        ours, theirs = self.retry, config.retry
        if config.hedging is not None:
            # When all hedges have failed there is no further attempt (gRFC A6).
            most = stop_after_attempt(config.hedging.max_attempts)
            return replace(ours, stop=lambda state: most(state) or ours.stop(state))
        if theirs is None:
            return ours
        timeout = ours.attempt_timeout if theirs.attempt_timeout is None else theirs.attempt_timeout
        return replace(theirs, attempt_timeout=timeout, enabled=ours.enabled)

    def core_config(self) -> str | None:
        """What core itself must know, as its service config: message sizes and health checks; None: nothing.

        Everything else in a user's document is ours to do; given to core too, it would be done twice.
        """
        document: dict[str, Any] = {}
        methods = self.config.methods
        if any(m.max_request_bytes is not None or m.max_response_bytes is not None for m in methods.values()):
            # All entries, also those without sizes: the most specific one stands alone.
            document["methodConfig"] = [{"name": [_name(key)], **_sizes(method)} for key, method in methods.items()]
        if self.health is not None:
            # Core checks health under its round robin only; over one address that is the same as pick_first.
            document["loadBalancingConfig"] = [{"round_robin": {}}]
            document["healthCheckConfig"] = {"serviceName": self.health}
        return json.dumps(document) if document else None


def _name(key: str) -> dict[str, str]:
    """``/service/method``, ``/service/`` or nothing, as an element of ``methodConfig.name``."""
    service, _, method = key[1:].rpartition("/")
    return {name: value for name, value in (("service", service), ("method", method)) if value}


def _sizes(method: MethodConfig) -> dict[str, int]:
    sizes = {"maxRequestMessageBytes": method.max_request_bytes, "maxResponseMessageBytes": method.max_response_bytes}
    return {name: size for name, size in sizes.items() if size is not None}


def settings(
    *,
    policy: Policy | str | None = None,
    retry: Retry | None = None,
    breaker: Breaker | None = None,
    hedging: Hedging | None = None,
    limit: ConcurrencyLimit | None = None,
    ejection: Ejection | None = None,
    connection: Connection | None = None,
    health: str | None = None,
    service_config: str | Mapping[str, Any] | None = None,
    propagate: bool = True,
    measure_sizes: bool = False,
    options: tuple[tuple[str, Any], ...] = (),
) -> Settings:
    """Check and complete what a user gave.

    A service config may also stand among the ``options`` (``grpc.service_config``), as for grpcio.
    What it says of a *method* wins over ``retry`` and ``hedging``, which are for all methods; but
    ``enabled=False`` turns its retries off, too (gRFC A6, *Disabling retries*), and an
    ``attempt_timeout`` holds where its ``retryPolicy`` names none. A ``policy`` or ``health`` given
    here wins over the document's. The option ``grpc.enable_retries`` with 0 means
    ``Retry(enabled=False)``, unless a ``retry`` is given.

    Raises:
        ValueError: a bad value; the message names it.
        TypeError: an object of another kind; the message names what is expected.
    """
    if service_config is None:
        service_config = _option(options, SERVICE_CONFIG_OPTION)  # what is no text core refuses by itself
        if isinstance(service_config, bytes):  # core takes them, too
            service_config = service_config.decode(errors="surrogateescape")
        service_config = service_config if isinstance(service_config, str) else None
    config = ServiceConfig() if service_config is None else parse(service_config)
    if health is not None and not isinstance(health, str):
        raise TypeError(f"health is {shown(health)}; expected a service name ('' for the whole server), or None")
    if health is not None and not health.isprintable():
        raise ValueError(f"health is {shown(health)}; expected a service name ('' for the whole server), or None")
    for name, value in (("propagate", propagate), ("measure_sizes", measure_sizes)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {shown(value)}; expected True or False")
    if retry is None and _option(options, _ENABLE_RETRIES) == 0:
        retry = Retry(enabled=False)
    retry = _instance("retry", retry, Retry)
    return Settings(
        policy=resolve(policy) if policy is not None or config.policy is None else config.policy,
        retry=retry,
        breaker=_instance("breaker", breaker, Breaker),
        hedging=None if hedging is None else _instance("hedging", hedging, Hedging),
        limit=None if limit is None else _instance("limit", limit, ConcurrencyLimit),
        ejection=_instance("ejection", ejection, Ejection),
        connection=_instance("connection", connection, Connection),
        health=config.health if health is None else health,
        budget=config.throttle or retry.budget,
        config=config,
        propagate=propagate,
        measure_sizes=measure_sizes,
    )


def _option(options: tuple[tuple[str, Any], ...], name: str) -> Any:
    """The first of that name, as core takes it; None if there is none."""
    return next((value for given, value in options if given == name), None)


def _instance(name: str, value: object, kind: type[T]) -> T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; expected an lb.{kind.__name__} or None")
    return value
