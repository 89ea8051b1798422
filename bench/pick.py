"""What a pick and a rebuild cost, by policy and number of endpoints.

Run ``python bench/pick.py``. Each figure is the best of five rounds, so that a busy machine disturbs less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from time import perf_counter

from lb.core.endpoint import Endpoint
from lb.core.policies import Policy, resolve

SIZES = (10, 64, 100, 1_000, 10_000)
NAMES = ("round_robin", "random", "weighted_round_robin", "weighted_random")
PICKS = 20_000
ROUNDS = 5


@dataclass(slots=True, eq=False)
class Backend:
    """A candidate as the balancer would hand it over."""

    endpoint: Endpoint
    weight: int
    in_flight: int = 0


def backends(size: int, weight: Callable[[int], int]) -> list[Backend]:
    """``size`` candidates with ``weight(i)`` each."""
    return [Backend(Endpoint(f"10.0.0.1:{i}", id=f"b-{i}"), weight(i)) for i in range(size)]


def pick_ns(policy: Policy, candidates: list[Backend]) -> float:
    """Nanoseconds a pick, after one warm-up round; the loop around it is included."""
    rng = Random(1)
    picker = policy.picker(candidates, None)
    best = float("inf")
    for _ in range(ROUNDS + 1):
        pick = picker.pick
        start = perf_counter()
        for _ in range(PICKS):
            pick(None, 0.0, rng)
        best = min(best, perf_counter() - start)
    return best / PICKS * 1e9


def rebuild_ms(policy: Policy, candidates: list[Backend]) -> float:
    """Milliseconds to make a picker that follows another and give its first pick, one candidate having left."""
    rng = Random(1)
    best = float("inf")
    for _ in range(ROUNDS):
        previous = policy.picker(candidates, None)
        for _ in range(100):
            previous.pick(None, 0.0, rng)
        start = perf_counter()
        policy.picker(candidates[:-1], previous).pick(None, 0.0, rng)
        best = min(best, perf_counter() - start)
    return best * 1e3


def main() -> None:
    """Print both tables."""
    mixes: dict[str, Callable[[int], int]] = {
        "weights 1, 2, 5": lambda i: (1, 2, 5)[i % 3],
        "weights 1 to 1,000": lambda i: i * 7919 % 1000 + 1,
    }
    for mix, weight in mixes.items():
        sets = [backends(size, weight) for size in SIZES]
        for title, measure, digits in (("pick, ns", pick_ns, 0), ("rebuild, ms", rebuild_ms, 3)):
            print(f"{mix}: {title}".ljust(36) + "".join(f"{size:>10,}" for size in SIZES))
            for name in NAMES:
                figures = "".join(f"{measure(resolve(name), candidates):>10.{digits}f}" for candidates in sets)
                print(f"  {name}".ljust(36) + figures)
            print()


if __name__ == "__main__":
    main()
