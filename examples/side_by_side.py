"""grpcio's own channel and lb's, side by side: of three servers, one dies and another one hangs.

::

    python examples/side_by_side.py

It starts the servers that it calls, and needs nothing but lb.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc

import lb
from lb.testing import Backend
from lb.testing.backend import UNARY_UNARY, hang

LASTS_S = 6.0
IN_FLIGHT = 16


def bare(*addresses: str) -> Any:
    """What grpcio has. (A retryPolicy would help when a server dies, but nothing helps when one hangs.)"""
    return grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=[("grpc.lb_policy_name", "round_robin")])


def balanced(*addresses: str) -> Any:
    """The same with lb: the method may run twice, and an answer takes half a second at worst."""
    retry = lb.Retry(idempotent=[UNARY_UNARY], attempt_timeout_s=0.5)
    return lb.aio.channel(f"static:///{','.join(addresses)}", policy="round_robin", retry=retry)


async def measure(name: str, make: Any) -> None:
    """Sixteen callers, a timeout of 2 s: after 1 s one server dies, from 2 s on another one does not answer."""
    ended: Counter[str] = Counter()
    slowest_s = 0.0
    async with (
        Backend() as dies,
        Backend() as hangs,
        Backend() as lives,
        make(dies.address, hangs.address, lives.address) as channel,
    ):
        echo = channel.unary_unary(UNARY_UNARY)
        until = time.monotonic() + LASTS_S

        async def caller() -> None:
            nonlocal slowest_s
            while (began := time.monotonic()) < until:
                try:
                    await echo(b"hello", timeout=2)
                    ended["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    ended[error.code().name] += 1
                slowest_s = max(slowest_s, time.monotonic() - began)
                await asyncio.sleep(0.005)

        async def trouble() -> None:
            await asyncio.sleep(1)
            await dies.stop()
            await asyncio.sleep(1)
            hangs.always(hang())

        async with asyncio.TaskGroup() as group:
            group.create_task(trouble())
            for _ in range(IN_FLIGHT):
                group.create_task(caller())
    failed = {code: count for code, count in ended.items() if code != "OK"}
    why = ", ".join(f"{count} {code}" for code, count in failed.items())
    total = sum(failed.values())
    print(f"{name:6}  answered {ended['OK']:5}  failed {total:3}  slowest {slowest_s:.2f} s  {why}".rstrip())


async def main() -> None:
    """Two lines to compare."""
    await measure("grpcio", bare)
    await measure("lb", balanced)


if __name__ == "__main__":
    asyncio.run(main())
