"""What clients register with the embedded agent: the records, and how they are read from the request's JSON.

Shapes, words and rules are those of Consul 1.22, as read off a real one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

STATUSES: Final = ("passing", "warning", "critical")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_WEIGHT = 65535
_SERVICE_FIELDS = frozenset(
    [
        "id",
        "name",
        "tags",
        "port",
        "address",
        "meta",
        "weights",
        "check",
        "checks",
        "enabletagoverride",
        "taggedaddresses",
        "token",
        "connect",
    ]
)
_CHECK_FIELDS = frozenset(
    [
        "id",
        "checkid",
        "name",
        "notes",
        "status",
        "interval",
        "timeout",
        "ttl",
        "http",
        "method",
        "header",
        "body",
        "tcp",
        "grpc",
        "grpcusetls",
        "tlsskipverify",
        "deregistercriticalserviceafter",
        "successbeforepassing",
        "failuresbeforecritical",
        "failuresbeforewarning",
    ]
)


class Refused(Exception):
    """An HTTP status and Consul's words for it."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True)
class Probe:
    """How a check is done. Durations in seconds; ``kind`` is grpc, http, tcp or ttl."""

    kind: str
    target: str = ""
    interval_s: float = 0.0
    timeout_s: float = 10.0
    method: str = "GET"
    header: tuple[tuple[str, str], ...] = ()
    body: str = ""
    verify: bool = True
    success_before_passing: int = 0
    failures_before_critical: int = 0
    failures_before_warning: int = 0


@dataclass(slots=True)
class Check:
    """One check and its state. ``critical_since`` is the caller's instant, None while it is not critical."""

    check_id: str
    name: str
    service_id: str
    probe: Probe | None
    kind: str
    interval: str = ""
    timeout: str = ""
    notes: str = ""
    status: str = "critical"
    output: str = ""
    deregister_after_s: float = 0.0
    critical_since: float | None = None
    created: int = 0
    modified: int = 0


@dataclass(slots=True)
class Service:
    """One registered instance."""

    id: str
    name: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: dict[str, str]
    passing: int = 1
    warning: int = 1
    enable_tag_override: bool = False
    tagged: dict[str, dict[str, Any]] = field(default_factory=dict)
    token: str = field(default="", repr=False, compare=False)
    """As Consul does, it is kept and never shown."""
    created: int = field(default=0, compare=False)
    modified: int = field(default=0, compare=False)


def duration(text: Any, what: str) -> float:
    """Seconds of a Go duration (``"1m30s"``), or of a number of nanoseconds."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return text / 1e9
    if text in ("", "0"):
        return 0.0
    if not isinstance(text, str) or not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        raise Refused(400, f'Request decode failed: time: invalid duration "{text}" ({what})')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def registered(body: object) -> tuple[Service, list[Check]]:
    """An instance and its checks, from a registration's JSON. Raises `Refused`."""
    fields = _lowered(body, _SERVICE_FIELDS)
    service = _service(fields)
    definitions = list(fields.get("checks") or [])
    if fields.get("check"):
        definitions.insert(0, fields["check"])
    lowered = [lower for d in definitions if (lower := _lowered(d, _CHECK_FIELDS))]
    return service, [_check(service, lower, n, len(lowered)) for n, lower in enumerate(lowered, 1)]


def _lowered(body: object, known: frozenset[str]) -> dict[str, Any]:
    """Consul takes ``DeregisterCriticalServiceAfter`` and ``deregister_critical_service_after`` alike."""
    if not isinstance(body, Mapping):
        raise Refused(400, f"Request decode failed: json: cannot unmarshal {type(body).__name__} into an object")
    lowered: dict[str, Any] = {}
    for key, value in body.items():
        name = key.lower().replace("_", "")
        if name not in known:
            raise Refused(400, f'Request decode failed: json: unknown field "{key}" (to the embedded agent)')
        lowered[name] = value
    return lowered


def _typed(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(
            400, f"Request decode failed: json: cannot unmarshal {value!r} into field {name} of type {kind.__name__}"
        )
    return value


def _service(fields: Mapping[str, Any]) -> Service:
    name = _typed(fields, "name", str, "")
    if not name:
        raise Refused(400, "Missing service name")
    meta = _typed(fields, "meta", dict, {})
    for key, value in meta.items():
        if not isinstance(value, str):
            raise Refused(
                400, f"Request decode failed: json: cannot unmarshal {value!r} into field Meta of type string"
            )
        if not _META_KEY.fullmatch(key):
            words = f"Couldn't load metadata pair ('{key}', '{value}'): Key contains invalid characters"
            raise Refused(400, f"Invalid Service Meta: {words}")
    passing, warning = 1, 1
    if fields.get("weights") is not None:
        weights = _lowered(fields["weights"], frozenset(("passing", "warning")))
        passing, warning = _typed(weights, "passing", int, 0), _typed(weights, "warning", int, 0)
        if passing < 1:
            raise Refused(400, "Invalid Weights: Passing must be greater than 0")
        if warning < 0:
            raise Refused(400, "Invalid Weights: Warning must be greater or equal than 0")
        if max(passing, warning) > _MAX_WEIGHT:
            raise Refused(400, f"Invalid Weights: DNS Weight must be between 0 and {_MAX_WEIGHT}")
    if fields.get("connect"):
        raise Refused(400, "the embedded agent does not support Connect; expected a registration without it")
    tags = _typed(fields, "tags", list, [])
    for tag in tags:
        if not isinstance(tag, str):
            raise Refused(400, f"Request decode failed: json: cannot unmarshal {tag!r} into field Tags of type string")
    tagged: dict[str, dict[str, Any]] = {}
    for label, at in _typed(fields, "taggedaddresses", dict, {}).items():
        if not isinstance(at, Mapping):
            words = f"cannot unmarshal {at!r} into field TaggedAddresses of type structs.ServiceAddress"
            raise Refused(400, f"Request decode failed: json: {words}")
        parts = _lowered(at, frozenset(("address", "port")))
        tagged[label] = {"Address": _typed(parts, "address", str, ""), "Port": _typed(parts, "port", int, 0)}
    return Service(
        id=_typed(fields, "id", str, "") or name,
        name=name,
        address=_typed(fields, "address", str, ""),
        port=_typed(fields, "port", int, 0),
        tags=tuple(tags),
        meta=dict(meta),
        passing=passing,
        warning=warning,
        enable_tag_override=_typed(fields, "enabletagoverride", bool, False),
        tagged=tagged,
        token=_typed(fields, "token", str, ""),
    )


def _check(service: Service, fields: Mapping[str, Any], number: int, of: int) -> Check:
    status = _typed(fields, "status", str, "") or "critical"
    if status not in STATUSES:
        raise Refused(400, "Status for checks must 'passing', 'warning', 'critical'")
    kinds = [kind for kind in ("grpc", "http", "tcp", "ttl") if fields.get(kind)]
    if len(kinds) != 1:
        raise Refused(400, "Invalid check: the embedded agent expects exactly one of GRPC, HTTP, TCP and TTL")
    kind = kinds[0]
    interval_s = duration(fields.get("ttl" if kind == "ttl" else "interval") or "", "interval")
    if interval_s <= 0:
        words = (
            "TTL must be > 0 for TTL checks"
            if kind == "ttl"
            else "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"
        )
        raise Refused(400, f"Invalid check: {words}")
    if fields.get("grpcusetls"):
        raise Refused(400, "Invalid check: the embedded agent does no gRPC check over TLS")
    critical_after = _typed(fields, "failuresbeforecritical", int, 0)
    probe = Probe(
        kind,
        target="" if kind == "ttl" else _typed(fields, kind, str, ""),
        interval_s=interval_s,
        timeout_s=duration(fields.get("timeout") or "", "timeout") or 10.0,
        method=_typed(fields, "method", str, "") or "GET",
        header=tuple((k, v) for k, values in _typed(fields, "header", dict, {}).items() for v in values),
        body=_typed(fields, "body", str, ""),
        verify=not _typed(fields, "tlsskipverify", bool, False),
        success_before_passing=_typed(fields, "successbeforepassing", int, 0),
        failures_before_critical=critical_after,
        failures_before_warning=_typed(fields, "failuresbeforewarning", int, critical_after),
    )
    default_id = f"service:{service.id}" + (f":{number}" if of > 1 else "")
    return Check(
        check_id=_typed(fields, "checkid", str, "") or _typed(fields, "id", str, "") or default_id,
        name=_typed(fields, "name", str, "") or f"Service '{service.name}' check",
        service_id=service.id,
        probe=probe,
        kind=kind,
        interval="" if kind == "ttl" else str(fields["interval"]),
        timeout=str(fields.get("timeout") or ""),
        notes=_typed(fields, "notes", str, ""),
        status=status,
        deregister_after_s=duration(fields.get("deregistercriticalserviceafter") or "", "deregister"),
    )
