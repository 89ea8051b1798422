"""What each policy makes of one bad endpoint, in virtual time: its share, the failures, the tail, and its return.

Eight calls are in flight over three endpoints, through the real core with its defaults. From the second second to
the fifth one endpoint misbehaves; ``python -m tests.core.test_faults`` prints a table of all faults and policies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from lb.core.call import Call
from lb.core.outcome import OK, Outcome
from lb.core.policies import P2C, LeastRequest, Policy, RoundRobin, WeightedRoundRobin, ZoneAware
from tests.core.rig import INTERNAL, REFUSED, TIMED_OUT, UNAVAILABLE
from tests.core.simulation import Simulation

BEGIN, END, CLOSE = 2.0, 5.0, 15.0
IN_FLIGHT = 8
BAD = "c"
POLICIES: list[Policy] = [
    RoundRobin(),
    WeightedRoundRobin(),
    LeastRequest(),
    P2C(),
    ZoneAware(zone="here", policy="p2c"),
]


@dataclass(frozen=True)
class Fault:
    """What becomes of a call on the bad endpoint: with this chance it ends so, or takes so many times as long."""

    name: str
    outcome: Outcome = OK
    chance: float = 1.0
    took_s: float | None = 0.0005
    """None: as long as a good answer, times ``slower``."""
    slower: float = 1.0


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("unavailable", UNAVAILABLE),
        Fault("half unavailable", UNAVAILABLE, 0.5),
        Fault("a tenth unavailable", UNAVAILABLE, 0.1),
        Fault("internal errors", INTERNAL),
        Fault("refuses all", REFUSED),
        Fault("refuses half", REFUSED, 0.5),
        Fault("hangs", TIMED_OUT, took_s=0.25),
        Fault("ten times slower", took_s=None, slower=10.0),
    )
}


class Crowd(Simulation):
    """Whoever got an answer asks again."""

    def __init__(self, policy: Policy, fault: Fault, close: float = CLOSE) -> None:
        super().__init__(lambda *_: OK, weights=dict.fromkeys("abc", 1), policy=policy)
        self.fault = fault
        self.rng = Random(7)
        self.start = self.clock()
        self.stop = self.start + close
        self.latencies: list[tuple[float, float]] = []
        self.failed: list[float] = []
        for number in range(IN_FLIGHT):
            self.clock.call_later(number * 0.0003, self.begin)
        self.clock.run()
        assert self.open == 0
        assert all(candidate.running == 0 for candidate in self.balancer.candidates)

    @property
    def since(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    def answer(self, name: str) -> tuple[float, Outcome]:
        """Five milliseconds or so, but for the fault."""
        fault, took_s = self.fault, 0.005 * self.rng.uniform(0.75, 1.25)
        if name == BAD and BEGIN <= self.since < END and self.rng.random() < fault.chance:
            return took_s * fault.slower if fault.took_s is None else fault.took_s, fault.outcome
        return took_s, OK

    def close(self, call: Call, answer: str) -> None:
        """And the next one."""
        super().close(call, answer)
        self.latencies.append((call.started_at - self.start, self.clock() - call.started_at))
        if answer == "failed":
            self.failed.append(self.since)
        if self.clock() < self.stop:
            # After a failure a moment later: a loop of failures must not go faster than one of answers.
            self.clock.call_later(0.0 if answer == "ok" else 0.005, self.begin)

    def share(self, after: float, before: float) -> float:
        """The bad one's part of the attempts of this stretch."""
        count = Counter(name for at, name, _ in self.attempts if after <= at - self.start < before)
        return count[BAD] / count.total()

    def p99(self, after: float, before: float) -> float:
        """Of the calls that began in this stretch, in seconds."""
        took = sorted(took for at, took in self.latencies if after <= at < before)
        return took[int(0.99 * len(took))]

    def back_after(self) -> float | None:
        """Seconds from the fault's end until it has half of its share again, or more."""
        step = 0.25
        for number in range(int((self.stop - self.start - END) / step) - 1):
            after = END + number * step
            if self.share(after, after + step) >= 1 / 6:
                return number * step
        return None


@pytest.mark.parametrize("policy", [LeastRequest(), P2C()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", ["unavailable", "half unavailable", "refuses all", "hangs"])
def test_who_is_of_no_use_is_left(policy: Policy, name: str) -> None:
    """A second later it has next to no calls, no call has failed, and the tail is that of the others."""
    crowd = Crowd(policy, FAULTS[name], close=END)
    assert crowd.failed == []
    assert crowd.share(BEGIN + 1, END) < 0.01
    assert crowd.p99(BEGIN + 1, END) <= 1.2 * crowd.p99(1, BEGIN)


def test_who_is_well_again_is_found() -> None:
    """Once its breaker has probed it. (P2C has to forget its failures besides, which takes longer.)"""
    back_after = Crowd(LeastRequest(), FAULTS["half unavailable"]).back_after()
    assert back_after is not None
    assert back_after <= 4


def test_errors_that_are_not_retried_are_few() -> None:
    """What opens the breaker, and its probes."""
    assert len(Crowd(LeastRequest(), FAULTS["internal errors"], close=END).failed) <= 15


@pytest.mark.parametrize("name", ["a tenth unavailable", "ten times slower"])
def test_p2c_leaves_who_is_worse(name: str) -> None:
    """Where a breaker has nothing to say: the tail stays within 1.2 of the healthy one."""
    crowd = Crowd(P2C(), FAULTS[name], close=END)
    assert crowd.failed == []
    assert crowd.share(BEGIN + 1, END) < 0.01
    assert crowd.p99(BEGIN + 1, END) <= 1.2 * crowd.p99(1, BEGIN)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_who_is_full_keeps_what_it_can_answer(policy: Policy) -> None:
    """It refuses half of its calls: they are answered elsewhere within the budget, and it is not left out."""
    crowd = Crowd(policy, FAULTS["refuses half"], close=END)
    assert crowd.failed == []
    assert all(candidate.breaker.last is None for candidate in crowd.balancer.candidates)
    assert 0.2 < crowd.share(BEGIN + 1, END) < 0.5


def _table() -> None:
    print("fault                policy                share in 1 s  later   failed  p99 ms  healthy  back after s")
    for fault in FAULTS.values():
        for policy in POLICIES:
            crowd = Crowd(policy, fault)
            shares = f"{crowd.share(BEGIN, BEGIN + 1):12.1%} {crowd.share(BEGIN + 1, END):6.1%}"
            tail = f"{crowd.p99(BEGIN + 1, END) * 1000:7.1f} {crowd.p99(1, BEGIN) * 1000:8.1f}"
            print(f"{fault.name:20} {policy.name:22}{shares} {len(crowd.failed):8} {tail} {crowd.back_after()!s:>13}")


if __name__ == "__main__":
    _table()
