"""Pictures of how the policies share calls, and a table: ``python tools/policy_pictures.py [--check]``.

Each is a simulation over the real core (`lb.core.balancer`, in virtual time): a client holds so many calls in flight,
servers answer, and the columns show who got the calls of each second. Written to ``docs/pictures/``, the same
bytes for the same code; ``--check`` only says whether they are up to date. The table says what one slow server costs
under each policy; it is written into docs/policies.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from random import Random

import lb
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import Breaker
from lb.core.candidate import Connectivity
from lb.core.endpoint import Endpoint, Resolution
from lb.core.outcome import OK
from lb.core.policies import Policy

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
PAGE = FOLDER.parent / "policies.md"
BEGIN, END = "<!-- begin: python tools/policy_pictures.py -->\n", "<!-- end -->\n"
SECONDS = 30
LATENCY_S = 0.04
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Call:
    """What a policy reads of a call."""

    metadata: Metadata = ()
    method: str = "/shop.Shop/Get"


@dataclass(frozen=True)
class Scene:
    """What happens in half a minute.

    ``servers``: name to weight (and zone: the first letter stands for it). ``slow``: factor on the latency of a
    server at a time. ``joins``: when a server comes that is not there at first. ``leaves``: when one goes.
    """

    policy: Policy
    title: str
    servers: dict[str, int]
    in_flight: Callable[[float], int] = lambda now: 16
    slow: Callable[[str, float], float] = lambda name, now: 1.0
    joins: dict[str, float] = field(default_factory=dict)
    leaves: dict[str, float] = field(default_factory=dict)
    metadata: Callable[[float, Random], Metadata] = lambda now, rng: ()
    used: Callable[[str, float], float] | None = None
    """The utilization that a server reports."""
    scattered: bool = False
    """Whether latencies scatter as waits in a queue do, and not by a fifth."""
    events: dict[float, str] = field(default_factory=dict)
    """What to write above which second."""


def simulate(scene: Scene) -> list[Counter[str]]:
    """Who got how many calls, by second."""
    counts = [Counter[str]() for _ in range(SECONDS)]
    for now, name, _ in calls(scene, SECONDS):
        counts[int(now)][name] += 1
    return counts


def calls(scene: Scene, lasts_s: float) -> Iterator[tuple[float, str, float]]:
    """Each call: when it began, who got it, and how long it took."""
    rng = Random(7)
    balancer = Balancer(
        "static:///shop", scene.policy, Breaker(consecutive_failures=None, failure_ratio=None), Random(7)
    )
    flying: list[tuple[float, int, Attempt]] = []
    started = 0
    present: set[str] = set()
    now = 0.0
    while now < lasts_s:
        due = {
            name for name in scene.servers if scene.joins.get(name, 0.0) <= now < scene.leaves.get(name, float("inf"))
        }
        if due != present:
            present = due
            endpoints = [Endpoint(f"{n}:1", id=n, weight=w, zone=n[0]) for n, w in scene.servers.items() if n in due]
            for candidate in balancer.update(Resolution(tuple(endpoints))).added:
                # Those that are there at first have been for long.
                since = now if candidate.endpoint.id in scene.joins else now - 3600
                balancer.set_connectivity(candidate, Connectivity.READY, since)
        while len(flying) < scene.in_flight(now):
            attempt = balancer.pick(Call(scene.metadata(now, rng)), now)
            assert isinstance(attempt, Attempt)
            scatter = rng.expovariate(1.0) if scene.scattered else rng.uniform(0.8, 1.2)
            takes = LATENCY_S * scene.slow(attempt.endpoint_id, now) * scatter
            yield now, attempt.endpoint_id, takes
            started += 1
            heappush(flying, (now + takes, started, attempt))
        now, _, attempt = heappop(flying)
        balancer.ended(attempt, OK, now)
        if scene.used is not None and balancer.report is not None:
            load = lb.LoadReport(qps=100, cpu_utilization=scene.used(attempt.endpoint_id, now))
            balancer.report(attempt.candidate, load.encode(), now)


def draw(scene: Scene, counts: Sequence[Counter[str]]) -> str:
    """The picture."""
    left, top, width, height, step = 44, 46, 600, 150, 20
    color = dict(zip(scene.servers, COLORS, strict=False))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{top + height + 30}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="760" height="{top + height + 30}" fill="white"/>',
        f'<text x="{left}" y="16" font-size="13" font-weight="bold">{scene.title}</text>',
    ]
    for second, count in enumerate(counts):
        y = float(top + height)
        for name in scene.servers:
            part = height * count[name] / max(1, count.total())
            if part:
                y -= part
                parts.append(
                    f'<rect x="{left + second * step}" y="{y:.1f}" width="{step - 1}" height="{part:.1f}" '
                    f'fill="{color[name]}"/>'
                )
    for label, at in (("100 %", 0), ("50 %", height / 2), ("0", height)):
        parts.append(f'<text x="{left - 5}" y="{top + at + 4:.0f}" text-anchor="end">{label}</text>')
    parts.extend(
        f'<text x="{left + second * step}" y="{top + height + 16}" text-anchor="middle">{second} s</text>'
        for second in range(0, SECONDS + 1, 5)
    )
    for at_s, text in scene.events.items():
        x = left + at_s * step
        parts.append(f'<path d="M{x:g} {top - 12}V{top + height}" stroke="black" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x + 3:g}" y="{top - 4}">{text}</text>')
    for row, (name, weight) in enumerate(scene.servers.items()):
        y = top + 2 + row * 15
        parts.append(f'<rect x="{left + width + 12}" y="{y}" width="10" height="10" fill="{color[name]}"/>')
        label = f"{name}, weight {weight}" if len(set(scene.servers.values())) > 1 else name
        parts.append(f'<text x="{left + width + 27}" y="{y + 9}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _b_slow(name: str, now: float) -> float:
    return 10.0 if name == "b" and 10 <= now < 20 else 1.0


def _common(policy: Policy, title: str, *, equal: bool = False) -> Scene:
    """B is ten times slower for a third of the time; later d comes."""
    weights = (1, 1, 1, 1) if equal else (1, 2, 5, 2)
    return Scene(
        policy,
        title,
        dict(zip("abcd", weights, strict=True)),
        slow=_b_slow,
        joins={"d": 24.0},
        events={10.0: "b is ten times slower", 20.0: "b is well", 24.0: "d comes"},
    )


def _users(now: float, rng: Random) -> Metadata:
    hot = 10 <= now < 20 and rng.random() < 0.7
    return (("user", "hot" if hot else f"user-{rng.randrange(200)}"),)


SCENES: dict[str, Scene] = {
    "round_robin": _common(lb.RoundRobin(), "RoundRobin: each in turn, weights do not count"),
    "random": _common(lb.Random(), "Random: any, weights do not count"),
    "weighted_round_robin": _common(lb.WeightedRoundRobin(), "WeightedRoundRobin: in turn, by weight"),
    "weighted_random": _common(lb.WeightedRandom(), "WeightedRandom: any, by weight"),
    "least_request": _common(lb.LeastRequest(), "LeastRequest: fewer in flight, by weight"),
    "p2c": replace(
        _common(lb.P2C(), "P2C: who will answer sooner (64 in flight)", equal=True), in_flight=lambda now: 64
    ),
    "slow_start": _common(
        lb.SlowStart(policy=lb.RoundRobin(), window_s=5), "SlowStart (window 5 s) around RoundRobin", equal=True
    ),
    "pick_first": Scene(
        lb.PickFirst(),
        "PickFirst: one takes all",
        dict.fromkeys("abc", 1),
        leaves={"a": 10.0},
        events={10.0: "a goes"},
    ),
    "ring_hash": Scene(
        lb.RingHash(key="user"),
        "RingHash: by user; a hot one is spread over as many as it needs",
        dict.fromkeys("abcdef", 1),
        metadata=_users,
        leaves={"c": 25.0},
        events={10.0: "7 of 10 calls are one user's", 20.0: "no more", 25.0: "c goes"},
    ),
    "orca": Scene(
        lb.Orca(blackout_s=3),
        "Orca: by what servers report (blackout 3 s)",
        dict.fromkeys("abc", 1),
        used=lambda name, now: {"a": 0.2, "b": 0.4, "c": 0.4 if now < 15 else 0.8}[name],
        events={0.0: "used: a 20 %, b 40 %, c 40 %", 15.0: "c: 80 %"},
    ),
    "zone_aware": Scene(
        lb.ZoneAware(zone="x", policy=lb.LeastRequest(), in_flight=8),
        "ZoneAware (x, 8 in flight each) around LeastRequest",
        {"x1": 1, "x2": 1, "y1": 1, "y2": 1, "z1": 1},
        in_flight=lambda now: 32 if 8 <= now < 16 else 12,
        leaves={"x2": 22.0},
        events={0.0: "12 in flight", 8.0: "32 in flight", 16.0: "12 in flight", 22.0: "x2 goes"},
    ),
    "subset": Scene(
        lb.Subset(size=4, policy=lb.RoundRobin(), client=2),
        "Subset: four of ten, client 2",
        dict.fromkeys("abcdefghij", 1),
        leaves={"e": 10.0, "g": 15.0, "a": 20.0},
        events={10.0: "e goes", 15.0: "g goes", 20.0: "a goes"},
    ),
}


def pictures() -> dict[Path, str]:
    """All of them, by the file they belong into."""
    return {FOLDER / f"policy-{name}.svg": draw(scene, simulate(scene)) for name, scene in SCENES.items()}


# ---- the table ----

COMPARED: tuple[Policy, ...] = (
    lb.RoundRobin(),
    lb.Random(),
    lb.WeightedRoundRobin(),
    lb.WeightedRandom(),
    lb.LeastRequest(),
    lb.LeastRequest(choices=3),
    lb.P2C(),
)
SLOW_FROM_S, SLOW_UNTIL_S, LASTS_S = 4.0, 14.0, 40.0


def _slow_for_a_while(name: str, now: float) -> float:
    return 10.0 if name == "b" and SLOW_FROM_S <= now < SLOW_UNTIL_S else 1.0


def row(policy: Policy) -> str:
    """What one of three that is ten times slower for ten seconds costs, and when it has its share again."""
    scene = Scene(policy, "", dict.fromkeys("abc", 1), slow=_slow_for_a_while, in_flight=lambda now: 64)
    cells = []
    for scattered in (False, True):
        ended = list(calls(replace(scene, scattered=scattered), SLOW_UNTIL_S))
        well, ill = [call for call in ended if call[0] < SLOW_FROM_S], [c for c in ended if c[0] >= SLOW_FROM_S]
        if not scattered:
            cells.append(f"{sum(name == 'b' for _, name, _ in ill) / len(ill):.1%}")
        cells.append(f"{_p99(ill) / _p99(well):.1f}")
    cells.extend(_back(replace(scene, in_flight=lambda now, most=most: most)) for most in (64, 16, 4))  # type: ignore[misc]
    name = f"{type(policy).__name__}{'(choices=3)' if policy == lb.LeastRequest(choices=3) else '()'}"
    return f"| `{name}` | {' | '.join(cells)} |"


def _p99(ended: Sequence[tuple[float, str, float]]) -> float:
    return sorted(took for *_, took in ended)[len(ended) * 99 // 100]


def _back(scene: Scene) -> str:
    """Seconds until it had nine tenths of its third again, in a second after it was well."""
    counts = [Counter[str]() for _ in range(int(LASTS_S))]
    for now, name, _ in calls(scene, LASTS_S):
        counts[int(now)][name] += 1
    later = (s for s in range(int(SLOW_UNTIL_S), int(LASTS_S)) if counts[s]["b"] >= 0.3 * counts[s].total())
    return str(next(later) - int(SLOW_UNTIL_S))


def table() -> str:
    """The lines of docs/policies.md."""
    head = "| policy | its share of the calls | p99 | p99, scattered | back after, s: 64 calls in flight | 16 | 4 |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(row, COMPARED), ""])


def page() -> str:
    """docs/policies.md with today's table."""
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE} has no place for the table; expected {BEGIN!r} and {END!r}")
    return before + begin + table() + end + after


def main() -> int:
    """Write them, or with ``--check`` say which are not up to date."""
    made = pictures() | {PAGE: page()}
    stale = [(path, text) for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path, _ in stale:
            print(f"{path.name} is not up to date; run python tools/policy_pictures.py")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in stale:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
