"""The state of the embedded agent: the instances, their checks, and the indexes. No I/O and no clock.

The rules are those of Consul 1.22, as read off a real one: a registration's check keeps its status when it is
registered again, the index of a service moves only when that service changed, and a service that never was has the
catalog's index.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from lb.testing._entries import Check, Refused, Service, registered

FIRST_INDEX = 10
_NO_REASON = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."


class Registry:
    """What one agent, which is its own server, knows. ``changed`` is called after every change of the index."""

    def __init__(self, node: str, datacenter: str, changed: Callable[[], None]) -> None:
        self.node = node
        self.datacenter = datacenter
        self._changed = changed
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new node, the index from the beginning."""
        self.node_id = str(uuid.uuid4())
        self.index = FIRST_INDEX
        self.services: dict[str, Service] = {}
        self.checks: dict[str, Check] = {}
        self._indexes: dict[str, int] = {}
        self._extinct = 0

    def set_index(self, index: int) -> None:
        """Set every index, forwards or backwards, as restoring a snapshot does."""
        self.index = index
        self._indexes = dict.fromkeys(self._indexes, index)
        self._extinct = min(self._extinct, index)
        self._changed()

    # ---- changes ----

    def register(self, body: object, *, replace_checks: bool, now: float) -> list[Check]:
        """Register an instance from the request's JSON. Its checks; raises `Refused`."""
        service, checks = registered(body)
        before = self.services.get(service.id)
        if before is not None and before.name.lower() != service.name.lower():
            self.deregister(service.id)
            before = None
        dirty = before != service
        if replace_checks:
            wanted = {check.check_id for check in checks}
            for old in [c for c in self.checks_of(service.id) if c.check_id not in wanted and c.probe is not None]:
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
        """Remove an instance and its checks. Raises `Refused` (404)."""
        service = self.service(service_id)
        del self.services[service_id]
        for check in self.checks_of(service_id):
            del self.checks[check.check_id]
        self._bump(service.name)
        if all(other.name.lower() != service.name.lower() for other in self.services.values()):
            del self._indexes[service.name.lower()]
            self._extinct = self.index

    def maintenance(self, service_id: str, *, enable: bool, reason: str, now: float) -> None:
        """Switch an instance's maintenance mode. Raises `Refused` (404)."""
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

    # ---- reading ----

    def service(self, service_id: str) -> Service:
        """The instance. Raises `Refused` (404) in the words of the agent's writing endpoints."""
        if service_id not in self.services:
            words = f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
            raise Refused(404, words)
        return self.services[service_id]

    def check(self, check_id: str) -> Check:
        """The check. Raises `Refused` (404)."""
        if check_id not in self.checks:
            words = f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.'
            raise Refused(404, words)
        return self.checks[check_id]

    def index_of(self, name: str) -> int:
        """The index of a service: its own, else the last extinction's, else the catalog's."""
        return self._indexes.get(name.lower()) or self._extinct or self.index

    def named(self, name: str) -> list[Service]:
        """The catalog minds no case, neither of names nor of ids; the agent minds it in ids."""
        found: dict[str, Service] = {}
        for service in self.services.values():
            if service.name.lower() == name.lower():
                found.setdefault(service.id.lower(), service)
        return sorted(found.values(), key=lambda s: s.id)

    def checks_of(self, service_id: str) -> list[Check]:
        return sorted((c for c in self.checks.values() if c.service_id == service_id), key=lambda c: c.check_id)

    def _bump(self, name: str) -> None:
        self.index += 1
        self._indexes[name.lower()] = self.index
        self._changed()
