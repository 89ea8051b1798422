"""What an instance's entry in Consul should be, and what an answer of the agent means for it.

Only what is missing is registered again. What others have changed (a weight, a tag, metadata, a tagged
address, maintenance) is kept: it is read from each answer, and registered again if Consul forgot
it. Our own maintenance, which says that an instance is leaving, differs from an operator's by its reason. If an
instance died while it was leaving, its successor does not stay in maintenance.

``step`` compares what an agent knows with what should be::

    knows nothing                    register
    knows another one by our id      not registered by us yet: take the id over; else: give way
    knows us, token is another one   register with the check: the agent writes what a check says to the
                                     catalog with the token that it was registered with
    knows us, something was set      register without the check, whose interval would begin again
    knows us, the check is gone      register with the check

Weight 0: Consul refuses it for a passing instance, so the instance is registered with weight 1 and the
metadata ``weight=0``, which the resolver of ``lb`` reads as 0. Other clients of Consul see 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lb.core.consul_health import SERVICE_MAINTENANCE, WEIGHT_META
from lb.core.peers import one_line
from lb.core.target import join_host_port

LEAVING: Final = "lb: this instance is leaving"
"""The reason of our own maintenance."""

Json = dict[str, Any]

# Consul adds these itself, from the address.
_OF_CONSUL = ("lan_ipv4", "wan_ipv4", "lan_ipv6", "wan_ipv6")


@dataclass(frozen=True, slots=True)
class Step:
    """What to do at an agent: register (with ``body``), then switch maintenance; None: leave it as it is."""

    body: Json | None = None
    maintenance: str | None = None
    """Switch it on, with this reason; "" switches it off."""
    words: str = ""
    """For the log, when it is done."""
    remark: str = ""
    """What an operator should hear of."""
    gives_way: bool = False
    """The id is another instance's."""


class Presence:
    """One instance. Checks nothing: `lb.aio.registration` has done that.

    ``check`` is Consul's definition without a status, or None; ``status`` the one it begins with.
    ``tagged`` are tagged addresses in Consul's shape.
    """

    def __init__(
        self,
        service: str,
        id: str,
        host: str,
        port: int,
        *,
        weight: int,
        warning_weight: int,
        tags: Sequence[str],
        meta: Mapping[str, str],
        tagged: Mapping[str, Json],
        check: Mapping[str, Any] | None,
        status: str,
    ) -> None:
        self.service = service
        self.id = id
        self.host = host
        self.port = port
        self.weight = weight
        self.warning_weight = warning_weight
        self.status = status
        self._tags = tuple(tags)
        self._meta = dict(meta)
        self._tagged = dict(tagged)
        self._check = check
        self._tag_override = False
        self._maintenance: str | None = None
        self._weight_set = False

    @property
    def where(self) -> str:
        """``host:port``."""
        return join_host_port(self.host, self.port)

    def set_weight(self, weight: int, warning: int) -> None:
        """To be registered with the next step."""
        self.weight, self.warning_weight, self._weight_set = weight, warning, True

    def registered(self) -> None:
        """What was set is in Consul now."""
        self._weight_set = False

    def ours(self, known: Json | None) -> bool:
        """Whether the entry is this instance's, and not that of another one with its id."""
        if known is None:
            return False
        service = known["Service"]
        name = str(service.get("Service", ""))
        return name.lower() == self.service.lower() and self._same_address(service)

    def step(self, known: Json | None, *, owned: bool, rotated: bool) -> Step:
        """``known``: the agent's ``/v1/agent/health/service/id/ID``, or None. ``owned``: it was registered there by us.

        ``rotated``: with another token than the one that is to be used now.
        """
        if known is None:
            words = "registered again, because the agent had lost the registration" if owned else "registered"
            return Step(self._body(with_check=True), self._maintenance, words)
        if not self.ours(known):
            return self._of_another(known, owned=owned)
        reason = self._reason(known)
        if not owned:
            self._inherit(known)
            body, words = self._body(with_check=True), "registered"
        else:
            has_check = self._take_over(known, reason)
            if rotated:
                body, words = self._body(with_check=True), "registered again, with the new token"
            elif self._weight_set:
                body, words = self._body(with_check=False), "changed"
            elif not has_check:
                body, words = self._body(with_check=True), "registered again, because the agent had lost the check"
            else:
                body, words = None, ""
        return Step(body, self._switch(reason), words, self._advice(known))

    def _of_another(self, known: Json, *, owned: bool) -> Step:
        service = known["Service"]
        where = join_host_port(str(service.get("Address")), service.get("Port") or 0)
        other = one_line(f"{service.get('Service')} at {where}")
        if owned:
            remark = f"another process registered this id ({other}); this instance is no longer registered"
            return Step(remark=f"{remark}. Give each instance an id of its own", gives_way=True)
        reason = self._reason(known)
        if str(service.get("Service", "")).lower() == self.service.lower():
            self._inherit(known)
        elif reason != LEAVING:
            reason = None  # another service's maintenance is not ours, and goes with its entry
        remark = ""
        if _passing(known):
            remark = (
                f"replaced the registration of {other}, which still passed its check. Do two processes use this id?"
            )
        return Step(self._body(with_check=True), self._switch(reason), f"registered in place of {other}", remark)

    def _take_over(self, known: Json, reason: str | None) -> bool:
        """Take over what Consul has now. False when the check is missing."""
        service = known["Service"]
        meta = dict(service.get("Meta") or {})
        weights = service.get("Weights") or {}
        zero = meta.pop(WEIGHT_META, "") == "0"
        if not self._weight_set:
            self.weight = 0 if zero else int(weights.get("Passing", 1))
            self.warning_weight = int(weights.get("Warning", 1))
        self._tags, self._meta, self._tagged = tuple(service.get("Tags") or ()), meta, self._addresses(service)
        self._tag_override = bool(service.get("EnableTagOverride"))
        self._maintenance = None if reason == LEAVING else reason
        if self._check is None:
            return True
        for check in known.get("Checks") or ():
            if check["CheckID"] == f"service:{self.id}":
                self.status = check["Status"]
                return True
        return False

    def _inherit(self, known: Json) -> None:
        """A predecessor's entry: keep what is set there and not by us, and maintenance that is not its own."""
        service = known["Service"]
        meta = {key: value for key, value in (service.get("Meta") or {}).items() if key != WEIGHT_META}
        self._meta = meta | self._meta
        self._tagged = self._addresses(service) | self._tagged
        reason = self._reason(known)
        if reason != LEAVING:
            self._maintenance = reason or self._maintenance

    def _addresses(self, service: Json) -> dict[str, Json]:
        """The tagged addresses without those that Consul makes from the address."""
        own = {"Address": service.get("Address"), "Port": service.get("Port")}
        tagged = service.get("TaggedAddresses") or {}
        return {label: at for label, at in tagged.items() if label not in _OF_CONSUL or at != own}

    def _reason(self, known: Json) -> str | None:
        """Why it is in maintenance; None when it is not."""
        for check in known.get("Checks") or ():
            if check["CheckID"] == f"{SERVICE_MAINTENANCE}{self.id}":
                return str(check.get("Notes") or "no reason given")
        return None

    def _switch(self, reason: str | None) -> str | None:
        """How to switch maintenance that is on for ``reason`` (None: off): a reason, "" for off, None to leave it."""
        if self._maintenance is not None:
            return self._maintenance if reason is None else None
        return "" if reason == LEAVING else None

    def _advice(self, known: Json) -> str:
        """What to do about a check that can never pass."""
        if self._check is None or "GRPC" not in self._check:
            return ""
        for check in known.get("Checks") or ():
            output = str(check.get("Output") or "")
            if check["CheckID"] != f"service:{self.id}" or check["Status"] == "passing":
                continue
            if "code = Unimplemented" in output:
                return (
                    "the server does not serve grpc.health.v1.Health, which Consul's check asks: add the servicer of"
                    " grpcio-health-checking to it, or register it with check='tcp'"
                )
            name = str(self._check["GRPC"]).partition("/")[2]
            if "code = NotFound" in output:
                whose = f"of {name!r}" if name else "of the whole server (the name '')"
                return (
                    f"the server's health service does not know the health {whose}, which Consul's check asks: set it"
                )
        return ""

    def _same_address(self, service: Json) -> bool:
        return (service.get("Address"), service.get("Port")) == (self.host, self.port)

    def _body(self, *, with_check: bool) -> Json:
        """The registration as ``/v1/agent/service/register`` takes it."""
        body: Json = {
            "Name": self.service,
            "ID": self.id,
            "Address": self.host,
            "Port": self.port,
            "Weights": {"Passing": max(1, self.weight), "Warning": self.warning_weight},
            "Tags": list(self._tags),
            "Meta": self._meta | ({WEIGHT_META: "0"} if self.weight == 0 else {}),
            "TaggedAddresses": dict(self._tagged),
            "EnableTagOverride": self._tag_override,
        }
        if self._check is not None and with_check:
            # In maintenance: no calls may come between the registration and the switch.
            status = "critical" if self._maintenance is not None else self.status
            body["Check"] = {**self._check, "Status": status}
        return body

    def __repr__(self) -> str:
        return f"{self.id!r} of {self.service!r} at {self.where}, weight={self.weight}"


def _passing(known: Json) -> bool:
    return all(check["Status"] == "passing" for check in known.get("Checks") or ())
