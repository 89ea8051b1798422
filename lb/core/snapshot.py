"""What a channel knows at one moment, for people and for pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lb.core.balancer import Balancer


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint. ``latency_ms`` is None until an attempt ended; ``why`` says why it is or is not picked."""

    id: str
    address: str
    weight: int
    zone: str
    connectivity: str
    breaker: str
    picked: bool
    why: str
    in_flight: int
    picks: int
    latency_ms: float | None
    last_error: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One channel. ``str(snapshot)`` is a table to read, ``as_dict()`` is ready for JSON."""

    target: str
    policy: str
    state: str
    resolved: bool
    note: str
    resolver_error: str
    panic: bool
    retry_budget: float
    endpoints: tuple[EndpointSnapshot, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return {**asdict(self), "endpoints": [asdict(endpoint) for endpoint in self.endpoints]}

    def __str__(self) -> str:
        head = f"{self.target}  {self.policy}  {self.state}  retry budget {self.retry_budget:.0f}"
        if self.panic:
            head += "  PANIC: every breaker is open, all are used"
        lines = [head]
        if self.resolver_error:
            lines.append(f"  resolver: {self.resolver_error}")
        if not self.endpoints:
            lines.append(f"  no endpoints: {self.note or ('none known' if self.resolved else 'not resolved yet')}")
        else:
            rows = [("id", "address", "weight", "state", "in flight", "picks", "latency", "why")]
            rows += [
                (
                    e.id,
                    e.address,
                    str(e.weight),
                    f"{e.connectivity}, {e.breaker}",
                    str(e.in_flight),
                    str(e.picks),
                    "-" if e.latency_ms is None else f"{e.latency_ms:.1f} ms",
                    e.why,
                )
                for e in self.endpoints
            ]
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def snapshot(balancer: Balancer, retry_budget: float, now: float) -> Snapshot:
    """Look at a balancer without changing what it would pick."""
    admission = balancer.admission(now)
    endpoints = []
    for c in balancer.candidates:
        refusal = admission.refusal(c, now)
        endpoints.append(
            EndpointSnapshot(
                id=c.endpoint.id,
                address=c.endpoint.address,
                weight=c.endpoint.weight,
                zone=c.endpoint.zone,
                connectivity=c.connectivity.name,
                breaker=c.breaker.state.name,
                picked=not refusal,
                why=refusal or "picked",
                in_flight=c.in_flight,
                picks=c.picks,
                latency_ms=c.load.latency_s * 1000 if c.load.samples else None,
                last_error=c.last_error,
            )
        )
    resolution = balancer.resolution
    return Snapshot(
        target=balancer.target,
        policy=balancer.policy.name,
        state=balancer.state().name,
        resolved=resolution is not None,
        note=resolution.note if resolution else "",
        resolver_error=balancer.resolver_error,
        panic=admission.panic,
        retry_budget=retry_budget,
        endpoints=tuple(endpoints),
    )
