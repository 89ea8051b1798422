"""A client in a process of its own: makes the calls of one row, each time that it is told to.

A process holds one channel and nothing else, so that neither side changes the other: an OpenTelemetry SDK is set up
once per process, and `lb` has an event loop take all wake-ups of grpcio's in one turn, which any other channel of the
loop would profit from. `bench.calls` starts these processes; by hand it is
``python bench/client.py "lb, metrics" 127.0.0.1:50051 500``, and a line on standard input for each measure.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

from bench import loads
from bench.loads import METHODS
from bench.rig import ROUND_ROBIN, plain, take_turns
from bench.rows import ALL, Row


def telemetry(row: Row) -> None:
    """Set up the SDK as the row wants it: spans are dropped after the batch processor, nobody asks for metrics."""
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


def ours(row: Row, addresses: list[str]) -> Any:
    """A channel of `lb` with every resilience feature."""
    import lb

    chosen: dict[str, Any] = {
        "policy": "round_robin",
        "retry": lb.Retry(attempt_timeout_s=10.0, idempotent=[METHODS[row.kind]]),
        "breaker": lb.Breaker(slow_call_s=10.0),
        "limit": lb.ConcurrencyLimit(adaptive=True),
    }
    if row.hedging:
        chosen["hedging"] = lb.Hedging(delay_s=1.0)
    factory = lb.aio.channel if _in_loop(row) else lb.sync.channel
    return factory("static:///" + ",".join(addresses), **chosen)


def _in_loop(row: Row) -> bool:
    return row.kind in ("unary", "responses", "both")


def grpcios(row: Row, addresses: list[str]) -> Any:
    """The channel of grpcio's own with round_robin."""
    return plain(addresses, grpc.aio.insecure_channel if _in_loop(row) else grpc.insecure_channel)


def floors(row: Row, addresses: list[str]) -> Any:
    """The lower layer of grpcio's alone."""
    from bench.floor import Floor

    return Floor(addresses)


class Pile:
    """Tenacity around a breaker around a call on grpcio's channel with contrib's tracing."""

    def __init__(self, row: Row, addresses: list[str]) -> None:
        from opentelemetry.instrumentation.grpc import aio_client_interceptors

        self._channel = grpc.aio.insecure_channel(
            "ipv4:" + ",".join(addresses),
            options=[ROUND_ROBIN],
            interceptors=aio_client_interceptors(),  # type: ignore[no-untyped-call]
        )
        self.close = self._channel.close

    def unary_unary(self, method: str, _registered_method: bool = False) -> Any:
        """As that of grpcio's channel, for calls that are awaited."""
        from purgatory import AsyncCircuitBreakerFactory
        from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        call: Any = self._channel.unary_unary(method, _registered_method=True)  # type: ignore[call-arg]
        factory = AsyncCircuitBreakerFactory()

        @retry(
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(0.01),
            retry=retry_if_exception_type(grpc.aio.AioRpcError),
            reraise=True,
        )
        async def guarded(request: bytes, *, timeout: float) -> Any:
            async with await factory.get_breaker("bench"):
                return await call(request, timeout=timeout)

        return guarded


WHO = {"lb": ours, "grpcio": grpcios, "floor": floors, "pile": Pile}


def change_loop() -> None:
    """Have this loop take all wake-ups in one turn, as a channel of `lb` would. Where it cannot, nothing is changed."""
    from lb.aio.wakeups import take_all

    take_all()


async def work(row: Row, addresses: list[str], calls: int) -> None:
    """The life of the process: connections and caches first, then a measure for each line."""
    telemetry(row)
    if row.mended:
        from bench.mends import MENDS

        for what in row.mended:
            MENDS[what]()
    threads = loads.InThreads()
    load = loads.of_kind(row.kind, threads)
    channel: Any = WHO[row.who](row, addresses)
    if row.who in ("grpcio", "floor") and row.all_wakeups:
        change_loop()
    for _ in range(2):
        await load(channel, calls)
    await take_turns(lambda: load(channel, calls))
    closing = channel.close()
    if closing is not None:
        await closing
    threads.close()


def main() -> None:
    """Be the client that the arguments name."""
    name, addresses, calls = sys.argv[1:]
    row = ALL[name]
    if row.who == "lb" and not row.all_wakeups:
        os.environ["LB_ALL_WAKEUPS"] = "0"  # read when `lb` is imported
    if checkout := os.environ.get("COUNTED_CHECKOUT"):
        sys.path.insert(0, checkout)  # its `lb`, with this bench, which is imported already
    asyncio.run(work(row, addresses.split(","), int(calls) * loads.KINDS[row.kind]))


if __name__ == "__main__":
    main()
