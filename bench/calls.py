"""What a unary call costs in the client: ours against grpcio's own ``round_robin``.

Run ``python bench/calls.py [--calls 2000] [--rounds 20]``. Four servers in processes of their
own, 64 calls in flight, 100-byte messages, over loopback. The channels take turns in a random
order, round by round; what is compared is the process's CPU time (all its threads) within one
round, so a machine that grows slower in the middle disturbs all of them. Prints the table,
writes it to ``bench/results/calls.json`` and ends with the goals met.

Needs nothing but ``lb``'s own dependencies.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc

import lb

SERVERS = 4
IN_FLIGHT = 64
BODY = b"x" * 100
METHOD = "/bench.Echo/Call"
GOALS = {"lb": 1.00}
RESULTS = Path(__file__).parent / "results" / "calls.json"


async def serve() -> None:
    """An echo server; prints its port and ends when its standard input does."""

    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def cpu_us(channel: grpc.aio.Channel, calls: int) -> float:
    """CPU microseconds a call."""
    call = channel.unary_unary(METHOD, _registered_method=True)  # type: ignore[call-arg]  # as generated stubs do
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(BODY, timeout=10)

    start = time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return (time.process_time() - start) / calls * 1e6


async def compare(addresses: list[str], calls: int, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds a call, per channel and round."""
    round_robin = '{"loadBalancingConfig":[{"round_robin":{}}]}'
    channels = {
        "grpcio round_robin": grpc.aio.insecure_channel(
            "ipv4:" + ",".join(addresses), options=[("grpc.service_config", round_robin)]
        ),
        "lb": lb.aio.channel("static:///" + ",".join(addresses), policy="round_robin"),
    }
    order = list(channels)
    figures: dict[str, list[float]] = {name: [] for name in order}
    for channel in channels.values():
        await channel.channel_ready()
        await cpu_us(channel, 500)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            figures[name].append(await cpu_us(channels[name], calls))
    for channel in channels.values():
        await channel.close()
    return figures


def report(figures: dict[str, list[float]]) -> tuple[dict[str, object], str]:
    """The table as data, and the last line."""
    base = figures["grpcio round_robin"]
    rows: dict[str, object] = {}
    missed = []
    print(f"{'client CPU per call':22} {'us':>7}   ratio, pairwise in each round: median (quartiles)")
    for name, values in figures.items():
        ratios = [mine / theirs for mine, theirs in zip(values, base, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"us": statistics.median(values), "ratio": median, "quartiles": [low, high]}
        goal = GOALS.get(name)
        if goal is not None and median > goal:
            missed.append(f"{name} <= {goal:.2f}")
        wanted = f"   goal <= {goal:.2f}" if goal is not None else ""
        print(f"{name:22} {statistics.median(values):7.1f}   {median:.3f} ({low:.3f} to {high:.3f}){wanted}")
    line = f"goals: {len(GOALS) - len(missed)} of {len(GOALS)} met" + (
        f"; missed: {', '.join(missed)}" if missed else ""
    )
    return rows, line


def main() -> int:
    """Run the comparison; exit status 1 for a missed goal only with STRICT=1."""
    parser = argparse.ArgumentParser(description="client CPU per unary call, ours against grpcio's round_robin")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return 0
    command = [sys.executable, __file__, "--serve"]
    servers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(SERVERS)
    ]
    try:
        ports = [int(server.stdout.readline()) for server in servers if server.stdout is not None]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        figures = asyncio.run(compare(addresses, arguments.calls, arguments.rounds))
    finally:
        for server in servers:
            server.communicate()
    rows, line = report(figures)
    versions = {
        name: importlib.metadata.version(name) for name in ("grpcio", "lb-mesh", "tenacity", "opentelemetry-api")
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"python": platform.python_version(), "versions": versions, "rows": rows, "goals": line}, indent=1)
        + "\n"
    )
    print(line)
    return 1 if "missed" in line and os.environ.get("STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
