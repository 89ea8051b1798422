"""The embedded agent's answers: Consul's JSON for what is registered. Reads the registry and changes nothing."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

from lb.testing._entries import STATUSES, Check, Refused, Service
from lb.testing._registry import FIRST_INDEX, Registry

VERSION: Final = "1.22.2"


class Views:
    """One method for each kind of request, named after its path."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def health_service(self, name: str, tags: list[str], *, passing: bool) -> list[dict[str, Any]]:
        """``/v1/health/service/NAME``."""
        wanted = {tag.lower() for tag in tags}
        found = []
        for service in self._registry.named(name):
            checks = self._registry.checks_of(service.id)
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
        return [
            self._check_json(check)
            for service in self._registry.named(name)
            for check in self._registry.checks_of(service.id)
        ]

    def health_state(self, state: str) -> list[dict[str, Any]]:
        """``/v1/health/state/STATE``."""
        checks = [self._serf(), *(self._check_json(check) for check in self._registry.checks.values())]
        return [check for check in checks if state in ("any", check["Status"])]

    def catalog_services(self) -> dict[str, list[str]]:
        """``/v1/catalog/services``."""
        tags: dict[str, set[str]] = {"consul": set()}
        for service in self._registry.services.values():
            tags.setdefault(service.name, set()).update(service.tags)
        return {name: sorted(tags[name]) for name in sorted(tags)}

    def catalog_service(self, name: str, tags: list[str]) -> list[dict[str, Any]]:
        """``/v1/catalog/service/NAME``."""
        wanted = {tag.lower() for tag in tags}
        node = self._node_json()
        return [
            {
                "ID": self._registry.node_id,
                "Node": self._registry.node,
                "Address": node["Address"],
                "Datacenter": self._registry.datacenter,
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
            for service in self._registry.named(name)
            if wanted <= {tag.lower() for tag in service.tags}
        ]

    def agent_service(self, service_id: str) -> dict[str, Any]:
        """``/v1/agent/service/ID``. Raises `Refused` (404)."""
        if service_id not in self._registry.services:
            raise Refused(404, f"unknown service ID: {service_id}")
        service = self._service_json(self._registry.services[service_id])
        digest = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(service, sort_keys=True)).hex[:16]
        return service | {"ContentHash": digest, "Datacenter": self._registry.datacenter}

    def agent_services(self) -> dict[str, dict[str, Any]]:
        """``/v1/agent/services``."""
        return {
            s.id: self._service_json(s) | {"Datacenter": self._registry.datacenter}
            for s in self._registry.services.values()
        }

    def agent_checks(self) -> dict[str, dict[str, Any]]:
        """``/v1/agent/checks``."""
        local = {"CreateIndex": 0, "ModifyIndex": 0}
        return {check.check_id: self._check_json(check) | local for check in self._registry.checks.values()}

    def agent_health(self, service_id: str) -> tuple[int, dict[str, Any]]:
        """``/v1/agent/health/service/id/ID``: the status code that stands for the health, and the JSON."""
        if service_id not in self._registry.services:
            return 404, {"AggregatedStatus": "critical", "Service": None, "Checks": None}
        checks = self._registry.checks_of(service_id)
        status = max((check.status for check in checks), key=STATUSES.index, default="passing")
        if any(check.kind == "maintenance" for check in checks):
            status = "maintenance"
        service = self._service_json(self._registry.services[service_id]) | {"Datacenter": self._registry.datacenter}
        code = {"passing": 200, "warning": 429}.get(status, 503)
        return code, {
            "AggregatedStatus": status,
            "Service": service,
            "Checks": [self._check_json(check) for check in checks],
        }

    def agent_self(self) -> dict[str, Any]:
        """``/v1/agent/self``, as far as anybody reads it."""
        config = {
            "Datacenter": self._registry.datacenter,
            "PrimaryDatacenter": self._registry.datacenter,
            "NodeName": self._registry.node,
            "NodeID": self._registry.node_id,
            "Revision": "embedded",
            "Server": True,
            "Version": VERSION,
        }
        return {"Config": config, "Member": {"Name": self._registry.node, "Addr": "127.0.0.1", "Status": 1}}

    # ---- their parts ----

    def _node_json(self) -> dict[str, Any]:
        addresses = dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), "127.0.0.1")
        return {
            "ID": self._registry.node_id,
            "Node": self._registry.node,
            "Address": "127.0.0.1",
            "Datacenter": self._registry.datacenter,
            "TaggedAddresses": addresses,
            "Meta": {"consul-network-segment": "", "consul-version": VERSION},
            "CreateIndex": FIRST_INDEX,
            "ModifyIndex": FIRST_INDEX,
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
        service = self._registry.services.get(check.service_id)
        return {
            "Node": self._registry.node,
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
        return self._check_json(replace(serf, output="Agent alive and reachable", created=FIRST_INDEX))


def _of_address(service: Service) -> dict[str, dict[str, Any]]:
    """The tagged addresses that Consul makes of an address of numbers."""
    try:
        version = ip_address(service.address).version
    except ValueError:
        return {}
    at = {"Address": service.address, "Port": service.port}
    return {f"lan_ipv{version}": at, f"wan_ipv{version}": at}
