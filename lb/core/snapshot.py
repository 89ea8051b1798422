"""What a channel knows at one moment, for people and for pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lb.core.balancer import Balancer


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """One endpoint of a channel, at one moment."""

    id: str
    """Its id; the address if it has none of its own."""
    address: str
    """What the channel connects to."""
    weight: int
    """Its weight now, as the resolver or ``change_weights`` says."""
    zone: str
    """Where it runs, as the resolver says; may be empty."""
    connectivity: str
    """``IDLE``, ``CONNECTING``, ``READY`` or ``TRANSIENT_FAILURE``. With ``health=``, health counts as well."""
    breaker: str
    """``CLOSED``, ``OPEN`` or ``HALF_OPEN``."""
    picked: bool
    """Whether it gets calls now."""
    why: str
    """``picked``, or why not: ``not connected (...)``, ``breaker open for 0.8 s more (...)``, ``weight 0``."""
    in_flight: int
    """How many attempts of this channel run on it."""
    picks: int
    """How many attempts of this channel were sent to it so far."""
    latency_ms: float | None
    """The mean latency of its good answers in milliseconds, recent ones counting more; None before the first."""
    last_error: str
    """The latest failure in words, also after it has recovered. Empty if there was none."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A channel at one moment. ``str(snapshot)`` is a table to read, ``as_dict()`` is ready for JSON."""

    target: str
    """The target, as it was given; of a resolver of your own, its ``target``, or its type's name."""
    policy: str
    """The policy's name."""
    rule: str
    """How the latest pick was made, in the policy's own words (``explain()`` of its picker). Empty before the first."""
    state: str
    """gRPC's connectivity state of the whole channel: ``READY`` if one endpoint is."""
    resolved: bool
    """Whether the resolver has answered, even if it found no endpoint."""
    note: str
    """Where the endpoints come from, in the resolver's words."""
    resolver_error: str
    """Why the resolver cannot read its source now. The last endpoints stay in use. Empty if all is well."""
    panic: bool
    """Whether too few endpoints can be used, so that some or all with open breakers are used, too."""
    panic_reason: str
    """Why there is a panic, and which endpoints are used, in words. Empty if there is none."""
    retry_budget: float
    """How many retries and hedges could be sent now."""
    endpoints: tuple[EndpointSnapshot, ...]
    """All endpoints, in the resolver's order."""

    def as_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists and plain values."""
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
