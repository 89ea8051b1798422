"""Everything a user may set of a channel, checked once and alike for asyncio and threads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lb.core.breaker import Breaker
from lb.core.budget import Budget
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
        retry = config.retry or self.retry
        idempotent = declared_idempotent or config.idempotent or name in self.retry.idempotent
        hedging = config.hedging or self.hedging
        return MethodSettings(
            retry, hedging if idempotent else None, idempotent, config.timeout_s, config.wait_for_ready
        )

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
    What it says of a *method* wins over ``retry`` and ``hedging``, which are for all methods; a
    ``policy`` or ``health`` given here wins over the document's.

    Raises:
        ValueError: a bad value; the message names it.
        TypeError: an object of another kind; the message names what is expected.
    """
    if service_config is None:
        # Core takes the first of several options of one name; what is no text it refuses by itself.
        given = next((value for name, value in options if name == SERVICE_CONFIG_OPTION), None)
        service_config = given if isinstance(given, str) else None
    config = ServiceConfig() if service_config is None else parse(service_config)
    if health is not None and not isinstance(health, str):
        raise TypeError(f"health is {health!r}; expected a service name ('' for the whole server), or None")
    for name, value in (("propagate", propagate), ("measure_sizes", measure_sizes)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; expected True or False")
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


def _instance(name: str, value: object, kind: type[T]) -> T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; expected an lb.{kind.__name__} or None")
    return value
