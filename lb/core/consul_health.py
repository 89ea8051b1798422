"""What Consul's ``/v1/health/service/NAME`` says, read into endpoints.

The question is asked without ``passing``: with it Consul drops all that is not fully passing,
and an instance in *warning*, which has a weight of its own for that, would be lost. So what is
critical or in maintenance is sorted out here.

Weight 0. Consul refuses a passing weight below 1. An instance that shall get no traffic while
others are there is registered with ``Meta = {"weight": "0"}`` beside a weight of 1; this meta
entry is honoured for ``"0"`` only, so that a weight changed in Consul always counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from lb.core.endpoint import MOST_WEIGHT, Endpoint
from lb.core.peers import escaped, one_line
from lb.core.target import join_host_port

Status = Literal["passing", "warning", "critical", "maintenance", "no port"]

RIGHTS: Final = "service:read for the service and node:read for its nodes"
"""What a token must be allowed, to read a service's health."""

WEIGHT_META: Final = "weight"
ZONE_META: Final = "zone"
_NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE: Final = "_service_maintenance:"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service, as Consul has it."""

    endpoint: Endpoint
    """Id, address, weight, zone and metadata."""
    status: Status
    """passing, warning, critical, maintenance, or "no port"."""
    judged: bool
    """False until each check has run once: before that it is critical, without output."""
    origin: tuple[str, int]
    """The node's id and the creation index: the same for as long as Consul remembers this registration."""
    node: str = ""
    """The node's name."""
    why: str = field(default="", compare=False)
    """What the first critical check said, in one line."""

    @property
    def usable(self) -> bool:
        """Whether traffic may go there."""
        return self.status in ("passing", "warning")


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: ``X-Consul-Index`` and the instances in Consul's order, each once.

    ``filtered``: there are more, which this token may not read. ``streamed``: from Consul's streaming
    backend, which filters as well and does not say so (1.22).
    """

    index: int
    instances: tuple[Instance, ...]
    filtered: bool = False
    streamed: bool = False


def parse_answer(headers: Mapping[str, str], body: object) -> Answer:
    """Reads an answer of status 200. ``headers`` must ignore case; ``body`` is the decoded JSON.

    Raises ``ValueError`` when it cannot be used: not Consul's shape, no index, or an empty list
    from an agent that knows no leader (it may simply not have loaded its state yet), or for a token
    that may not read: Consul answers that with 200 and what is left after filtering.
    """
    try:
        index = int(headers["X-Consul-Index"])
    except (KeyError, ValueError):
        raise ValueError("the answer has no X-Consul-Index; is this Consul's HTTP port?") from None
    if not isinstance(body, list):
        raise ValueError(f"the answer is a {type(body).__name__}; expected a list of instances")
    streamed = headers.get("X-Consul-Query-Backend", "").lower() == "streaming"
    # Consul's streaming backend, which serves the blocking queries, answers "false" on a
    # healthy cluster too (1.22): there the header means nothing.
    if headers.get("X-Consul-KnownLeader", "true").lower() == "false" and not streamed and not body:
        raise ValueError("the agent has no cluster leader yet, so its empty answer is not used")
    filtered = headers.get("X-Consul-Results-Filtered-By-ACLs", "").lower() == "true"
    if filtered and not body:
        raise ValueError(f"Consul's ACLs let this token read no instance; it needs {RIGHTS}")
    try:
        return Answer(max(index, 0), _each_once([_instance(entry) for entry in body]), filtered, streamed)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer is not in the shape of /v1/health/service: {error!r}") from error


def _instance(entry: dict[str, Any]) -> Instance:
    service, node, checks = entry["Service"], entry["Node"], entry.get("Checks") or []
    status, judged, why = _status(checks)
    meta: dict[str, str] = service.get("Meta") or {}
    host = service.get("Address") or node["Address"]
    port = int(service.get("Port") or 0)
    if not port:
        status, judged, why = "no port", True, ""
    endpoint = Endpoint(
        escaped(join_host_port(host, port)),
        id=escaped(service.get("ID") or service["Service"]),  # its owner chooses it, and messages name it
        weight=_weight(service.get("Weights") or {}, status, meta),
        zone=meta.get(ZONE_META, ""),
        metadata=MappingProxyType(dict(meta)),
    )
    origin = (str(node.get("ID") or node["Node"]), int(service.get("CreateIndex") or 0))
    return Instance(endpoint, status, judged, origin, escaped(str(node["Node"])), why)


def _status(checks: list[dict[str, Any]]) -> tuple[Status, bool, str]:
    """Consul's aggregate of an instance's own and its node's checks, whether it was judged, and why it is critical."""
    worst: Status = "passing"
    judged, why = False, ""
    for check in checks:
        check_id, status = check["CheckID"], check["Status"]
        if check_id == _NODE_MAINTENANCE or check_id.startswith(SERVICE_MAINTENANCE):
            return "maintenance", True, ""
        if status == "warning":
            worst = "critical" if worst == "critical" else "warning"
        elif status != "passing":
            worst = "critical"
            output = check.get("Output") or ""
            judged = judged or bool(output)
            why = why or one_line(" ".join(str(output).split()))
    return worst, judged, why


def _weight(weights: Mapping[str, Any], status: Status, meta: Mapping[str, str]) -> int:
    if meta.get(WEIGHT_META) == "0":
        return 0
    # Consul fills both in; entries written straight to the catalog may lack them.
    return min(MOST_WEIGHT, max(0, int(weights.get("Warning" if status == "warning" else "Passing", 1))))


def _each_once(entries: list[Instance]) -> tuple[Instance, ...]:
    """The same id at the same address is one instance registered at two agents: the better entry counts."""
    best: dict[tuple[str, str], Instance] = {}
    for instance in entries:
        key = instance.endpoint.key
        if key not in best or _RANKS[instance.status] < _RANKS[best[key].status]:
            best[key] = instance
    return tuple(best.values())


_RANKS: Final[dict[Status, int]] = {"passing": 0, "warning": 1, "critical": 2, "maintenance": 3, "no port": 4}
