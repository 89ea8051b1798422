"""Settings for important traffic, and what they achieve: one of three servers hangs, and no call fails.

::

    python examples/production_settings.py

It starts the servers that it calls. With ``--defaults`` it does the same with a channel without settings.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import grpc

import lb
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY, hang

SETTINGS: dict[str, Any] = {
    # Avoids slow and busy servers, by their latency and calls in flight.
    "policy": lb.P2C(),
    "retry": lb.Retry(
        # A hung server sends nothing. Choose a time well above the slowest answer that is still acceptable.
        attempt_timeout_s=0.5,
        # Once a server may have seen a call, it is sent again only if it may run twice. A proto says so with
        # `option idempotency_level = NO_SIDE_EFFECTS;` (or IDEMPOTENT). This method has no proto.
        idempotent=[UNARY_UNARY],
        # Retries and hedges add at most a tenth of the calls, so that they do not make an outage worse.
        budget=lb.Budget(ratio=0.1, min_per_s=5),
    ),
    # If a server has not answered within the method's own p95, another one is asked as well.
    "hedging": lb.Hedging(),
    # Below the server's stream limit. Above that limit, calls would wait inside grpcio, where nothing shows them.
    "limit": lb.ConcurrencyLimit(limit=80, queue=100, queue_s=0.5),
    # A call that took two seconds counts as a failure, whatever its status.
    "breaker": lb.Breaker(slow_call_s=2.0),
    # Pings detect a machine that vanished. Servers must allow them (see lb.Connection).
    "connection": lb.Connection(keepalive_s=20, keepalive_timeout_s=5),
}


async def main(*, defaults: bool) -> None:
    """600 calls, 30 at a time."""
    async with Backend("one") as one, Backend("two") as two, Backend("three") as three:
        target = f"static:///{one.address},{two.address},{three.address}"
        async with lb.aio.channel(target, **({} if defaults else SETTINGS)) as channel:
            echo = channel.unary_unary(UNARY_UNARY)
            ended: Counter[str] = Counter()
            slowest = 0.0

            async def calls(count: int) -> None:
                nonlocal slowest
                for _ in range(count):
                    began = time.monotonic()
                    try:
                        await echo(b"hello", timeout=2)
                        ended["answered"] += 1
                    except grpc.aio.AioRpcError as error:
                        ended[error.code().name] += 1
                    slowest = max(slowest, time.monotonic() - began)

            async with asyncio.TaskGroup() as group:
                for _ in range(30):
                    group.create_task(calls(20))
                await one.until(lambda: len(one.received) > 50)
                one.always(hang())
            print(dict(ended), f"slowest {slowest:.2f} s")
            print(channel.snapshot())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One of three servers hangs.")
    parser.add_argument("--defaults", action="store_true", help="a channel without settings, for comparison")
    asyncio.run(main(defaults=parser.parse_args().defaults))
