"""The load of every row: so many unary calls in flight, all the time, and what became of each."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

import lb
from lb.core.breaker import State
from tests.chaos.server import UNARY

TIMEOUT_S = 10.0
BODY = b"x" * 100

_WARM_ROUNDS = 3
_WARM_S = 90.0
_KEPT_ERRORS = 3
_AFTER_FAILURE_S = 0.02


@dataclass
class Figures:
    """What a stretch of load measured. Times in seconds."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """Of the calls that failed."""
    errors: list[str] = field(default_factory=list)
    slowest_failure_s: float = 0.0
    extra: Counter[str] = field(default_factory=Counter)
    """Attempts beyond the first, by kind: ``retry``, ``hedge``, ``transparent`` (gRFC A6)."""
    why: Counter[str] = field(default_factory=Counter)
    """Why there were more attempts."""
    last_bad_s: float | None = None
    """From the fault to the last attempt on the endpoint it hit that was no probe of its breaker."""
    bad: int = 0
    """Attempts on such endpoints."""
    probes: int = 0
    """Attempts on such an endpoint that its breaker let through as probes."""

    @property
    def calls(self) -> int:
        """All calls that ended, however."""
        return len(self.latencies_s)

    def count(self, ended: Ended) -> None:
        """Take in one call."""
        self.latencies_s.append(ended.took_s)
        if ended.error is not None:
            self.failed += 1
            self.codes[ended.error.code().name] += 1
            self.slowest_failure_s = max(self.slowest_failure_s, ended.took_s)
            if len(self.errors) < _KEPT_ERRORS:
                tried = "; ".join(map(repr, ended.attempts))
                self.errors.append(f"after {ended.took_s:.3f} s {ended.words()} [{tried}]")

    def add(self, other: Figures) -> None:
        """Take in another stretch."""
        self.latencies_s += other.latencies_s
        self.failed += other.failed
        self.codes += other.codes
        self.errors += other.errors
        self.slowest_failure_s = max(self.slowest_failure_s, other.slowest_failure_s)
        self.extra += other.extra
        self.why += other.why
        self.probes += other.probes
        self.bad += other.bad
        if other.last_bad_s is not None:
            self.last_bad_s = max(other.last_bad_s, self.last_bad_s or 0.0)

    def percentile_ms(self, percent: int) -> float:
        """Of the calls' latencies, in milliseconds; nan when there are none."""
        if len(self.latencies_s) < 2:
            return float("nan")
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1] * 1000


@dataclass(frozen=True)
class Ended:
    """A call that ended: what it tried, how long it took in seconds, and how it failed (an error of grpcio's) if so."""

    attempts: Sequence[lb.Attempt]
    took_s: float
    error: Any = None

    def words(self) -> str:
        """How it failed; empty when it did not."""
        return "" if self.error is None else f"{self.error.code().name}: {self.error.details()}"


Caller = Callable[..., Awaitable[Ended]]
"""Makes one call with these options (``timeout``, ...) and waits for its end."""


def in_loop(channel: lb.aio.Channel) -> Caller:
    """Calls of `lb.aio`."""
    stub: Any = channel.unary_unary(UNARY)

    async def call(**options: Any) -> Ended:
        began = time.perf_counter()
        running = stub(BODY, **options)
        error = None
        try:
            await running
        except grpc.aio.AioRpcError as raised:
            error = raised
        return Ended(lb.attempts(running), time.perf_counter() - began, error)

    return call


def in_threads(channel: lb.sync.Channel, threads: Executor) -> Caller:
    """Blocking calls of `lb.sync`, each in a thread of these."""
    stub: Any = channel.unary_unary(UNARY)

    def block(options: dict[str, Any]) -> Ended:
        began = time.perf_counter()
        error = None
        try:
            _, ended = stub.with_call(BODY, **options)
        except grpc.RpcError as raised:
            ended = error = raised
        return Ended(lb.attempts(ended), time.perf_counter() - began, error)

    async def call(**options: Any) -> Ended:
        return await asyncio.get_running_loop().run_in_executor(threads, block, options)

    return call


class Load:
    """So many workers that call, each again as soon as it has its answer. A context manager: they run while it lasts.

    ``figures`` holds what ended since `fault` (or `measure`) was called.
    """

    def __init__(self, call: Caller, in_flight: int) -> None:
        self._call = call
        self._in_flight = in_flight
        self._workers: list[asyncio.Task[None]] = []
        self._stop = False
        self._answered: Counter[str] = Counter()
        self._news = asyncio.Event()
        self._hit: dict[str, float] = {}
        self.figures = Figures()
        self.answered_at = 0.0
        """When the last call went well (``time.monotonic``)."""

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work(), name="chaos load") for _ in range(self._in_flight)]
        for worker in self._workers:
            worker.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop = True
        await asyncio.gather(*self._workers)

    async def warm(self, *ids: str) -> None:
        """Wait until a few calls of each worker went well, and each endpoint answered one. Raises ``TimeoutError``."""
        calls = _WARM_ROUNDS * self._in_flight
        async with asyncio.timeout(_WARM_S):
            while self._answered.total() < calls or not all(self._answered[each] for each in ids):
                await self._change()

    async def answer(self, *ids: str, within_s: float) -> float:
        """Wait until each of these endpoints (or any, when none is named) answered once more.

        Returns how many seconds that took. Raises ``TimeoutError``.
        """
        before, since = self._answered.copy(), time.monotonic()
        async with asyncio.timeout(within_s):
            while (
                any(self._answered[each] == before[each] for each in ids)
                if ids
                else self._answered.total() == before.total()
            ):
                await self._change()
        return time.monotonic() - since

    async def failure(self, within_s: float) -> None:
        """Wait until a call failed. Raises ``TimeoutError``."""
        async with asyncio.timeout(within_s):
            while not self.figures.failed:
                await self._change()

    async def _change(self) -> None:
        self._news.clear()
        await self._news.wait()
        for worker in self._workers:
            if worker.done():
                worker.result()  # what it raised; it ends for nothing else

    def measure(self) -> None:
        """Calls that end from here on count."""
        self.figures = Figures()

    def fault(self, *ids: str) -> None:
        """The fault begins now, at these endpoints; calls that end from here on count."""
        self.measure()
        self.hit(*ids)

    def hit(self, *ids: str) -> None:
        """These endpoints are bad from now on."""
        now = time.monotonic()
        self._hit |= dict.fromkeys(ids, now)

    def heal(self, *ids: str) -> None:
        """These endpoints are good again."""
        for each in ids:
            self._hit.pop(each, None)

    async def _work(self) -> None:
        while not self._stop:
            ended = await self._call(timeout=TIMEOUT_S)
            self._count(ended)
            if ended.error is not None:
                await asyncio.sleep(_AFTER_FAILURE_S)  # who is refused at once does not ask again at once

    def _count(self, ended: Ended) -> None:
        figures = self.figures
        figures.count(ended)
        for attempt in ended.attempts:
            if attempt.number > 1:
                figures.extra[attempt.why.partition(":")[0]] += 1
                figures.why[attempt.why] += 1
            since = self._hit.get(attempt.endpoint_id)
            if since is not None and attempt.started_at >= since:
                figures.bad += 1
                if attempt.breaker_state is State.HALF_OPEN:
                    figures.probes += 1
                else:
                    figures.last_bad_s = max(attempt.started_at - since, figures.last_bad_s or 0.0)
            if attempt.outcome is not None and attempt.outcome.code is grpc.StatusCode.OK:
                self._answered[attempt.endpoint_id] += 1
                self.answered_at = time.monotonic()
                self._news.set()
        if ended.error is not None:
            self._news.set()
