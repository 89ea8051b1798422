"""The load of every row: so many unary calls in flight, all the time, and what became of each."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

import lb
from lb.aio.channel import Channel
from lb.core.breaker import State
from tests.chaos.server import UNARY

IN_FLIGHT = 64
TIMEOUT_S = 5.0
BODY = b"x" * 100

_WARM_CALLS = 200
_WARM_S = 30.0
_KEPT_ERRORS = 3


@dataclass
class Figures:
    """What a stretch of load measured. Times in seconds."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    extra: Counter[str] = field(default_factory=Counter)
    """Attempts beyond the first: ``retry``, ``hedge``."""
    codes: Counter[str] = field(default_factory=Counter)
    """Of the calls that failed."""

    @property
    def calls(self) -> int:
        """All calls that ended, however."""
        return len(self.latencies_s)

    def percentile_ms(self, percent: int) -> float:
        """Of the calls' latencies, in milliseconds; nan when there are none."""
        if len(self.latencies_s) < 2:
            return float("nan")
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1] * 1000


class Load:
    """64 workers that call, each again as soon as it has its answer. A context manager: they run while it lasts.

    `fault` begins the stretch that counts; ``figures`` holds what ended since.
    """

    def __init__(self, channel: Channel, *, in_flight: int = IN_FLIGHT, timeout_s: float = TIMEOUT_S) -> None:
        self._call = channel.unary_unary(UNARY)
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._workers: list[asyncio.Task[None]] = []
        self._stop = False
        self._answered: Counter[str] = Counter()
        self._news = asyncio.Event()
        self.figures = Figures()
        self.fault_at = time.monotonic()
        self.bad: frozenset[str] = frozenset()
        self.last_bad_at: float | None = None
        self.probes = 0
        """Attempts on a bad endpoint that its breaker let through as probes."""
        self.first_success_at: float | None = None

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work(), name="chaos load") for _ in range(self._in_flight)]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop = True
        await asyncio.wait(self._workers)
        for worker in self._workers:
            worker.result()

    async def warm(self, *ids: str, calls: int = _WARM_CALLS) -> None:
        """Wait until so many calls went well, and each of these endpoints answered one."""
        async with asyncio.timeout(_WARM_S):
            while self._answered.total() < calls or not all(self._answered[each] for each in ids):
                await self._change()

    async def answered(self, id: str, within_s: float) -> float:
        """Wait for the next answer of this endpoint; how many seconds it took. Raises ``TimeoutError``."""
        before, since = self._answered[id], time.monotonic()
        async with asyncio.timeout(within_s):
            while self._answered[id] == before:
                await self._change()
        return time.monotonic() - since

    async def _change(self) -> None:
        self._news.clear()
        await self._news.wait()

    def fault(self, *bad: str) -> None:
        """The fault begins now, at these endpoints; calls that end from here on count."""
        self.figures = Figures()
        self.bad = frozenset(bad)
        self.last_bad_at = None
        self.probes = 0
        self.fault_at = time.monotonic()

    @property
    def last_bad_s(self) -> float | None:
        """From the fault to the last attempt on a bad endpoint that was no probe; None when there was none."""
        return None if self.last_bad_at is None else self.last_bad_at - self.fault_at

    async def _work(self) -> None:
        while not self._stop:
            began = time.perf_counter()
            call = self._call(BODY, timeout=self._timeout_s)
            try:
                await call
            except grpc.aio.AioRpcError as error:
                self._failed(error, time.perf_counter() - began)
            took = time.perf_counter() - began
            self._ended(lb.attempts(call), took)

    def _failed(self, error: grpc.aio.AioRpcError, took: float) -> None:
        figures = self.figures
        figures.failed += 1
        figures.codes[error.code().name] += 1
        if len(figures.errors) < _KEPT_ERRORS:
            tried = error.debug_error_string() or ""
            figures.errors.append(f"after {took:.3f} s {error.code().name}: {error.details()} {tried}")

    def _ended(self, attempts: list[Any], took: float) -> None:
        figures = self.figures
        figures.latencies_s.append(took)
        for attempt in attempts:
            if attempt.number > 1:
                figures.extra["hedge" if attempt.why.startswith("hedg") else "retry"] += 1
            if attempt.endpoint_id in self.bad and attempt.started_at >= self.fault_at:
                if attempt.breaker_state is State.HALF_OPEN:
                    self.probes += 1
                elif self.last_bad_at is None or attempt.started_at > self.last_bad_at:
                    self.last_bad_at = attempt.started_at
        answered = attempts[-1] if attempts else None
        for attempt in attempts:
            if attempt.outcome is not None and attempt.outcome.code is grpc.StatusCode.OK:
                answered = attempt
        if answered is not None and answered.outcome is not None and answered.outcome.code is grpc.StatusCode.OK:
            self._answered[answered.endpoint_id] += 1
            self._news.set()
