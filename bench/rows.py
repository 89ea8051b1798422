"""The rows of the table of calls: what is measured, against what, and how much it may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line: a client (``who``) and what it does (``kind``, a key of `bench.loads.KINDS`).

    ``goal`` is the largest ratio to grpcio's channel that is wanted, and counts; ``aim`` is one that is only shown.
    """

    kind: str = "unary"
    who: str = "lb"
    goal: float | None = None
    aim: float | None = None
    sampled: float | None = None
    measured: bool = False
    hedging: bool = False
    all_wakeups: bool = True
    mended: tuple[str, ...] = ()


ROWS = {
    "lb": Row(goal=0.95),
    "lb, loop as it was": Row(all_wakeups=False),
    "lb, traces at 1 %": Row(goal=1.00, sampled=0.01),
    "lb, metrics": Row(goal=1.05, measured=True),
    "lb, traces at 100 %": Row(goal=1.20, sampled=1.0),
    "lb, hedging": Row(aim=1.05, hedging=True),
    "the pile, traces at 1 %": Row(who="pile", sampled=0.01),
    "the pile, traces at 100 %": Row(who="pile", sampled=1.0),
    "lb, stream of responses, a message": Row("responses", goal=0.95),
    "lb, stream of responses, loop as it was": Row("responses", goal=1.00, all_wakeups=False),
    "lb, stream both ways, a message": Row("both", goal=1.00),
    "lb, stream both ways, loop as it was": Row("both", goal=1.03, all_wakeups=False),
    "lb.sync, threads": Row("threads", goal=0.90),
    "lb.sync, futures": Row("futures", aim=1.15),
    "lb.sync, stream of responses, a message": Row("sync responses", aim=1.15),
    "lb.sync, stream both ways, a message": Row("sync both", aim=1.15),
}

LIMITS = {
    "grpcio's lower layer": Row(who="floor", all_wakeups=False),
    "grpcio's lower layer, changed loop": Row(who="floor"),
    "grpc-go": Row(who="go"),
}
"""What a unary call costs at least: how far down a client could get."""

BASES = {
    **{
        f"grpcio, {kind}": Row(kind, who="grpcio", all_wakeups=False)
        for kind in dict.fromkeys(row.kind for row in ROWS.values())
    },
    **{f"grpcio, {kind}, changed loop": Row(kind, who="grpcio") for kind in ("unary", "responses", "both")},
}
"""What rows are compared with: grpcio's own channel, on a loop as asyncio has it, and on one that `lb` has changed."""

UPSTREAM = {
    "grpcio, unary, get_plugin": Row(who="grpcio", all_wakeups=False, mended=("get_plugin",)),
    "grpcio, unary, running loop": Row(who="grpcio", all_wakeups=False, mended=("running loop",)),
    "grpcio, unary, all mended": Row(who="grpcio", mended=("get_plugin", "running loop")),
    "grpcio, threads, get_plugin": Row("threads", who="grpcio", all_wakeups=False, mended=("get_plugin",)),
}
"""grpcio's own channel with what `docs/upstream.md` proposes; only for counting."""

ALL = {**ROWS, **LIMITS, **BASES, **UPSTREAM}


def base(row: Row) -> str:
    """The name of grpcio's channel for this row."""
    return f"grpcio, {row.kind}"


def changed(row: Row) -> str | None:
    """The name of grpcio's channel on a loop that reads wake-ups as ours does; None for threads, which have no loop."""
    name = f"grpcio, {row.kind}, changed loop"
    return name if name in BASES else None
