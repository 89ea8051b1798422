"""What Consul knows of instances, as its HTTP API says it."""

from __future__ import annotations

from typing import Any

from lb.core.consul_health import Answer, parse_answer
from lb.core.presence import Presence

CHECK = {"GRPC": "127.0.0.1:7", "Interval": "1s"}


def presence(**more: Any) -> Presence:
    """An instance of `shop`."""
    settings: dict[str, Any] = {
        "weight": 2,
        "warning_weight": 1,
        "tags": ["t"],
        "meta": {"pid": "1"},
        "tagged": {"grpc": {"Address": "grpc://127.0.0.1:7", "Port": 7}},
        "check": CHECK,
        "status": "critical",
    } | more
    return Presence("shop", "s1", "127.0.0.1", 7, **settings)


def known(
    *,
    name: str = "shop",
    port: int = 7,
    passing: int = 2,
    tags: tuple[str, ...] = ("t",),
    meta: dict[str, str] | None = None,
    tagged: dict[str, Any] | None = None,
    check: str = "passing",
    output: str = "",
    maintenance: str | None = None,
) -> dict[str, Any]:
    """What the agent says of it."""
    checks = [{"CheckID": "service:s1", "Status": check, "Output": output}] if check else []
    if maintenance is not None:
        checks.append({"CheckID": "_service_maintenance:s1", "Status": "critical", "Notes": maintenance})
    own = {"Address": "127.0.0.1", "Port": port}
    return {
        "Service": {
            "Service": name,
            "Address": "127.0.0.1",
            "Port": port,
            "Weights": {"Passing": passing, "Warning": 1},
            "Tags": list(tags),
            "Meta": meta if meta is not None else {"pid": "1"},
            "TaggedAddresses": {"lan_ipv4": own, "wan_ipv4": own} | (tagged or {}),
        },
        "Checks": checks,
    }


def entry(
    id: str = "a-1",
    port: int = 1,
    *,
    status: str = "passing",
    output: str = "",
    address: str = "127.0.0.1",
    node: str = "n1",
    node_id: str = "",
    created: int = 7,
    weights: dict[str, int] | None = None,
    meta: dict[str, str] | None = None,
    maintenance: bool = False,
    node_status: str = "passing",
) -> dict[str, Any]:
    """One element of /v1/health/service, as Consul writes it."""
    checks = [
        {"CheckID": "serfHealth", "Status": node_status, "Output": "Agent alive"},
        {"CheckID": f"service:{id}", "Status": status, "Output": output},
    ]
    if maintenance:
        checks.append({"CheckID": f"_service_maintenance:{id}", "Status": "critical", "Output": ""})
    return {
        "Node": {"ID": node_id or node, "Node": node, "Address": "10.9.9.9"},
        "Service": {
            "ID": id,
            "Service": "a",
            "Address": address,
            "Port": port,
            "Weights": weights or {"Passing": 1, "Warning": 1},
            "Meta": meta,
            "CreateIndex": created,
        },
        "Checks": checks,
    }


def answer(index: int, *entries: dict[str, Any], filtered: bool = False, streamed: bool = False) -> Answer:
    """A good answer."""
    headers = {"X-Consul-Index": str(index), "X-Consul-KnownLeader": "true"}
    if streamed:
        headers["X-Consul-Query-Backend"] = "streaming"
    if filtered:
        headers["X-Consul-Results-Filtered-By-ACLs"] = "true"
    return parse_answer(headers, list(entries))
