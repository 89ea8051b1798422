"""Servers in virtual time: a policy picks, each call takes as long as its server says, and ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random

from lb.core.outcome import OK, Outcome
from lb.core.policies import Policy
from tests.core.backends import Backend

Service = Callable[[Backend, Random], tuple[float, Outcome]]
"""How long a call takes on a server, in seconds, and how it ends. Calls in flight include the new one."""


def takes(seconds: dict[str, float], spread: float = 0.25, otherwise: float = 0.005) -> Service:
    """Servers with so much latency each, scattered by a quarter."""
    return lambda server, rng: (
        seconds.get(server.endpoint.id, otherwise) * rng.uniform(1 - spread, 1 + spread),
        OK,
    )


class Fleet:
    """A closed loop: so many calls in flight, and a new one whenever one ends."""

    def __init__(self, policy: Policy, servers: Sequence[Backend], service: Service, seed: int = 1) -> None:
        self.policy = policy
        self.servers = list(servers)
        self.service = service
        self.rng = Random(seed)
        self.now = 1000.0
        self.latencies: list[float] = []
        self.count = Counter[str]()
        self.most = 0
        """The most calls that were ever in flight on one server."""
        self._flying: list[tuple[float, int, float, Backend, Outcome]] = []
        self._serial = 0
        self.picker = policy.picker(self.servers, None)

    def change(self, servers: Sequence[Backend]) -> None:
        """Another set from now on."""
        self.servers = list(servers)
        self.picker = self.policy.picker(self.servers, self.picker)

    def start(self) -> None:
        """One more call in flight."""
        server = self.picker.pick(None, self.now, self.rng)
        assert isinstance(server, Backend)
        server.in_flight += 1
        self.count[server.endpoint.id] += 1
        self.most = max(self.most, server.in_flight)
        took, outcome = self.service(server, self.rng)
        self._serial += 1
        heappush(self._flying, (self.now + took, self._serial, self.now, server, outcome))

    def end(self) -> None:
        """The next call that is over, is over."""
        self.now, _, started, server, outcome = heappop(self._flying)
        server.in_flight -= 1
        self.latencies.append(self.now - started)
        ended = getattr(self.policy, "ended", None)
        if ended is not None:
            ended(server, outcome, self.now - started, self.now)

    def run(self, calls: int, in_flight: int) -> Fleet:
        """So many calls, ``in_flight`` at a time; what was in flight goes on in the next run."""
        while len(self._flying) < in_flight:
            self.start()
        for _ in range(calls):
            self.end()
            self.start()
        return self

    def forget(self) -> None:
        """Count anew."""
        self.latencies.clear()
        self.count.clear()
        self.most = 0

    def share(self, name: str) -> float:
        """The part of all calls that this server had."""
        return self.count[name] / self.count.total()

    def quantile(self, q: float) -> float:
        """The latency that this part of the calls kept below, in seconds."""
        return sorted(self.latencies)[int(q * len(self.latencies))]
