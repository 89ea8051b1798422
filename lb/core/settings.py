"""All settings of a channel, checked in one place for asyncio and threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from tenacity import stop_after_attempt

from lb.core import checks
from lb.core.breaker import Breaker
from lb.core.budget import Budget
from lb.core.checks import shown
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.hedging import Hedging
from lb.core.method_config import ConfigEntry, ServiceConfig
from lb.core.policies import Policy, resolve
from lb.core.retry import Retry
from lb.core.shared import Rules
from lb.core.throttle import Throttle

T = TypeVar("T")
Off = TypeVar("Off")

SERVICE_CONFIG_OPTION = "grpc.service_config"
_ENABLE_RETRIES = "grpc.enable_retries"


def channel_options(options: object) -> tuple[tuple[str, Any], ...]:
    """Channel options as grpcio takes them. Raises ``TypeError`` or ``ValueError`` if they are not pairs."""
    return checks.pairs("options", options, "('grpc.keepalive_time_ms', 30000)")


NOT_COPIED = "{!r} cannot be pickled or copied: its connections belong to this process; make one where it is used"


def _optional(name: str, value: T | Literal[False] | None, kind: type[T], *, off: Off = None) -> T | Off | None:  # type: ignore[assignment]
    """``off`` for False."""
    if value is False:
        return off
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; expected an lb.{kind.__name__}, False (off) or None (the default)")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings:
    """Settings of one method, or of all methods of a service, for a channel's ``methods=``.

    Args:
        timeout_s: seconds for a call that gives no timeout, > 0. It bounds a stream from its beginning to its end.
            False: none. None: the channel's ``timeout_s``.
        retry: instead of the channel's, except for its ``budget``: a channel has one for all methods. False: no
            retries. None: the service config's, or else the channel's.
        hedging: instead of the channel's, if the method may run twice. False: no hedges. None: the service config's,
            or else the channel's.
        idempotent: True: the method may run twice without harm, as if it were listed in ``Retry.idempotent``.

    Raises:
        ValueError: ``timeout_s`` is out of its range.
        TypeError: a field has a wrong type.
    """

    timeout_s: float | Literal[False] | None = None
    retry: Retry | Literal[False] | None = None
    hedging: Hedging | Literal[False] | None = None
    idempotent: bool = False

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s is not False:
            checks.number("MethodSettings.timeout_s", self.timeout_s, "seconds > 0, False (off) or None", above=True)
        _optional("MethodSettings.retry", self.retry, Retry)
        _optional("MethodSettings.hedging", self.hedging, Hedging)
        checks.flag("MethodSettings.idempotent", self.idempotent)


_NO_ENTRY = MethodSettings()
_NOT_HEDGED = (
    "methods[{!r}] has hedging, which is not used: the method is not declared idempotent. "
    "Set idempotent=True if it may run twice"
)
_NO_RETRY = Retry(enabled=False)
_NO_BREAKER = Breaker(consecutive_failures=None, failure_ratio=None, refused_s=None)


@dataclass(frozen=True, slots=True)
class Settings:
    """A channel's settings. Made by `settings`; shared by nothing but the channel."""

    policy: Policy
    retry: Retry
    breaker: Breaker
    hedging: Hedging | Literal[False] | None
    limit: ConcurrencyLimit | None
    ejection: Ejection
    connection: Connection
    health: str | None
    budget: Budget | Throttle
    config: ServiceConfig
    propagate: bool
    measure_sizes: bool
    measure_endpoints: bool
    timeout_s: float | None
    methods: Mapping[str, MethodSettings]

    @property
    def entries(self) -> set[str]:
        """The names in ``Retry.idempotent`` and ``methods``. Each should match a method that is called."""
        return {*self.retry.idempotent, *self.methods}

    def method(self, name: str, *, declared_idempotent: bool) -> Rules:
        """The settings of ``/package.Service/Method``; ``declared_idempotent``: its proto says that it is.

        The most specific setting wins: the entry in ``methods`` (of the method, else of its service), then the
        service config's, then what was given for all methods.
        """
        config = self.config.method(name)
        keys = [key for key in checks.entries(name) if key in self.methods]
        entry = self.methods[keys[0]] if keys else _NO_ENTRY
        hedging = (self._hedging(config) if entry.hedging is None else entry.hedging) or None
        retry = _NO_RETRY if entry.retry is False else entry.retry or self._retry(config, hedging)
        declared_by = [*self.retry.declared_by(name), *retry.declared_by(name)]
        idempotent = declared_idempotent or config.idempotent or entry.idempotent or bool(declared_by)
        timeout_s = self.timeout_s if entry.timeout_s is None else entry.timeout_s or None
        return Rules(
            retry=retry,
            hedging=hedging if idempotent else None,
            idempotent=idempotent,
            timeout_s=config.timeout_s,
            default_timeout_s=timeout_s,
            wait_for_ready=config.wait_for_ready,
            entries=[*keys, *declared_by],
            doubt=_NOT_HEDGED.format(name) if entry.hedging and keys[0] == name and not idempotent else "",
        )

    def _hedging(self, config: ConfigEntry) -> Hedging | Literal[False] | None:
        """The document's or the channel's. The channel may turn off the document's, as with retries."""
        return self.hedging if self.hedging is False else config.hedging or self.hedging

    def _retry(self, config: ConfigEntry, hedging: Hedging | None) -> Retry:
        """The document's retries for the method, or the channel's."""
        ours, theirs = self.retry, config.retry
        if hedging is not None and hedging is config.hedging:
            # When all hedges have failed there is no further attempt (gRFC A6).
            most = stop_after_attempt(hedging.max_attempts)
            return replace(ours, stop=lambda state: most(state) or ours.stop(state))
        if theirs is None:
            return ours
        limit_s = ours.attempt_timeout_s if theirs.attempt_timeout_s is None else theirs.attempt_timeout_s
        return replace(theirs, attempt_timeout_s=limit_s, enabled=ours.enabled)

    def core_config(self) -> str | None:
        """The service config for core itself: message sizes only; None when there are none.

        All else in a user's document is done here. If core got it as well, it would be done twice.
        """
        document: dict[str, Any] = {}
        methods = self.config.methods
        if any(m.max_request_bytes is not None or m.max_response_bytes is not None for m in methods.values()):
            # All entries, also those without sizes: only the most specific one counts.
            document["methodConfig"] = [{"name": [_name(key)], **_sizes(method)} for key, method in methods.items()]
        if not document:
            return None
        import json

        return json.dumps(document)


def _name(key: str) -> dict[str, str]:
    """``/service/method``, ``/service/`` or nothing, as an element of ``methodConfig.name``."""
    service, _, method = key[1:].rpartition("/")
    return {name: value for name, value in (("service", service), ("method", method)) if value}


def _read(document: str | Mapping[str, Any]) -> ServiceConfig:
    from lb.core.service_config import parse  # few channels have a document

    return parse(document)


def _sizes(method: ConfigEntry) -> dict[str, int]:
    sizes = {"maxRequestMessageBytes": method.max_request_bytes, "maxResponseMessageBytes": method.max_response_bytes}
    return {name: size for name, size in sizes.items() if size is not None}


def settings(
    *,
    policy: Policy | str | None = None,
    retry: Retry | Literal[False] | None = None,
    breaker: Breaker | Literal[False] | None = None,
    hedging: Hedging | Literal[False] | None = None,
    limit: ConcurrencyLimit | Literal[False] | None = None,
    ejection: Ejection | None = None,
    connection: Connection | None = None,
    health: str | None = None,
    service_config: str | Mapping[str, Any] | None = None,
    propagate: bool = True,
    measure_sizes: bool = False,
    measure_endpoints: bool = False,
    timeout_s: float | None = None,
    methods: Mapping[str, MethodSettings] | None = None,
    options: tuple[tuple[str, Any], ...] = (),
) -> Settings:
    """Check what a user gave, and fill in the defaults.

    A service config may also be one of the ``options`` (``grpc.service_config``), as for grpcio.
    What it says of a *method* wins over ``retry`` and ``hedging``, which are for all methods. But
    ``enabled=False`` also turns its retries off (gRFC A6, *Disabling retries*), an
    ``attempt_timeout_s`` holds if its ``retryPolicy`` has none, and ``hedging=False`` turns its hedging off. What
    ``methods`` says of a method wins over both. A ``policy`` or ``health`` given
    here wins over the document's. False for ``retry``, ``breaker``, ``hedging`` or ``limit`` means "off", None means
    the default. The option ``grpc.enable_retries`` with 0 means ``retry=False``, unless a ``retry`` is given.

    Raises:
        ValueError: a bad value; the message names it.
        TypeError: an object of another kind; the message names what is expected.
    """
    if service_config is None:
        service_config = _option(options, SERVICE_CONFIG_OPTION)  # core itself refuses what is not a string
        if isinstance(service_config, bytes):  # core takes them, too
            service_config = service_config.decode(errors="surrogateescape")
        service_config = service_config if isinstance(service_config, str) else None
    config = ServiceConfig() if service_config is None else _read(service_config)
    if health is not None and not isinstance(health, str):
        raise TypeError(f"health is {shown(health)}; expected a service name ('' for the whole server), or None")
    if health is not None and not health.isprintable():
        raise ValueError(f"health is {shown(health)}; expected a service name ('' for the whole server), or None")
    flags = (("propagate", propagate), ("measure_sizes", measure_sizes), ("measure_endpoints", measure_endpoints))
    for name, value in flags:
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {shown(value)}; expected True or False")
    if timeout_s is not None:
        checks.number("timeout_s", timeout_s, "seconds > 0, or None", above=True)
    if retry is None and _option(options, _ENABLE_RETRIES) == 0:
        retry = False
    retry = _optional("retry", retry, Retry, off=_NO_RETRY) or Retry()
    return Settings(
        policy=resolve(policy) if policy is not None or config.policy is None else config.policy,
        retry=retry,
        breaker=_optional("breaker", breaker, Breaker, off=_NO_BREAKER) or Breaker(),
        hedging=_optional("hedging", hedging, Hedging, off=False),
        limit=_optional("limit", limit, ConcurrencyLimit, off=None),
        ejection=_instance("ejection", ejection, Ejection),
        connection=_instance("connection", connection, Connection),
        health=config.health if health is None else health,
        budget=config.throttle or retry.budget,
        config=config,
        propagate=propagate,
        measure_sizes=measure_sizes,
        measure_endpoints=measure_endpoints,
        timeout_s=timeout_s,
        methods=_methods(methods),
    )


def _methods(methods: object) -> Mapping[str, MethodSettings]:
    if methods is None:
        return {}
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods is {shown(methods)}; expected lb.MethodSettings by method, or None")
    for name, entry in methods.items():
        checks.method(f"methods has {shown(name)}", name)
        if not isinstance(entry, MethodSettings):
            raise TypeError(f"methods[{shown(name)}] is {shown(entry)}; expected an lb.MethodSettings")
    return MappingProxyType(dict(methods))


def _option(options: tuple[tuple[str, Any], ...], name: str) -> Any:
    """The first option of that name, which is the one that core takes; None if there is none."""
    return next((value for given, value in options if given == name), None)


def _instance(name: str, value: object, kind: type[T]) -> T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; expected an lb.{kind.__name__} or None")
    return value
