"""A policy of your own: a fifth of the calls goes to the canary, unless it fails.

::

    python examples/own_policy.py

It starts the servers that it calls. A policy is any object with a ``name`` and a ``picker``; everything else here
(`ended`, `explain`) is optional. docs/api.md has the whole protocol.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import lb
from lb import CallInfo, Candidate, Outcome, Picker, Verdict
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY, answered_by, fail


@dataclass(frozen=True)
class Canary:
    """Only settings: one object may serve many channels.

    Endpoints whose metadata says ``track=canary`` get ``share`` of the calls. One that fails
    ``failures`` times in a row gets none for ``pause_s`` seconds.
    """

    share: float = 0.1
    failures: int = 3
    pause_s: float = 10.0
    name: str = "canary"
    spreads: ClassVar[bool] = True  # picks do not depend on the call, so endpoints can be compared by their answers

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Picker:
        """Called when the endpoints that may be picked have changed. Do slow work here, not in ``pick``."""
        canaries = [c for c in candidates if c.endpoint.metadata.get("track") == "canary"]
        others = [c for c in candidates if c not in canaries]
        for canary in canaries:
            canary.stats = canary.stats or Record()  # for this policy's own use; it stays with the endpoint
        return CanaryPicker(self, canaries, others or canaries)

    def ended(self, candidate: Candidate, outcome: Outcome, duration_s: float, now: float) -> None:
        """Called once after each attempt, however it ended. Use ``now`` as the clock."""
        record = candidate.stats
        if record is None or outcome.verdict is Verdict.IGNORED:
            return
        record.failures = record.failures + 1 if outcome.verdict is Verdict.FAILURE else 0
        if record.failures >= self.failures:
            record.failures, record.paused_until = 0, now + self.pause_s


@dataclass
class Record:
    """What one channel knows about one canary."""

    failures: int = 0
    paused_until: float = 0.0


class CanaryPicker:
    """Picks among one set of endpoints. ``pick`` runs in each call: fast, without I/O, random only by ``rng``."""

    def __init__(self, policy: Canary, canaries: Sequence[Candidate], others: Sequence[Candidate]) -> None:
        self.policy = policy
        self.canaries = canaries
        self.others = others

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """One of the candidates."""
        if self.canaries and rng.random() < self.policy.share:
            canary = rng.choice(self.canaries)
            if now >= canary.stats.paused_until:
                return canary
        return rng.choice(self.others)

    def explain(self) -> str:
        """The rule in words, for spans and for people."""
        return f"{self.policy.share:.0%} to {len(self.canaries)} canary, the rest to {len(self.others)} others"


class Fixed:
    """The endpoints of this example; see own_resolver.py for a resolver that does something."""

    def __init__(self, *endpoints: lb.Endpoint) -> None:
        self.endpoints = endpoints

    def start(self, listener: lb.Listener) -> None:
        """Report the endpoints once; they never change."""
        listener.update(lb.Resolution(self.endpoints))

    def close(self) -> None:
        """There is nothing to stop."""


async def calls(channel: Any, count: int) -> Counter[str]:
    """How many of ``count`` calls, one after another, each server answered."""
    answered: Counter[str] = Counter()
    echo = channel.unary_unary(UNARY_UNARY)
    for _ in range(count):
        call = echo(b"hello", timeout=5)
        await call
        answered[answered_by(await call.trailing_metadata())] += 1
    return answered


async def main() -> None:
    """The canary works, then it fails."""
    async with AsyncExitStack() as stack:
        one, two, new = [await stack.enter_async_context(Backend(name)) for name in ("one", "two", "new")]
        resolver = Fixed(
            lb.Endpoint(one.address, id="one"),
            lb.Endpoint(two.address, id="two"),
            lb.Endpoint(new.address, id="new", metadata={"track": "canary"}),
        )
        policy = Canary(share=0.2, pause_s=60)
        retry = lb.Retry(idempotent=[UNARY_UNARY])  # a call that fails on the canary goes to another server
        async with lb.aio.channel(resolver, policy=policy, retry=retry) as channel:
            print("the canary is well:", dict(sorted((await calls(channel, 300)).items())))
            new.received.clear()
            new.always(fail())
            print("the canary fails:", dict(sorted((await calls(channel, 300)).items())))
            print(f"it was asked {len(new.received)} times")


if __name__ == "__main__":
    asyncio.run(main())
