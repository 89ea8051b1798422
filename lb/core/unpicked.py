"""Why a channel has no endpoint to pick, in the words that its callers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lb.core.candidate import Candidate
from lb.core.members import Members

RESOLVER_GRACE_S = 1.0
"""How long calls wait for the first answer of a resolver that reports errors; then they fail, or wait for ready."""
_SHOWN = 5
"""A message names at most this many endpoints, and this many reasons."""


@dataclass(frozen=True, slots=True)
class Unpicked:
    """There is nothing to pick. ``wait``: that may pass by itself; else calls should fail.

    ``full``: every admitted endpoint is at its concurrency limit.
    ``raised``: what a user's policy raised when it was asked; the call fails with that.
    """

    message: str
    wait: bool
    full: bool = False
    raised: Exception | None = None


def none_ready(target: str, members: Members, now: float) -> Unpicked:
    """Why none of a channel's endpoints is READY."""
    candidates = members.candidates
    if members.resolution is None:
        why = f": {members.resolver_error}" if members.resolver_error else ""
        # A source that cannot be read for a while is away: calls should say so, as gRPC's do.
        since = members.resolver_failing_since
        wait = since is None or now < since + RESOLVER_GRACE_S
        return Unpicked(f"{target} is not resolved yet{why}", wait)
    if not candidates:
        note = members.resolution.note or "the resolver returned an empty list"
        return Unpicked(f"{target} has no endpoint: {note}", wait=False)
    failing = [c for c in candidates.values() if c.failing_since is not None]
    if len(failing) < len(candidates):
        number = len(candidates)
        return Unpicked(f"{target}: still connecting ({number} endpoint{'s' * (number != 1)})", wait=True)
    return Unpicked(f"no endpoint of {target} can be reached: {_troubles(failing)}", wait=False)


def _troubles(failing: Sequence[Candidate]) -> str:
    """Why these have no connection: each reason once, with the endpoints it holds for."""
    reasons: dict[str, list[Candidate]] = {}
    for candidate in failing:
        reasons.setdefault(candidate.trouble or "no connection", []).append(candidate)
    told = []
    for reason, those in list(reasons.items())[:_SHOWN]:
        names = ", ".join(str(candidate.endpoint) for candidate in those[:_SHOWN])
        more = f" and {len(those) - _SHOWN} more" if len(those) > _SHOWN else ""
        told.append(f"{names}{more}: {reason}")
    left = sum(len(those) for those in list(reasons.values())[_SHOWN:])
    return "; ".join(told) + (f"; and {left} more" if left else "")
