"""What calls cost in the client: ours against grpcio's own, with and without telemetry, and against the usual pile.

Run ``python bench/calls.py [--rounds 20] [--calls 500] [ROW ...]``. Four servers in processes of their own, 100-byte
messages over loopback; 64 calls in flight, or 16 threads, or 16 streams of 100 messages. Every resilience feature of
ours is on: retries with a time-out for attempts, budget, breakers that also watch for slow calls, ejection, and an
adaptive limit with its line. Spans go to the SDK's batch processor with an exporter that drops them, durations
to an in-memory reader which nobody asks, for ours and for the pile alike. See `bench.rig` for how it is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import lb
from bench.rig import (
    BODY,
    BOTH,
    MESSAGES,
    RESPONSES,
    ROUND_ROBIN,
    UNARY,
    cpu_us,
    plain,
    ratio,
    servers,
    take_turns,
    turn,
    workers,
    write,
)

IN_FLIGHT = 64
STREAMS = 16
THREADS = 16
TIMEOUT_S = 30.0

Load = Callable[[Any, int], Awaitable[int]]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``goal`` is the largest ratio to grpcio's channel that is wanted, or None."""

    goal: float | None
    kind: str = "unary"
    sampled: float | None = None
    measured: bool = False
    hedging: bool = False
    pile: bool = False


ROWS = {
    "lb": Row(1.00),
    "lb, traces at 1 %": Row(1.10, sampled=0.01),
    "lb, metrics": Row(1.20, measured=True),
    "lb, traces at 100 %": Row(1.60, sampled=1.0),
    "lb, hedging": Row(None, hedging=True),
    "the pile, traces at 1 %": Row(None, sampled=0.01, pile=True),
    "the pile, traces at 100 %": Row(None, sampled=1.0, pile=True),
    "lb, stream of responses, a message": Row(1.05, kind="responses"),
    "lb, stream both ways, a message": Row(1.05, kind="both"),
    "lb.sync, threads": Row(1.05, kind="threads"),
}


def telemetry(row: Row) -> None:
    """Set up the SDK as the row wants it."""
    if row.sampled is not None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        class Dropping(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                return SpanExportResult.SUCCESS

        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(row.sampled)))
        provider.add_span_processor(BatchSpanProcessor(Dropping(), max_queue_size=100_000))
        trace.set_tracer_provider(provider)
    if row.measured:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


def settings(row: Row) -> dict[str, Any]:
    """Every resilience feature."""
    chosen: dict[str, Any] = {
        "policy": "round_robin",
        "retry": lb.Retry(attempt_timeout_s=10.0, idempotent=[UNARY]),
        "breaker": lb.Breaker(slow_call_s=10.0),
        "limit": lb.ConcurrencyLimit(adaptive=True),
    }
    if row.hedging:
        chosen["hedging"] = lb.Hedging(delay_s=1.0)
    return chosen


async def unary(channel: Any, calls: int) -> int:
    """So many calls, 64 at once."""
    call = channel.unary_unary(UNARY, _registered_method=True)
    return await _at_once(lambda: call(BODY, timeout=TIMEOUT_S), calls)


async def _at_once(call: Callable[[], Awaitable[Any]], calls: int) -> int:
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return calls


async def responses(channel: Any, calls: int) -> int:
    """Streams from the server; counts messages."""
    call = channel.unary_stream(RESPONSES, _registered_method=True)

    async def read() -> None:
        async for _ in call(BODY, timeout=TIMEOUT_S):
            pass

    return await _streams(read, calls)


async def both(channel: Any, calls: int) -> int:
    """Streams both ways, each message echoed; counts pairs of messages."""
    call = channel.stream_stream(BOTH, _registered_method=True)

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(MESSAGES):
            yield BODY

    async def exchange() -> None:
        async for _ in call(requests(), timeout=TIMEOUT_S):
            pass

    return await _streams(exchange, calls)


async def _streams(stream: Callable[[], Awaitable[None]], calls: int) -> int:
    rounds = max(1, calls // (STREAMS * 5))
    for _ in range(rounds):
        await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return rounds * STREAMS * MESSAGES


def threads(pool: concurrent.futures.Executor) -> Load:
    """Blocking calls from 16 threads."""

    async def load(channel: Any, calls: int) -> int:
        call = channel.unary_unary(UNARY, _registered_method=True)

        def worker() -> None:
            for _ in range(calls // THREADS):
                call(BODY, timeout=TIMEOUT_S)

        for done in [pool.submit(worker) for _ in range(THREADS)]:
            await asyncio.wrap_future(done)
        return calls // THREADS * THREADS

    return load


async def pile(channel: Any, calls: int) -> int:
    """Tenacity around a breaker around a call with contrib's tracing."""
    call = channel.unary_unary(UNARY, _registered_method=True)
    from purgatory import AsyncCircuitBreakerFactory
    from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    factory = AsyncCircuitBreakerFactory()

    @retry(
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(0.01),
        retry=retry_if_exception_type(grpc.aio.AioRpcError),
        reraise=True,
    )
    async def guarded() -> Any:
        async with await factory.get_breaker("bench"):
            return await call(BODY, timeout=TIMEOUT_S)

    return await _at_once(guarded, calls)


async def work(row: Row, addresses: list[str], calls: int) -> None:
    """A worker's life."""
    telemetry(row)
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    loads: dict[str, Load] = {"unary": unary, "responses": responses, "both": both, "threads": threads(pool)}
    load = loads[row.kind]
    target = "static:///" + ",".join(addresses)
    theirs: Any
    ours: Any
    if row.kind == "threads":
        theirs, ours = plain(addresses, grpc.insecure_channel), lb.sync.channel(target, **settings(row))
    else:
        theirs = plain(addresses)
        if row.pile:
            from opentelemetry.instrumentation.grpc import aio_client_interceptors

            ours = grpc.aio.insecure_channel(
                "ipv4:" + ",".join(addresses),
                options=[ROUND_ROBIN],
                interceptors=aio_client_interceptors(),  # type: ignore[no-untyped-call]
            )
        else:
            ours = lb.aio.channel(target, **settings(row))
    subject = pile if row.pile else load

    async def measure() -> dict[str, float]:
        first = await cpu_us(lambda: load(theirs, calls))
        mine = [await cpu_us(lambda: subject(ours, calls)) for _ in range(2)]
        return {"plain": (first + await cpu_us(lambda: load(theirs, calls))) / 2, "subject": sum(mine) / 2}

    await measure()  # connections, caches
    await take_turns(measure)
    for channel in (theirs, ours):
        if row.kind == "threads":
            channel.close()
        else:
            await channel.close()
    pool.shutdown()


def run(names: list[str], rounds: int, calls: int) -> dict[str, Any]:
    """The rows, each with its ratio and goal."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with (
        servers() as addresses,
        workers([sys.executable, __file__, "--worker"], names, ",".join(addresses), str(calls)) as started,
    ):
        for _ in range(rounds):
            for name, worker in started.items():
                turns[name].append(turn(name, worker))
    return {name: {**ratio(turns[name]), "goal": ROWS[name].goal} for name in names}


def show(rows: dict[str, Any]) -> list[str]:
    """Print the table; returns the goals that were missed."""
    print(f"{'client CPU':36} {'us':>7} {'grpcio':>7}   ratio in each turn: median (quartiles)")
    missed = []
    for name, row in rows.items():
        low, high = row["quartiles"]
        goal = row["goal"]
        wanted = "" if goal is None else f"   goal <= {goal:.2f}"
        print(
            f"{name:36} {row['us']:7.1f} {row['plain_us']:7.1f}   {row['ratio']:.3f} ({low:.3f} to {high:.3f}){wanted}"
        )
        if goal is not None and row["ratio"] > goal:
            missed.append(f"{name} <= {goal:.2f}")
    return missed


def main() -> int:
    """Measure, print, keep; exit status 1 for a missed goal only with STRICT=1."""
    parser = argparse.ArgumentParser(description="client CPU per call and message, ours against grpcio's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)}".replace("%", "%%"))
    arguments = parser.parse_args()
    if arguments.worker:
        name, addresses, calls = arguments.worker
        asyncio.run(work(ROWS[name], addresses.split(","), int(calls)))
        return 0
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"row {unknown[0]!r}; expected one of: {'; '.join(ROWS)}")
    rows = run(arguments.rows or list(ROWS), arguments.rounds, arguments.calls)
    if not arguments.rows:  # else the other rows' last figures would be lost
        write("calls", rows)
    missed = show(rows)
    goals = sum(row["goal"] is not None for row in rows.values())
    print(f"goals: {goals - len(missed)} of {goals} met{'; missed: ' + ', '.join(missed) if missed else ''}")
    return 1 if missed and os.environ.get("STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
