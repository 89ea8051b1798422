"""The state of the embedded agent, and Consul's JSON for it. No I/O and no clock.

Shapes, texts and rules are those of Consul 1.22, as read off a real one: a registration's
check keeps its status when it is registered again, the index of a service moves only when that
service changed, a service that never was has the catalog's index.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Final

VERSION: Final = "1.22.2"
STATUSES: Final = ("passing", "warning", "critical")
_FIRST_INDEX = 10
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_WEIGHT = 65535
_NO_REASON = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."

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


class Registry:
    """What one agent, which is its own server, knows. ``changed`` is called after every change of the index."""

    def __init__(self, node: str, datacenter: str, changed: Callable[[], None]) -> None:
        self.node = node
        self.datacenter = datacenter
        self._changed = changed
        self.reset()

    def reset(self) -> None:
        """Forgets everything: a new node, the index from the beginning."""
        self.node_id = str(uuid.uuid4())
        self.index = _FIRST_INDEX
        self.services: dict[str, Service] = {}
        self.checks: dict[str, Check] = {}
        self._indexes: dict[str, int] = {}
        self._extinct = 0

    def set_index(self, index: int) -> None:
        """Sets every index, forwards or backwards, as restoring a snapshot does."""
        self.index = index
        self._indexes = dict.fromkeys(self._indexes, index)
        self._extinct = min(self._extinct, index)
        self._changed()

    # Changes

    def register(self, body: object, *, replace_checks: bool, now: float) -> list[Check]:
        """Registers an instance from the request's JSON. Its checks; raises :class:`Refused`."""
        fields = _lowered(body, _SERVICE_FIELDS)
        service = _service(fields)
        definitions = list(fields.get("checks") or [])
        if fields.get("check"):
            definitions.insert(0, fields["check"])
        lowered = [lower for d in definitions if (lower := _lowered(d, _CHECK_FIELDS))]
        checks = [_check(service, lower, n, len(lowered)) for n, lower in enumerate(lowered, 1)]

        before = self.services.get(service.id)
        if before is not None and before.name.lower() != service.name.lower():
            self.deregister(service.id)
            before = None
        dirty = before != service
        if replace_checks:
            wanted = {check.check_id for check in checks}
            for old in [c for c in self._checks_of(service.id) if c.check_id not in wanted and c.probe is not None]:
                del self.checks[old.check_id]
                dirty = True
        for check in checks:
            existing = self.checks.get(check.check_id)
            if existing is None:
                check.critical_since = now if check.status == "critical" else None
                check.created = check.modified = self.index + 1
                dirty = True
            else:
                check.status, check.output, check.critical_since = (
                    existing.status,
                    existing.output,
                    existing.critical_since,
                )
                check.created, check.modified = existing.created, existing.modified
            self.checks[check.check_id] = check
        service.created = before.created if before else self.index + 1
        service.modified = self.index + 1 if before != service else before.modified
        self.services[service.id] = service
        if dirty:
            self._bump(service.name)
        return checks

    def deregister(self, service_id: str) -> None:
        """Removes an instance and its checks. Raises :class:`Refused` (404)."""
        service = self.service(service_id)
        del self.services[service_id]
        for check in self._checks_of(service_id):
            del self.checks[check.check_id]
        self._bump(service.name)
        if all(other.name.lower() != service.name.lower() for other in self.services.values()):
            del self._indexes[service.name.lower()]
            self._extinct = self.index

    def maintenance(self, service_id: str, *, enable: bool, reason: str, now: float) -> None:
        """Switches an instance's maintenance mode. Raises :class:`Refused` (404)."""
        service = self.service(service_id)
        check_id = f"_service_maintenance:{service_id}"
        if enable == (check_id in self.checks):
            return
        if enable:
            self.checks[check_id] = Check(
                check_id,
                "Service Maintenance Mode",
                service_id,
                None,
                "maintenance",
                notes=reason or _NO_REASON,
                critical_since=now,
                created=self.index + 1,
                modified=self.index + 1,
            )
        else:
            del self.checks[check_id]
        self._bump(service.name)

    def report(self, check_id: str, status: str, output: str, *, now: float) -> None:
        """A check's result. Like Consul's, a new output alone moves no index."""
        check = self.checks.get(check_id)
        if check is None:
            return
        check.output = output
        if check.status == status:
            return
        check.status = status
        check.critical_since = now if status == "critical" else None
        check.modified = self.index + 1
        self._bump(self.services[check.service_id].name)

    def expired(self, now: float, least_s: float) -> list[str]:
        """Ids of instances critical for longer than their checks allow (at least ``least_s``)."""
        return sorted(
            {
                check.service_id
                for check in self.checks.values()
                if check.deregister_after_s
                and check.critical_since is not None
                and now - check.critical_since > max(check.deregister_after_s, least_s)
            }
        )

    # Reading

    def service(self, service_id: str) -> Service:
        """The instance. Raises :class:`Refused` (404) in the words of the agent's writing endpoints."""
        if service_id not in self.services:
            words = f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
            raise Refused(404, words)
        return self.services[service_id]

    def check(self, check_id: str) -> Check:
        """The check. Raises :class:`Refused` (404)."""
        if check_id not in self.checks:
            words = f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.'
            raise Refused(404, words)
        return self.checks[check_id]

    def index_of(self, name: str) -> int:
        """The index of a service: its own, else the last extinction's, else the catalog's."""
        return self._indexes.get(name.lower()) or self._extinct or self.index

    def health_service(self, name: str, tags: list[str], *, passing: bool) -> list[dict[str, Any]]:
        """``/v1/health/service/NAME``."""
        wanted = {tag.lower() for tag in tags}
        found = []
        for service in self._named(name):
            checks = self._checks_of(service.id)
            if passing and any(check.status != "passing" for check in checks):
                continue
            if wanted <= {tag.lower() for tag in service.tags}:
                found.append(
                    {
                        "Node": self._node_json(),
                        "Service": self._service_json(service)
                        | {"PeerName": "", "CreateIndex": service.created, "ModifyIndex": service.modified},
                        "Checks": [self._serf(), *(self._check_json(check) for check in checks)],
                    }
                )
        return found

    def health_checks(self, name: str) -> list[dict[str, Any]]:
        """``/v1/health/checks/NAME``."""
        return [self._check_json(check) for service in self._named(name) for check in self._checks_of(service.id)]

    def health_state(self, state: str) -> list[dict[str, Any]]:
        """``/v1/health/state/STATE``."""
        checks = [self._serf(), *(self._check_json(check) for check in self.checks.values())]
        return [check for check in checks if state in ("any", check["Status"])]

    def catalog_services(self) -> dict[str, list[str]]:
        """``/v1/catalog/services``."""
        tags: dict[str, set[str]] = {"consul": set()}
        for service in self.services.values():
            tags.setdefault(service.name, set()).update(service.tags)
        return {name: sorted(tags[name]) for name in sorted(tags)}

    def catalog_service(self, name: str, tags: list[str]) -> list[dict[str, Any]]:
        """``/v1/catalog/service/NAME``."""
        wanted = {tag.lower() for tag in tags}
        node = self._node_json()
        return [
            {
                "ID": self.node_id,
                "Node": self.node,
                "Address": node["Address"],
                "Datacenter": self.datacenter,
                "TaggedAddresses": node["TaggedAddresses"],
                "NodeMeta": node["Meta"],
                "ServiceKind": "",
                "ServiceID": service.id,
                "ServiceName": service.name,
                "ServiceTags": list(service.tags),
                "ServiceAddress": service.address,
                "ServiceTaggedAddresses": self._service_json(service)["TaggedAddresses"],
                "ServiceWeights": {"Passing": service.passing, "Warning": service.warning},
                "ServiceMeta": service.meta,
                "ServicePort": service.port,
                "ServiceEnableTagOverride": service.enable_tag_override,
                "CreateIndex": service.created,
                "ModifyIndex": service.modified,
            }
            for service in self._named(name)
            if wanted <= {tag.lower() for tag in service.tags}
        ]

    def agent_service(self, service_id: str) -> dict[str, Any]:
        """``/v1/agent/service/ID``. Raises :class:`Refused` (404)."""
        if service_id not in self.services:
            raise Refused(404, f"unknown service ID: {service_id}")
        service = self._service_json(self.services[service_id])
        digest = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(service, sort_keys=True)).hex[:16]
        return service | {"ContentHash": digest, "Datacenter": self.datacenter}

    def agent_services(self) -> dict[str, dict[str, Any]]:
        """``/v1/agent/services``."""
        return {s.id: self._service_json(s) | {"Datacenter": self.datacenter} for s in self.services.values()}

    def agent_checks(self) -> dict[str, dict[str, Any]]:
        """``/v1/agent/checks``."""
        local = {"CreateIndex": 0, "ModifyIndex": 0}
        return {check.check_id: self._check_json(check) | local for check in self.checks.values()}

    def agent_health(self, service_id: str) -> tuple[int, dict[str, Any]]:
        """``/v1/agent/health/service/id/ID``: the status code that stands for the health, and the JSON."""
        if service_id not in self.services:
            return 404, {"AggregatedStatus": "critical", "Service": None, "Checks": None}
        checks = self._checks_of(service_id)
        status = max((check.status for check in checks), key=STATUSES.index, default="passing")
        if any(check.kind == "maintenance" for check in checks):
            status = "maintenance"
        service = self._service_json(self.services[service_id]) | {"Datacenter": self.datacenter}
        code = {"passing": 200, "warning": 429}.get(status, 503)
        return code, {
            "AggregatedStatus": status,
            "Service": service,
            "Checks": [self._check_json(check) for check in checks],
        }

    def agent_self(self) -> dict[str, Any]:
        """``/v1/agent/self``, as far as anybody reads it."""
        config = {
            "Datacenter": self.datacenter,
            "PrimaryDatacenter": self.datacenter,
            "NodeName": self.node,
            "NodeID": self.node_id,
            "Revision": "embedded",
            "Server": True,
            "Version": VERSION,
        }
        return {"Config": config, "Member": {"Name": self.node, "Addr": "127.0.0.1", "Status": 1}}

    # Parts

    def _bump(self, name: str) -> None:
        self.index += 1
        self._indexes[name.lower()] = self.index
        self._changed()

    def _named(self, name: str) -> list[Service]:
        """The catalog minds no case, neither of names nor of ids; the agent minds it in ids."""
        found: dict[str, Service] = {}
        for service in self.services.values():
            if service.name.lower() == name.lower():
                found.setdefault(service.id.lower(), service)
        return sorted(found.values(), key=lambda s: s.id)

    def _checks_of(self, service_id: str) -> list[Check]:
        return sorted((c for c in self.checks.values() if c.service_id == service_id), key=lambda c: c.check_id)

    def _node_json(self) -> dict[str, Any]:
        addresses = dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), "127.0.0.1")
        return {
            "ID": self.node_id,
            "Node": self.node,
            "Address": "127.0.0.1",
            "Datacenter": self.datacenter,
            "TaggedAddresses": addresses,
            "Meta": {"consul-network-segment": "", "consul-version": VERSION},
            "CreateIndex": _FIRST_INDEX,
            "ModifyIndex": _FIRST_INDEX,
        }

    def _service_json(self, service: Service) -> dict[str, Any]:
        return {
            "ID": service.id,
            "Service": service.name,
            "Tags": list(service.tags),
            "Meta": service.meta,
            "Port": service.port,
            "Address": service.address,
            "TaggedAddresses": _of_address(service) | service.tagged,
            "Weights": {"Passing": service.passing, "Warning": service.warning},
            "EnableTagOverride": service.enable_tag_override,
        }

    def _check_json(self, check: Check) -> dict[str, Any]:
        service = self.services.get(check.service_id)
        return {
            "Node": self.node,
            "CheckID": check.check_id,
            "Name": check.name,
            "Status": check.status,
            "Notes": check.notes,
            "Output": check.output,
            "ServiceID": check.service_id,
            "ServiceName": service.name if service else "",
            "ServiceTags": list(service.tags) if service else [],
            "Type": check.kind,
            "Interval": check.interval,
            "Timeout": check.timeout,
            "ExposedPort": 0,
            "Definition": {},
            "CreateIndex": check.created,
            "ModifyIndex": check.modified,
        }

    def _serf(self) -> dict[str, Any]:
        serf = Check("serfHealth", "Serf Health Status", "", None, "", status="passing")
        return self._check_json(replace(serf, output="Agent alive and reachable", created=_FIRST_INDEX))


def _of_address(service: Service) -> dict[str, dict[str, Any]]:
    """The tagged addresses that Consul makes of an address of numbers."""
    try:
        version = ip_address(service.address).version
    except ValueError:
        return {}
    at = {"Address": service.address, "Port": service.port}
    return {f"lan_ipv{version}": at, f"wan_ipv{version}": at}


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
        raise Refused(400, "the embedded agent does no Connect; expected a registration without it")
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
