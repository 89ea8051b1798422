"""What a channel knows at one moment, for people and for pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lb.core.balancer import Balancer


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint of a channel."""

    id: str
    """The instance's id, as the resolver told it; its address when it told none."""
    address: str
    """What is dialled."""
    weight: int
    """Its weight now; with ``change_weights`` that one."""
    zone: str
    """Where it runs, as the resolver told it; empty if it told nothing."""
    connectivity: str
    """``IDLE``, ``CONNECTING``, ``READY`` or ``TRANSIENT_FAILURE``; with ``health=`` of the channel, by that too."""
    breaker: str
    """``CLOSED``, ``OPEN`` or ``HALF_OPEN``."""
    picked: bool
    """Whether calls go there now."""
    why: str
    """``picked``, or why not: ``not connected (...)``, ``breaker open for 0.8 s more (...)``, ``weight 0``."""
    in_flight: int
    """Attempts of this channel that run there."""
    picks: int
    """Attempts of this channel so far."""
    latency_ms: float | None
    """Decayed mean of answers, in milliseconds; None until one came."""
    last_error: str
    """The latest failure in words; empty when there was none. It stays after the endpoint is well again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One channel. ``str(snapshot)`` is a table to read, ``as_dict()`` is ready for JSON."""

    target: str
    """What the channel calls."""
    policy: str
    """The policy's name."""
    rule: str
    """How the latest pick was made, in the policy's words (its picker's ``explain``); empty before the first."""
    state: str
    """Of the whole set, by gRPC's aggregation: ``READY`` while one endpoint is."""
    resolved: bool
    """Whether the resolver has answered, be it with an empty set."""
    note: str
    """Where the set comes from, in the resolver's words."""
    resolver_error: str
    """What the resolver complains of now; the last good set stays in use. Empty when all is well."""
    panic: bool
    """Too few endpoints could be used, so some or all with open breakers are."""
    panic_reason: str
    """Which case of panic it is, and who is used, in words; empty when there is none."""
    retry_budget: float
    """Retries and hedges that could be made now."""
    endpoints: tuple[EndpointSnapshot, ...]
    """All endpoints of the set, in the resolver's order."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return {**asdict(self), "endpoints": [asdict(endpoint) for endpoint in self.endpoints]}

    def __str__(self) -> str:
        head = f"{self.target}  {self.policy}  {self.state}  retry budget {self.retry_budget:.0f}"
        if self.panic:
            head += f"  PANIC: {self.panic_reason}"
        lines = [head]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
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
                in_flight=c.running,
                picks=c.picks,
                latency_ms=c.load.latency_s * 1000 if c.load.samples else None,
                last_error=c.last_error,
            )
        )
    resolution = balancer.resolution
    return Snapshot(
        target=balancer.target,
        policy=balancer.policy.name,
        rule=balancer.rule(),
        state=balancer.state().name,
        resolved=resolution is not None,
        note=resolution.note if resolution else "",
        resolver_error=balancer.resolver_error,
        panic=bool(admission.panic),
        panic_reason=admission.panic,
        retry_budget=retry_budget,
        endpoints=tuple(endpoints),
    )
